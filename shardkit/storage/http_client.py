"""A plain HTTP/1.1 client over kept connections: for web servers and for signed URLs.

It takes what others refuse: a range answered with status 200 (the right bytes, or the whole
object, out of which the range is cut), URLs with a query, redirects, servers without HEAD. It has
no threads of its own and so works in any child of a fork.
"""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from urllib.parse import quote, urljoin, urlsplit

from shardkit.errors import ConfigError, NotFoundError, StoreError, TransientError
from shardkit.storage.bodies import Body
from shardkit.storage.boundary import short_range, untrusted
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.pool import Pool
from shardkit.storage.protocol import Chunk
from shardkit.storage.receive import plain_socket, receive

__all__ = [
    "BUFFER",
    "HttpClient",
    "RangePastEndError",
    "RefusedError",
    "plain_url",
    "proxy_of",
    "raise_for_status",
]

CHUNK = 1 << 20
BUFFER = 256 << 10
"""Bytes of a buffer that is used again: it stays in the processor's cache, so that what is received
is hashed and written while it is there."""

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 529})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_BROKEN = (OSError, http.client.HTTPException)
_Host = tuple[str, str]


class RangePastEndError(Exception):
    """The server says that the range begins after the object's end; who asked knows the rest."""


class RefusedError(StoreError):
    """The server gives the object to others only."""


class _Answer(http.client.HTTPResponse):
    """An answer, behind informational ones (1xx), of which ``http.client`` knows 100 alone."""

    def begin(self) -> None:
        """Read the head."""
        super().begin()
        while 100 < self.status < 200 and self.status != HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = None  # type: ignore[assignment] # as if nothing had come so far
            super().begin()


class _Connection(http.client.HTTPConnection):
    response_class = _Answer


class _TlsConnection(http.client.HTTPSConnection):
    response_class = _Answer


