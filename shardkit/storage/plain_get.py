"""Whole objects over plain HTTP, with as few steps as there are: for many small ones.

An answer's head is looked at where the kernel holds it, and the body is received in one call,
straight into the ``bytes`` that are given out. 110 KB from an S3 server on loopback take 100 us of
processor time: obstore, which hands a body from thread to thread, takes 240, ``http.client`` more.

Only the most usual answer is understood: status 200, a head that comes in one piece, a length, an
etag or a time; and that there is no such object. Whoever gets any other asks again in another way,
which knows them all.
``receiving.py`` has many such requests answered at once, encrypted ones too.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from shardkit.errors import NotFoundError, StoreError, TransientError
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.http_client import RefusedError, proxy_of, raise_for_status
from shardkit.storage.pool import Pool
from shardkit.storage.quick_calls import drop_received, send_some

__all__ = [
    "MOST_HEAD",
    "NO_BUCKET",
    "REFUSALS",
    "Head",
    "PlainGetter",
    "PlainRequest",
    "body_of_refusal",
    "num_informational",
    "origin_of",
    "parse_head",
]

MOST_HEAD = 8 << 10
"""Bytes; a longer head is not understood."""

REFUSALS = frozenset({401, 403, 404, 410})
"""Answers that are small, and behind which a connection is as good as before."""

NO_BUCKET = b"NoSuchBucket"
"""In the body of S3's 404 where more than the object is missing, which is an error of its own."""

_MOST_TEXT = 16 << 10
"""Bytes of the body of a refusal; those of S3 have 300."""

