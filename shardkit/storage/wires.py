"""Connections that are asked only for what has come: plain ones, and encrypted ones."""

from __future__ import annotations

import socket
import ssl
from typing import Protocol

from shardkit.storage.quick_calls import receive_into, send_some, view

__all__ = ["Wire", "wire_of"]


class Wire(Protocol):
    """A connection. Every method returns at once, and raises ``OSError`` if it is broken.

    Attributes:
        sock: it itself.
        holds: whether it may hold more than the kernel tells of: it is then to be asked until
            nothing comes.
    """

    sock: socket.socket
    holds: bool

    def send(self, data: bytes) -> bool:
        """Send all of ``data``; False if not all of it found room."""
        ...

    def receive(self, most: int) -> bytes | None:
        """Return what has come, ``None`` if nothing has, b"" if it has ended."""
        ...

    def receive_into(self, data: bytes, start: int) -> int:
        """Receive into ``blank`` bytes; return how much, -1 if nothing has come, 0 at the end."""
        ...


def wire_of(sock: socket.socket) -> Wire:
    """Return a connected socket as a wire."""
    return _TlsWire(sock) if isinstance(sock, ssl.SSLSocket) else _PlainWire(sock)


class _PlainWire:
    holds = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._fd = sock.fileno()

    def send(self, data: bytes) -> bool:
        return send_some(self.sock, data) == len(data)

    def receive(self, most: int) -> bytes | None:
        try:
            return self.sock.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def receive_into(self, data: bytes, start: int) -> int:
        return receive_into(self._fd, data, start)


class _TlsWire:
    holds = True

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock: socket.socket = sock
        sock.setblocking(False)

    def send(self, data: bytes) -> bool:
        try:
            return self.sock.send(data) == len(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False

    def receive(self, most: int) -> bytes | None:
        try:
            return self.sock.recv(most)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def receive_into(self, data: bytes, start: int) -> int:
        try:
            return self.sock.recv_into(view(data, start))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return -1