class HttpClient:
    """GET and HEAD with ranges over a pool of connections. Thread-safe; safe after a fork.

    Args:
        headers: sent with every request.
        stall_s: a connection that sends nothing for so long is dropped: ``TransientError``.
    """

    def __init__(self, headers: Mapping[str, str], stall_s: float) -> None:
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "shardkit", **headers}
        self._stall_s = stall_s
        self._pool: Pool[_Host, http.client.HTTPConnection] = Pool()
        self._tls: ssl.SSLContext | None = None
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        """Leave the parent's connections to the parent."""
        self._pool = Pool()

    def head(self, url: str, name: str) -> tuple[int, str]:
        """Return size (-1 unknown) and version ("" unknown) of ``url``, called ``name`` in errors.

        A server that refuses HEAD is asked for the first byte instead.
        """
        try:
            connection, answer, host = self._ask("HEAD", url, name, {})
        except NotFoundError:
            raise
        except StoreError:
            connection, answer, host = self._ask("GET", url, name, {"Range": "bytes=0-0"})
        found = _content_range(answer)
        size = found[1] if found else _length(answer)
        if answer.isclosed() and not answer.will_close:  # nothing of a body is left
            self._pool.give_back(host, connection)
        else:
            connection.close()
        return (-1 if size is None else size), _version(answer)

    def open(
        self,
        url: str,
        name: str,
        start: int,
        stop: int | None,
        size_of: Callable[[], int],
        *,
        buffer: memoryview | None = None,
    ) -> Body:
        """Ask for bytes ``[start, stop)``; ``stop=None`` is the end.

        ``size_of`` tells the object's size (-1 unknown) where the answer leaves that open. With a
        ``buffer`` all chunks are views of it, each good until the next is asked for.

        Raises:
            CorruptError: the object ends before ``stop``.
            RangePastEndError: it ends before ``start``.
            NotFoundError, TransientError, StoreError: as stores do.
        """
        headers = {}
        if start > 0 or stop is not None:
            headers["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        connection, answer, host = self._ask("GET", url, name, headers)
        try:
            skip, wanted = _place_in_answer(answer, name, start, stop, size_of)
        except BaseException:
            connection.close()
            raise
        chunks = self._chunks(connection, answer, host, name, skip, wanted, buffer)
        end = stop if wanted is None else start + wanted
        return Body(_version(answer), end, chunks, answer.status == HTTPStatus.PARTIAL_CONTENT)

    def _chunks(
        self,
        connection: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        host: _Host,
        name: str,
        skip: int,
        wanted: int | None,
        buffer: memoryview | None,
    ) -> Iterator[Chunk]:
        done = False
        try:
            while skip and (dropped := answer.read(min(skip, CHUNK))):
                skip -= len(dropped)
            sock = plain_socket(connection, answer)
            if sock is not None and buffer is not None and wanted is not None:
                yield from receive(sock, answer, wanted, buffer)
            else:
                yield from _read_chunks(answer, wanted, buffer)
            if not answer.isclosed() and answer.length == 0:
                answer.read()
            done = answer.isclosed() and not answer.will_close
        except _BROKEN as error:
            raise TransientError(f"{name}: the body broke: {error!r}") from error
        finally:
            if done:
                self._pool.give_back(host, connection)
            else:
                connection.close()

    def _ask(
        self, method: str, url: str, name: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, _Host]:
        """Send a request, following redirects; a kept connection gone stale is replaced once."""
        for _ in range(_MAX_REDIRECTS + 1):
            host, target = _host_and_target(url)
            kept = self._pool.take(host)
            connection = kept or self._connect(host)
            try:
                try:
                    answer = _exchange(connection, method, target, {**self._headers, **headers})
                except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                    if kept is None:
                        raise
                    connection.close()
                    connection = self._connect(host)
                    answer = _exchange(connection, method, target, {**self._headers, **headers})
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise untrusted("read", name, error.verify_message) from error
            except _BROKEN as error:
                connection.close()
                raise TransientError(f"cannot read {name}: {error!r}") from error
            if answer.status not in _REDIRECTS:
                break
            connection.close()
            url = urljoin(url, answer.headers.get("Location", url))
        try:
            raise_for_status(answer.status, answer.reason, name)
        except BaseException:
            connection.close()
            raise
        return connection, answer, host

    def _connect(self, host: _Host) -> http.client.HTTPConnection:
        """Return a connection, through a proxy if there is one."""
        scheme, netloc = host
        through = proxy_of(scheme, netloc)
        if through is None:
            return self._new(scheme, netloc)
        connection = self._new(scheme, through)
        connection.set_tunnel(netloc)
        return connection

    def _new(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme == "http":
            return _Connection(netloc, timeout=self._stall_s, blocksize=CHUNK)
        if self._tls is None:  # to read all authorities takes 20 ms
            self._tls = ssl.create_default_context()
        return _TlsConnection(netloc, timeout=self._stall_s, context=self._tls)


def plain_url(url: str) -> str:
    """Return the URL with what may not stand in a request line quoted; escapes are left alone."""
    return quote(url, safe="/:?#[]@!$&'()*+,;=%~-._")


def _host_and_target(url: str) -> tuple[_Host, str]:
    parts = urlsplit(plain_url(url))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{url!r} is not an http URL with a host")
    target = parts.path or "/"
    return (parts.scheme, parts.netloc), f"{target}?{parts.query}" if parts.query else target


def proxy_of(scheme: str, netloc: str) -> str | None:
    """Return host and port of the proxy that the system names for a host, if any."""
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(netloc.rsplit("@", maxsplit=1)[-1]):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}").netloc


def _exchange(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    connection.request(method, target, headers=dict(headers))
    return connection.getresponse()


def _place_in_answer(
    answer: http.client.HTTPResponse,
    name: str,
    start: int,
    stop: int | None,
    size_of: Callable[[], int],
) -> tuple[int, int | None]:
    """Return how many bytes of an answer to skip, and how many to take (None: to its end).

    Raises:
        CorruptError: the object ends before ``stop``.
        TransientError: the server sent another range.
    """
    length = _length(answer)
    asked = None if stop is None else stop - start
    if start == 0 and stop is None:
        return 0, length
    found = _content_range(answer)
    if found is not None:  # with status 206, or 200 as some servers have it
        first, total = found
        if first != start:
            raise TransientError(f"{name}: asked for byte {start}, the server sent byte {first}")
        if stop is not None and total is not None and stop > total:
            raise short_range(name, start, stop, total)
        return 0, length if asked is None else asked
    # Status 200 and no Content-Range: the range alone, or the whole object? The size decides.
    total = size_of()
    if total >= 0 and max(start, stop or 0) > total:
        raise short_range(name, start, total if stop is None else stop, total)
    is_range = length == asked if total < 0 else length is not None and length < total
    if is_range:
        return 0, length if asked is None else asked
    rest = None if length is None else length - start
    return start, rest if asked is None else asked


def raise_for_status(status: int, reason: str, name: str) -> None:
    """Raise what an answer of this status means, unless it is the object ``name``."""
    if status in (200, 203, 206):
        return
    said = f"the server said {status} {reason}"
    if status in (404, 410):
        raise NotFoundError(f"cannot read {name}: {said}; there is no such object")
    if status == 416:
        raise RangePastEndError(name)
    if status in _TRANSIENT:
        raise TransientError(f"cannot read {name}: {said}")
    if status in (401, 403, 407):
        raise RefusedError(f"cannot read {name}: {said}; check rights and keys")
    raise StoreError(f"cannot read {name}: {said}")


def _read_chunks(
    answer: http.client.HTTPResponse, wanted: int | None, buffer: memoryview | None
) -> Iterator[Chunk]:
    while wanted is None or wanted > 0:
        if buffer is None:
            chunk: Chunk = answer.read(CHUNK if wanted is None else min(CHUNK, wanted))
        else:
            view = buffer if wanted is None else buffer[:wanted]
            chunk = view[: answer.readinto(view)]
        if not chunk:
            return
        if wanted is not None:
            wanted -= len(chunk)
        yield chunk


def _length(answer: http.client.HTTPResponse) -> int | None:
    told = answer.headers.get("Content-Length")
    return int(told) if told and re.fullmatch("[0-9]{1,18}", told) else None


def _content_range(answer: http.client.HTTPResponse) -> tuple[int, int | None] | None:
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if found is None:
        return None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _version(answer: http.client.HTTPResponse) -> str:
    """Return etag, else the time of the last change, else ""."""
    if etag := answer.headers.get("ETag"):
        return etag.removeprefix("W/").strip('"')
    return answer.headers.get("Last-Modified", "")
