"""Many plain requests under way at once, in one thread: whichever answer has come is received.

A thread a request costs more than the request does: each has to get Python's lock back four or five
times an object, from 31 others. One thread that asks the kernel which connections have something
takes a third of the processor time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from http import HTTPStatus
from typing import Generic, NamedTuple, TypeVar

from shardkit.errors import StoreError, TransientError
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.http_client import RangePastEndError, raise_for_status
from shardkit.storage.plain_get import (
    MOST_HEAD,
    NO_BUCKET,
    REFUSALS,
    Head,
    PlainGetter,
    PlainRequest,
    body_of_refusal,
    num_informational,
    parse_head,
)
from shardkit.storage.quick_calls import blank
from shardkit.storage.wires import Wire, wire_of

__all__ = ["Answer", "Receiver"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MISSING = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)

_TICK_S = 0.5
"""How often it is looked whether a connection has been silent for too long."""


class Answer(NamedTuple, Generic[T]):
    """What became of a request: bytes and version, or ``None`` where it must be asked otherwise.

    ``missing`` is the head of an answer that leaves no doubt that there is no such object.
    """

    tag: T
    data: bytes | None
    version: str = ""
    missing: Head | None = None

    def raise_if_missing(self, name: str) -> None:
        """Raise ``NotFoundError`` if there is no such object; ``name`` is what it is called."""
        if self.missing is not None:
            raise_for_status(self.missing.status, self.missing.reason, name)


class _OddError(Exception):
    """An answer that is not understood."""


class _Connection(Generic[T]):
    """A borrowed connection, and the request that is under way on it."""

    __slots__ = (
        *("data", "fd", "getter", "is_refused", "missing", "num_received", "origin"),
        *("since", "start", "stays_open", "tag", "version", "wire"),
    )

    def __init__(self, getter: PlainGetter, origin: str, wire: Wire) -> None:
        self.getter = getter
        self.origin = origin
        self.wire = wire
        self.fd = wire.sock.fileno()
        self.tag: T | None = None
        self.start = b""  # what has come of the head, and of the body of a refusal
        self.is_refused = False  # and all of that has come
        self.missing: Head | None = None  # of a refusal that says that there is no such object
        self.data: bytes | None = None  # what comes is written into; None before the head has come
        self.num_received = 0
        self.since = 0.0  # when something came last
        self.version = ""
        self.stays_open = False

    def receive(self) -> bool:
        """Take what has come; is that the whole answer?

        Raises:
            OSError: the connection has ended, or says that there is no such object, or not now.
            _OddError: the answer is not understood.
        """
        while True:
            data = self.data
            if data is None:
                came = self._receive_head()
            else:
                came = self.wire.receive_into(data, self.num_received)
                self.num_received += max(came, 0)
            if came == 0:
                raise ConnectionResetError
            if self.data is not None and self.num_received == len(self.data):
                return True
            if self.is_refused:
                return True
            if came < 0 or (data is not None and not self.wire.holds):
                return False  # the kernel tells of what comes next

    def _receive_head(self) -> int:
        """Take what has come of a head, and of the body behind it; return how much that was."""
        came = self.wire.receive(MOST_HEAD)
        if not came:
            return -1 if came is None else 0
        self.start += came
        while size := num_informational(self.start):
            self.start = self.start[size:]
        if b"\r\n\r\n" in self.start:
            head = _understood(self.start)
            body = self.start[head.size :]
            if head.status in REFUSALS:
                self._take_refusal(head, body)
            else:
                self.data, self.num_received = blank(head.length or 0, body), len(body)
            self.version, self.stays_open = head.version or "", head.stays_open
        elif len(self.start) >= MOST_HEAD:
            raise _OddError
        return len(came)

    def _take_refusal(self, head: Head, came: bytes) -> None:
        """Note a refusal, once all of it has come."""
        body = body_of_refusal(head, came)
        self.is_refused = body is not None
        if body is not None and head.status in _MISSING and NO_BUCKET not in body:
            self.missing = head


def _understood(start: bytes) -> Head:
    """The head of a refusal, or of an answer that has a body of known length and a version.

    Raises:
        StoreError: not now, or what is to be had of a refusal can't be told.
        _OddError: it is another answer.
    """
    try:
        head = parse_head(start)
        if head.status in REFUSALS:
            return head
        raise_for_status(head.status, head.reason, "it")
    except TransientError:
        raise
    except (StoreError, RangePastEndError) as error:
        raise _OddError from error
    if head.status != HTTPStatus.OK or head.length is None or head.version is None:
        raise _OddError
    if len(start) - head.size > head.length:
        raise _OddError
    return head


class Receiver(Generic[T]):
    """GETs of whole objects, any number at once. Used by one thread, but for ``wake``.

    Connections are borrowed from the requests' own getters, idle ones only: to connect may take
    long. An answer that is neither the most usual one nor says that there is no such object, a
    connection that breaks, one that is silent for too long: each ends as ``Answer(tag, None)``.

    Args:
        most_idle: connections kept, of all servers together.
    """

    def __init__(self, most_idle: int = 64) -> None:
        self._most_idle = most_idle
        self._poll = select.epoll()
        self._waking = threading.Lock()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # guarded by _waking
        self._poll.register(self._event, select.EPOLLIN)
        self._busy: dict[int, _Connection[T]] = {}
        self._idle: dict[int, _Connection[T]] = {}  # the one used last is last
        self._looked_at = 0.0
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        """In a forked child: keep nothing open that is the parent's."""
        self._waking = threading.Lock()
        for connection in (*self._busy.values(), *self._idle.values()):
            connection.wire.sock.close()
        self._busy.clear()
        self._idle.clear()
        self._poll.close()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    @property
    def num_busy(self) -> int:
        """Requests under way."""
        return len(self._busy)

    def adopt(self, request: PlainRequest, sock: socket.socket) -> None:
        """Have a new connection, for a request to its server."""
        connection = self._registered(request, sock)
        self._idle[connection.fd] = connection

    def start(self, request: PlainRequest, tag: T) -> bool:
        """Send a request; False where no connection is idle."""
        while (connection := self._take(request)) is not None:
            with contextlib.suppress(OSError):
                if connection.wire.send(request.data):
                    connection.tag, connection.start, connection.data = tag, b"", None
                    connection.is_refused, connection.missing = False, None
                    connection.since = time.monotonic()
                    self._busy[connection.fd] = connection
                    return True
            self._close(connection)  # it had gone stale
        return False

    def wait(self, timeout_s: float | None = None) -> list[Answer[T]]:
        """Receive what comes; return the answers that are whole, perhaps none.

        Args:
            timeout_s: at most; ``None`` waits until something has come or ``wake`` was called, but
                looks now and then whether what is under way has stopped.
        """
        if timeout_s is None and self._busy:
            timeout_s = _TICK_S
        events = self._poll.poll(timeout_s)
        now = time.monotonic()
        answers: list[Answer[T]] = []
        for fd, _ in events:
            if (connection := self._busy.get(fd)) is not None:
                connection.since = now
                self._receive(connection, answers)
            elif fd == self._event:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            elif (connection := self._idle.get(fd)) is not None:
                self._look_at_idle(connection)
        if now - self._looked_at > _TICK_S:
            self._looked_at = now
            for connection in list(self._busy.values()):
                if now - connection.since > connection.getter.stall_s:
                    self._end(connection, answers, is_whole=False)
        return answers

    def wake(self) -> None:
        """Have ``wait`` return; called by any thread, at any time."""
        with self._waking:
            if self._event >= 0:
                os.eventfd_write(self._event, 1)

    def close(self) -> list[T]:
        """Give idle connections back, drop all others; return the tags of these."""
        answers: list[Answer[T]] = []
        for connection in list(self._busy.values()):
            self._end(connection, answers, is_whole=False)
        for connection in self._idle.values():
            connection.getter.give_back(connection.origin, connection.wire.sock)
        self._idle.clear()
        self._poll.close()
        with self._waking:
            os.close(self._event)
            self._event = -1
        return [answer.tag for answer in answers]

    def _take(self, request: PlainRequest) -> _Connection[T] | None:
        """An idle connection to a server, the one used last: it is the least likely to be stale."""
        getter, origin, _ = request
        for connection in reversed(self._idle.values()):
            if connection.origin == origin and connection.getter is getter:
                del self._idle[connection.fd]
                return connection
        sock = getter.take(origin)
        if sock is None:
            return None
        return self._registered(request, sock)

    def _registered(self, request: PlainRequest, sock: socket.socket) -> _Connection[T]:
        connection: _Connection[T] = _Connection(request.getter, request.origin, wire_of(sock))
        self._poll.register(connection.fd, select.EPOLLIN)
        return connection

    def _receive(self, connection: _Connection[T], answers: list[Answer[T]]) -> None:
        """Take what has come; if that was the last of it, or goes wrong, the answer is known."""
        try:
            is_whole = connection.receive()
        except OSError:
            self._end(connection, answers, is_whole=False)
        except Exception as error:  # noqa: BLE001 - whatever a server says must not stop the others
            logger.debug("%s: an answer is not understood: %r", connection.origin, error)
            connection.getter.note(connection.origin, is_usual=False)
            self._end(connection, answers, is_whole=False)
        else:
            if is_whole:
                if not connection.is_refused:
                    connection.getter.note(connection.origin, is_usual=True)
                self._end(connection, answers, is_whole=True)

    def _end(self, connection: _Connection[T], answers: list[Answer[T]], *, is_whole: bool) -> None:
        """Note the answer; keep the connection if nothing more comes on it."""
        tag, data, version = connection.tag, connection.data, connection.version
        connection.tag = connection.data = None
        del self._busy[connection.fd]
        if is_whole and connection.stays_open:
            self._idle[connection.fd] = connection
            if len(self._idle) > self._most_idle:
                self._drop(next(iter(self._idle.values())))
        else:
            self._close(connection)
        known = (data, version, connection.missing) if is_whole else (None, "")
        answers.append(Answer(tag, *known))  # type: ignore[arg-type]

    def _look_at_idle(self, connection: _Connection[T]) -> None:
        """Drop what the server closed; only TLS itself may have something to say meanwhile."""
        try:
            is_sound = connection.wire.holds and connection.wire.receive(1) is None
        except OSError:
            is_sound = False
        if not is_sound:
            self._drop(connection)

    def _drop(self, connection: _Connection[T]) -> None:
        del self._idle[connection.fd]
        self._close(connection)

    def _close(self, connection: _Connection[T]) -> None:
        """The kernel goes on telling of what is closed, for as long as a child has it open."""
        self._poll.unregister(connection.fd)
        connection.wire.sock.close()
