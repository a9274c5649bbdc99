"""Many plain requests under way at once, in one thread: whichever answer has come is received.

A thread a request costs more than the request does: each has to get Python's lock back four or five
times an object, from 31 others. One thread that asks the kernel which connections have something
takes a third of the processor time.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from http import HTTPStatus
from typing import Generic, NamedTuple, TypeVar

from shardkit.errors import StoreError
from shardkit.storage.plain_get import MOST_HEAD, PlainGetter, PlainRequest, parse_head
from shardkit.storage.quick_calls import blank, receive_into, send_some

__all__ = ["Answer", "Receiver"]

T = TypeVar("T")

_TICK_S = 0.5
"""How often it is looked whether a connection has been silent for too long."""


class Answer(NamedTuple, Generic[T]):
    """What became of a request: bytes and version, or ``None`` where it must be asked otherwise."""

    tag: T
    data: bytes | None
    version: str = ""


class _Connection(Generic[T]):
    """A borrowed connection, and the request that is under way on it."""

    __slots__ = (
        *("data", "fd", "num_received", "place", "since", "sock", "start"),
        *("stays_open", "tag", "version"),
    )

    def __init__(self, place: tuple[PlainGetter, str], sock: socket.socket) -> None:
        self.place = place
        self.sock = sock
        self.fd = sock.fileno()
        self.tag: T | None = None
        self.start = b""  # what has come of the head
        self.data: bytes | None = None  # what comes is written into; None before the head has come
        self.num_received = 0
        self.since = 0.0  # when something came last
        self.version = ""
        self.stays_open = False


class Receiver(Generic[T]):
    """GETs of whole objects, any number at once. Used by one thread, but for ``wake``.

    Connections are borrowed from the requests' own getters, idle ones only: to connect may take
    long. An answer that is not the most usual one, a connection that breaks, one that is silent
    for too long: each ends as ``Answer(tag, None)``.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._waking = threading.Lock()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # guarded by _waking
        self._poll.register(self._event, select.EPOLLIN)
        self._busy: dict[int, _Connection[T]] = {}
        self._idle: dict[tuple[PlainGetter, str], list[_Connection[T]]] = {}
        self._looked_at = 0.0

    @property
    def num_busy(self) -> int:
        """Requests under way."""
        return len(self._busy)

    def start(self, request: PlainRequest, tag: T) -> bool:
        """Send a request; False if it must be asked otherwise: no connection is idle, or broke."""
        connection = self._take(request)
        if connection is None:
            return False
        try:
            is_sent = send_some(connection.sock, request.data) == len(request.data)
        except OSError:
            is_sent = False
        if not is_sent:
            connection.sock.close()  # and the kernel asks about it no more
            return False
        connection.tag, connection.start, connection.data = tag, b"", None
        connection.since = time.monotonic()
        self._busy[connection.fd] = connection
        return True

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
            connection = self._busy.get(fd)
            if connection is not None:
                connection.since = now
                self._receive(connection, answers)
            elif fd == self._event:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            else:
                self._drop_idle(fd)
        if now - self._looked_at > _TICK_S:
            self._looked_at = now
            for connection in list(self._busy.values()):
                if now - connection.since > connection.place[0].stall_s:
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
        for (getter, netloc), connections in self._idle.items():
            for connection in connections:
                getter.give_back(netloc, connection.sock)
        self._idle.clear()
        self._poll.close()
        with self._waking:
            os.close(self._event)
            self._event = -1
        return [answer.tag for answer in answers]

    def _take(self, request: PlainRequest) -> _Connection[T] | None:
        place = request.getter, request.netloc
        idle = self._idle.get(place)
        if idle:
            return idle.pop()
        sock = request.getter.take(request.netloc)
        if sock is None:
            return None
        connection: _Connection[T] = _Connection(place, sock)
        self._poll.register(connection.fd, select.EPOLLIN)
        return connection

    def _receive(self, connection: _Connection[T], answers: list[Answer[T]]) -> None:
        """Take what has come; if that was the last of it, or goes wrong, the answer is known."""
        try:
            if connection.data is None:
                goes_on = self._receive_head(connection)
            else:
                goes_on = self._receive_body(connection, connection.data)
        except (OSError, StoreError):
            goes_on = False
        data = connection.data
        if not goes_on:
            self._end(connection, answers, is_whole=False)
        elif data is not None and connection.num_received == len(data):
            self._end(connection, answers, is_whole=True)

    def _receive_head(self, connection: _Connection[T]) -> bool:
        """Take what has come of a head, and of the body behind it; False if that is the end."""
        came = connection.sock.recv(MOST_HEAD, socket.MSG_DONTWAIT)
        start = connection.start = connection.start + came
        if not came or b"\r\n\r\n" not in start:
            return len(came) > 0 and len(start) < MOST_HEAD
        head = parse_head(start)
        body = start[head.size :]
        if head.status != HTTPStatus.OK or head.length is None or head.version is None:
            return False
        if len(body) > head.length:
            return False
        connection.start, connection.num_received = b"", len(body)
        connection.data = blank(head.length, body)
        connection.version, connection.stays_open = head.version, head.stays_open
        return self._receive_body(connection, connection.data)

    def _receive_body(self, connection: _Connection[T], data: bytes) -> bool:
        """Take what has come of a body; False if that is the end of the connection."""
        if connection.num_received == len(data):
            return True
        received = receive_into(connection.fd, data, connection.num_received)
        connection.num_received += max(received, 0)
        return received != 0

    def _end(self, connection: _Connection[T], answers: list[Answer[T]], *, is_whole: bool) -> None:
        """Note the answer; keep the connection if nothing more comes on it."""
        tag, data, version = connection.tag, connection.data, connection.version
        connection.tag = connection.data = None
        del self._busy[connection.fd]
        if is_whole and connection.stays_open:
            self._idle.setdefault(connection.place, []).append(connection)
        else:
            connection.sock.close()
        known = (data, version) if is_whole else (None, "")
        answers.append(Answer(tag, *known))  # type: ignore[arg-type]

    def _drop_idle(self, fd: int) -> None:
        """The server has closed a connection, or sends what nobody asked for."""
        for connections in self._idle.values():
            for connection in connections:
                if connection.fd == fd:
                    connections.remove(connection)
                    connection.sock.close()
                    return