_CONNECT_S = 10.0
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_LENGTH = re.compile(rb"([0-9a-fA-F]{1,6}) *(;.*)?")
_MOST_BYTES = 1 << 30
"""A larger body is not received at once."""
_MOST_REFUSALS = 4


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a body.

    Attributes:
        size: bytes of the head itself.
        length: bytes of the body; None where it is not simply so many bytes, or more than 1 GiB.
        version: etag, else time of the last change; None where the server tells neither.
        stays_open: another request may follow on the connection.
        is_chunked: the body comes in pieces that tell their lengths.
    """

    status: int
    reason: str
    size: int
    length: int | None
    version: str | None
    stays_open: bool
    is_chunked: bool = False


class PlainRequest(NamedTuple):
    """A request for a whole object, of whom to borrow a connection for it, and to which server.

    ``origin`` is scheme, host and port: ``"https://host:9000"``.
    """

    getter: PlainGetter
    origin: str
    data: bytes


class PlainGetter:
    """GET over a pool of connections. Thread-safe; safe after a fork.

    Args:
        headers: sent with every request.
        stall_s: a connection that sends nothing for so long is dropped: ``TransientError``.
    """

    def __init__(self, headers: Mapping[str, str], stall_s: float) -> None:
        sent = {"accept-encoding": "identity", "user-agent": "shardkit"}
        sent |= {name.lower(): value for name, value in headers.items()}
        self._names_host = "host" in sent
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self.stall_s = stall_s
        self._pool: Pool[str, socket.socket] = Pool()  # by origin
        self._tls: ssl.SSLContext | None = None
        # Answers of a server in a row that were not understood; a guess, which any thread may set.
        self._refusals: dict[str, int] = {}
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        """Leave the parent's connections to the parent."""
        self._pool = Pool()

    def request(self, url: str) -> PlainRequest:
        """Return what asks for the object of an ``http://`` or ``https://`` URL."""
        _, _, netloc, target = url.split("/", 3)
        host = "" if self._names_host else f"host: {netloc}\r\n"
        data = f"GET /{target} HTTP/1.1\r\n{host}{self._headers}\r\n".encode()
        return PlainRequest(self, origin_of(url), data)

    def is_worthwhile(self, origin: str) -> bool:
        """Whether a server is to be asked: it gave a usual answer, or was not asked often."""
        return self._refusals.get(origin, 0) < _MOST_REFUSALS

    def note(self, origin: str, *, is_usual: bool) -> None:
        """Note how a server answered."""
        if not is_usual:
            self._refusals[origin] = self._refusals.get(origin, 0) + 1
        elif origin in self._refusals:
            self._refusals.pop(origin, None)

    def get(self, url: str, name: str) -> tuple[bytes, str]:
        """Return the object of an ``http://`` URL, called ``name`` in errors, and its version.

        Raises:
            NotFoundError: there is none.
            TransientError: the server or the network failed in a way that may pass.
            StoreError: it was refused, or what came is not the usual answer.
        """
        _, origin, request = self.request(url)
        try:
            found = self._get(origin, request, name)
        except (NotFoundError, RefusedError, TransientError):
            raise
        except StoreError:
            self.note(origin, is_usual=False)
            raise
        self.note(origin, is_usual=True)
        return found

    def _get(self, origin: str, request: bytes, name: str) -> tuple[bytes, str]:
        idle = self.take(origin)
        sock = idle or self._connected(origin)
        done = False
        try:
            head = _ask(sock, request)
            if head is None and idle is not None:  # it had gone stale
                sock.close()
                sock = self._connected(origin)
                head = _ask(sock, request)
            if head is None:
                raise TransientError(f"cannot read {name}: the connection was closed")
            if head.status in REFUSALS:
                text = _read_refusal(sock, head)
                done = text is not None and head.stays_open
                if text is not None and NO_BUCKET in text:
                    raise RefusedError(f"cannot read {name}: there is no such bucket")
            raise_for_status(head.status, head.reason, name)
            if head.length is None or head.version is None:
                raise StoreError(
                    f"cannot read {name} plainly: the server tells no length or version"
                )
            drop_received(sock, head.size)
            data = _receive(sock, head.length)
            if len(data) != head.length:
                raise TransientError(f"{name}: the body ended at byte {len(data)} of {head.length}")
            done = head.stays_open
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise TransientError(f"cannot read {name}: {error!r}") from error
        finally:
            if done:
                self.give_back(origin, sock)
            else:
                sock.close()
        return data, head.version

    def take(self, origin: str) -> socket.socket | None:
        """Borrow an idle connection to a server, if there is one."""
        return self._pool.take(origin)

    def give_back(self, origin: str, sock: socket.socket) -> None:
        """Keep a connection over which nothing is on its way."""
        self._pool.give_back(origin, sock)

    def connect(self, origin: str) -> socket.socket:
        """Return one more connection to a server.

        Raises:
            TransientError: that failed, in a way that may pass.
            StoreError: it can't be had in this way.
        """
        try:
            return self._connected(origin)
        except TransientError:
            raise
        except StoreError:
            self.note(origin, is_usual=False)
            raise

    def _connected(self, origin: str) -> socket.socket:
        """Return a new connection whose calls block, under the kernel's own timeout."""
        place = urlsplit(origin)
        is_tls = place.scheme == "https"
        if proxy_of(place.scheme, place.netloc) is not None:
            raise StoreError(f"{place.netloc} is reached through a proxy, not plainly")
        host, port = place.hostname or "", place.port or (443 if is_tls else 80)
        try:
            sock = socket.create_connection((host, port), timeout=min(_CONNECT_S, self.stall_s))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if is_tls:
                sock = self._tls_context().wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise StoreError(f"cannot connect to {place.netloc}: {error}") from error
        except OSError as error:
            raise TransientError(f"cannot connect to {place.netloc}: {error!r}") from error
        sock.settimeout(None)
        timeout = struct.pack("ll", int(self.stall_s), int(self.stall_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        return sock

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL."""
    scheme, _, netloc = url.split("/", 3)[:3]
    return f"{scheme}//{netloc}"


def _ask(sock: socket.socket, request: bytes) -> Head | None:
    """Send a request and look at the head of the answer; None where the connection has ended."""
    try:
        sent = send_some(sock, request)
        if sent < len(request):
            sock.sendall(request[sent:])
        start = sock.recv(MOST_HEAD, socket.MSG_PEEK)
        while size := num_informational(start):
            drop_received(sock, size)
            start = sock.recv(MOST_HEAD, socket.MSG_PEEK)
    except (BrokenPipeError, ConnectionResetError):
        return None
    return parse_head(start) if start else None


def num_informational(start: bytes) -> int:
    """Return how many bytes an informational answer (1xx) has, if there is a whole one."""
    if not start.startswith(b"HTTP/1.1 1") or start.startswith(b"HTTP/1.1 101"):
        return 0
    return start.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in start else 0


def body_of_refusal(head: Head, came: bytes) -> bytes | None:
    """Return the body of an answer of ``REFUSALS``; ``None`` while not all of it has come.

    Raises:
        StoreError: it is too long, or nobody knows where it ends.
    """
    if len(came) <= _MOST_TEXT:
        if head.is_chunked:
            return _unchunked(came)
        if head.length is not None and len(came) <= head.length <= _MOST_TEXT:
            return came if len(came) == head.length else None
    raise StoreError("the body of the refusal is no short text")


def _unchunked(came: bytes) -> bytes | None:
    """Join pieces (RFC 9112, 7.1); ``None`` while the last has not come."""
    parts: list[bytes] = []
    at = 0
    while (end := came.find(b"\r\n", at)) >= 0:
        told = _CHUNK_LENGTH.fullmatch(came, at, end)
        if told is None:
            raise StoreError("the pieces of the answer do not tell their lengths")
        if not (size := int(told[1], 16)):
            return b"".join(parts) if came.endswith(b"\r\n\r\n") else None
        parts.append(came[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return None


def parse_head(start: bytes) -> Head:
    """Parse the first bytes of an answer.

    Raises:
        StoreError: they are not a whole head.
    """
    size = start.find(b"\r\n\r\n") + 4
    first, *lines = start[: max(size - 4, 0)].decode("latin-1").split("\r\n")
    protocol, _, told = first.partition(" ")
    if protocol != "HTTP/1.1" or not (told[:3].isascii() and told[:3].isdigit()):
        raise StoreError("the head of the answer did not come in one piece")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    length = fields.get("content-length", "")
    version = fields.get("etag", fields.get("last-modified"))
    coding, is_encoded = fields.get("transfer-encoding"), "content-encoding" in fields
    is_plain = _LENGTH.fullmatch(length) is not None and int(length) <= _MOST_BYTES
    is_plain = is_plain and coding is None and not is_encoded
    return Head(
        int(told[:3]),
        told[4:],
        size,
        int(length) if is_plain else None,
        None if version is None else version.removeprefix("W/").strip('"'),
        fields.get("connection", "").lower() != "close",
        coding is not None and coding.lower() == "chunked" and not is_encoded,
    )


def _read_refusal(sock: socket.socket, head: Head) -> bytes | None:
    """Take the body of a refusal from the socket; ``None`` where that can't be done."""
    drop_received(sock, head.size)
    came = b""
    try:
        while (body := body_of_refusal(head, came)) is None:
            if not (more := sock.recv(MOST_HEAD)):
                return None
            came += more
    except OSError:  # a StoreError is one
        return None
    return body


def _receive(sock: socket.socket, length: int) -> bytes:
    """Return so many bytes, in one call if all goes well; fewer where the connection ends."""
    data = sock.recv(length, socket.MSG_WAITALL) if length else b""
    if len(data) == length:
        return data
    parts, missing = [data], length - len(data)
    while missing > 0 and (data := sock.recv(missing, socket.MSG_WAITALL)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
