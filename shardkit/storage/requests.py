"""What a consumer asks for: an object or a range of one, how to know and to prove it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_64, xxh3_64_intdigest

from shardkit.errors import ConfigError, CorruptError
from shardkit.storage.cache import Fill, Sink
from shardkit.storage.flights import Cancelled
from shardkit.storage.protocol import Chunk, Store

__all__ = ["Request", "fill_from", "load_verified", "prove"]

_ATTEMPTS = 3
"""Downloads before bytes with a wrong checksum are taken for what the far end really holds."""


@dataclass(frozen=True, slots=True)
class Request:
    """An object, or bytes ``[start, stop)`` of it.

    Args:
        url: any scheme.
        size: bytes of what is asked for, -1 unknown: bounds the lookahead and makes room early.
        checksum: 64-bit xxh3 of what is asked for; it is then also the version.
        version: names the content in the cache, with the URL; ``None`` asks the store (one
            ``stat`` an object), ``""`` takes the URL for enough.
        start: first byte.
        stop: byte after the last; ``None`` is the end of the object.
        next_use: after how many more requests of the same consumer this one is wanted again
            (``None``: not known); used by the next-use policy.
        tag: anything of the caller's, handed back.
        check: raises ``CorruptError`` unless the bytes are right, for what has no one checksum;
            called before anything is kept, and answered by fetching again, as a checksum is.
    """

    url: str
    size: int = -1
    checksum: int | None = None
    version: str | None = None
    start: int = 0
    stop: int | None = None
    next_use: int | None = None
    tag: Any = None
    check: Callable[[bytes], None] | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise ConfigError(
                f"range ({self.start}, {self.stop}) of {self.url}: needs 0 <= start <= stop"
            )

    @property
    def is_whole(self) -> bool:
        """Is it the whole object?"""
        return self.start == 0 and self.stop is None

    @property
    def num_bytes(self) -> int:
        """Bytes asked for, -1 unknown."""
        return self.size if self.stop is None else self.stop - self.start

    def key(self, store: Store) -> str:
        """Return the cache's key: URL, version, range."""
        if self.checksum is not None:
            version = f"xxh3:{self.checksum:016x}"
        elif self.version is None:
            version = store.stat(self.url).version
        else:
            version = self.version
        part = "" if self.is_whole else f"\n{self.start}-{'' if self.stop is None else self.stop}"
        return f"{self.url}\n{version}{part}"


def fill_from(store: Store, request: Request, *, check: bool, cancelled: threading.Event) -> Fill:
    """Return what writes a request's bytes into a sink, proved by the checksum as they pass.

    A wrong checksum is fetched again, twice: the network flips bits, bad disks do it for good.

    Raises (when called):
        CorruptError: the checksum stayed wrong.
        Cancelled: the consumer is closing.
    """
    expected = request.checksum if check else None
    bounds = (request.start, request.stop)

    def fill(sink: Sink) -> None:
        def take(digest: xxh3_64, chunk: Chunk) -> None:
            if cancelled.is_set():
                raise Cancelled(request.url)
            if expected is not None:
                digest.update(chunk)
            sink.write(chunk)

        found = 0
        for _ in range(_ATTEMPTS):
            digest = xxh3_64()
            store.stream_to(request.url, functools.partial(take, digest), *bounds)
            found = digest.intdigest()
            if expected is None or found == expected:
                return
            sink.restart()
        raise _wrong_checksum(request, found)

    return fill


def load_verified(store: Store, request: Request) -> bytes:
    """Return a request's bytes, proved by its checksum if it has one."""
    found = 0
    for attempt in range(_ATTEMPTS):
        data = _load(store, request)
        if request.check is not None:
            try:
                request.check(data)
            except CorruptError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
        if request.checksum is None:
            return data
        found = xxh3_64_intdigest(data)
        if found == request.checksum:
            return data
    raise _wrong_checksum(request, found)


def prove(request: Request, data: memoryview) -> None:
    """Raise ``CorruptError`` unless ``data`` has the size and checksum of the request."""
    if request.num_bytes not in (-1, len(data)):
        raise CorruptError(
            f"{request.url} has {len(data)} bytes, {request.num_bytes} were expected: it was cut "
            "or replaced; verify the dataset"
        )
    if request.checksum is not None:
        found = xxh3_64_intdigest(data)
        if found != request.checksum:
            raise _wrong_checksum(request, found)


def _load(store: Store, request: Request) -> bytes:
    if request.is_whole:
        return store.get(request.url)
    if request.stop is None:
        return b"".join(store.get_chunks(request.url, request.start))
    return store.get_range(request.url, request.start, request.stop)


def _wrong_checksum(request: Request, found: int) -> CorruptError:
    return CorruptError(
        f"{request.url} (from byte {request.start}): its checksum is xxh3:{found:016x}, "
        f"xxh3:{request.checksum or 0:016x} was expected; it was changed or damaged where it lies: "
        "verify the dataset, then repair it"
    )
