"""An HTTP proxy on loopback that logs every request and can break any answer at a chosen byte.

It stands between a client and a real server (see ``tests/s3.py``), so what is tested is the
client's own code against real sockets: resets, short bodies, stalls, flipped bits, 503s, and
servers that ignore ``Range`` or answer a range with status 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

KINDS = frozenset(
    {"status", "reset", "truncate", "flip", "stall", "slow", "ignore_range", "range_as_200"}
)
CHUNK = 1 << 16


@dataclass
class Fault:
    """One way to break answers.

    Args:
        kind: ``status`` answers ``status`` with an empty body; ``reset`` sends RST at byte ``at``;
            ``truncate`` closes cleanly there, under a header that promised more; ``flip``
            inverts a bit of that byte; ``stall`` stops there for ``seconds``; ``slow`` sends
            ``bytes_per_s``; ``ignore_range`` sends the whole object for any range;
            ``range_as_200`` sends the right range under status 200.
        path: pattern (fnmatch) of the request's path, without the query.
        method: request method, or ``*``.
        at: byte of the *object* (not of the answer); only answers that hold it are broken.
        times: how many answers to break; -1 breaks all.
        after: how many matching answers to let pass first.
    """

    kind: str
    path: str = "*"
    method: str = "GET"
    at: int = 0
    times: int = 1
    after: int = 0
    status: int = 503
    seconds: float = 3600.0
    bytes_per_s: int = 1 << 20
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is none of {sorted(KINDS)}")

    def matches(self, method: str, path: str) -> bool:
        return self.method in ("*", method) and fnmatch.fnmatchcase(path, self.path)

    def take(self) -> bool:
        """Count a matching answer; is it one to break?"""
        if self.after > 0:
            self.after -= 1
            return False
        if self.times == 0:
            return False
        if self.times > 0:
            self.times -= 1
        self.hits += 1
        return True


@dataclass(frozen=True)
class LoggedRequest:
    """A request that reached the proxy."""

    method: str
    path: str
    query: str
    range: str | None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FaultyProxy:
    """A running proxy: its ``port``, the ``requests`` it saw, the ``faults`` it applies."""

    port: int
    faults: list[Fault]
    requests: list[LoggedRequest]
    active: int = 0
    most_active: int = 0

    def count(self, method: str = "*", path: str = "*") -> int:
        """Number of logged requests that match."""
        return sum(
            1
            for request in list(self.requests)
            if method in ("*", request.method) and fnmatch.fnmatchcase(request.path, path)
        )


@contextmanager
def proxy_to(
    upstream_port: int, faults: Sequence[Fault] | None = None, *, latency_s: float = 0.0
) -> Iterator[FaultyProxy]:
    """Run a proxy before ``127.0.0.1:upstream_port`` in a thread of its own."""
    loop = asyncio.new_event_loop()
    proxy = FaultyProxy(0, list(faults or []), [])
    started = threading.Event()
    finished = asyncio.Event()

    async def run() -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await _serve_connection(proxy, upstream_port, latency_s, reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                tasks.discard(task)
                with contextlib.suppress(Exception):
                    writer.transport.abort()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 20)
        proxy.port = server.sockets[0].getsockname()[1]
        started.set()
        await finished.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(finished.set)
        thread.join(10)
        loop.close()


@dataclass
class _Head:
    first: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name), None)

    def drop(self, *names: str) -> None:
        self.headers = [(k, v) for k, v in self.headers if k.lower() not in names]

    def encode(self) -> bytes:
        lines = [self.first, *(f"{k}: {v}" for k, v in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
    return _Head(first, headers)


async def _body(reader: asyncio.StreamReader, head: _Head, *, to_end: bool) -> list[bytes] | None:
    """Read a small body whole (requests); ``None`` when there is none."""
    if (head.get("transfer-encoding") or "").lower() == "chunked":
        parts = []
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            parts += [line, await reader.readexactly(size + 2)]
            if size == 0:
                return parts
    length = int(head.get("content-length") or 0)
    if length:
        return [await reader.readexactly(length)]
    return [await reader.read()] if to_end else None


async def _serve_connection(
    proxy: FaultyProxy,
    upstream_port: int,
    latency_s: float,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    try:
        while (request := await _read_head(reader)) is not None:
            if (request.get("expect") or "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.drop("expect")
            body = await _body(reader, request, to_end=False)
            method, target, _ = request.first.split(" ", 2)
            parts = urlsplit(target)
            path = unquote(parts.path)
            proxy.requests.append(
                LoggedRequest(
                    method,
                    path,
                    parts.query,
                    request.get("range"),
                    {k.lower(): v for k, v in request.headers},
                )
            )
            proxy.active += 1
            proxy.most_active = max(proxy.most_active, proxy.active)
            try:
                if latency_s:
                    await asyncio.sleep(latency_s)
                faults = [f for f in proxy.faults if f.matches(method, path)]
                if any(f.kind == "ignore_range" and f.take() for f in faults):
                    request.drop("range")
                if await _answer_with_status(faults, writer):
                    continue
                if upstream is None:
                    upstream = await asyncio.open_connection(
                        "127.0.0.1", upstream_port, limit=1 << 20
                    )
                upstream[1].write(request.encode() + b"".join(body or []))
                await upstream[1].drain()
                answer = await _read_head(upstream[0])
                if answer is None:
                    return
                if not await _forward(method, request, answer, faults, upstream[0], writer):
                    return
            finally:
                proxy.active -= 1
    finally:
        if upstream is not None:
            upstream[1].transport.abort()


async def _answer_with_status(faults: list[Fault], writer: asyncio.StreamWriter) -> bool:
    for fault in faults:
        if fault.kind == "status" and fault.take():
            head = f"HTTP/1.1 {fault.status} Broken On Purpose\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            await writer.drain()
            return True
    return False


async def _forward(
    method: str,
    request: _Head,
    answer: _Head,
    faults: list[Fault],
    upstream: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> bool:
    """Send an answer on, broken as the faults say; may the connection be used again?"""
    status = int(answer.first.split(" ", 2)[1])
    chunked = (answer.get("transfer-encoding") or "").lower() == "chunked"
    bodiless = method == "HEAD" or status in (204, 304)
    if bodiless or chunked or answer.get("content-length") is None:
        writer.write(answer.encode())
        if not bodiless:
            for part in await _body(upstream, answer, to_end=not chunked) or []:
                writer.write(part)
        await writer.drain()
        return bodiless or chunked
    length = int(answer.get("content-length") or 0)
    start = _first_byte(answer)
    if status == 206 and any(f.kind == "range_as_200" and f.take() for f in faults):
        answer.first = answer.first.replace("206 Partial Content", "200 OK")
        answer.drop("content-range")
    writer.write(answer.encode())
    if status >= 300:
        faults = []
    broken = [f for f in faults if f.kind in ("reset", "truncate", "flip", "stall")]
    broken = [f for f in broken if start <= f.at < start + length and f.take()]
    slow = next((f for f in faults if f.kind == "slow" and f.take()), None)
    position, stop = start, start + length
    while position < stop:
        step = min(CHUNK, stop - position, *(f.at - position for f in broken if f.at > position))
        for fault in [f for f in broken if f.at == position]:
            broken.remove(fault)
            if fault.kind == "stall":
                await writer.drain()
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "flip":
                byte = await upstream.readexactly(1)
                writer.write(bytes([byte[0] ^ 1]))
                position += 1
                step -= 1
            else:
                await writer.drain()
                await asyncio.sleep(0.02)  # let what was sent arrive
                _hang_up(writer, reset=fault.kind == "reset")
                return False
        if step:
            data = await upstream.read(step)
            if not data:
                return False
            writer.write(data)
            position += len(data)
            await writer.drain()
            if slow is not None:
                await asyncio.sleep(len(data) / slow.bytes_per_s)
    await writer.drain()
    return (request.get("connection") or "").lower() != "close"


def _first_byte(answer: _Head) -> int:
    found = re.match(r"bytes (\d+)-", answer.get("content-range") or "")
    return int(found.group(1)) if found else 0


def _hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        import socket
        import struct

        sock = writer.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
