"""System calls that never wait, made without giving Python's lock away.

Python lets another thread run during every system call. Where many threads fetch at once, to get
the lock back costs ten times what such a call takes, so what returns at once is asked with it in
hand. Only ``receive_into``, which may copy much, lets others run.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

__all__ = [
    "blank",
    "drop_received",
    "exists",
    "receive_into",
    "send_some",
    "try_flock",
    "try_lock_byte",
    "unlock",
    "unlock_byte",
    "view",
]

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
_libc.send.restype = ctypes.c_ssize_t
_libc.recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.recv.restype = ctypes.c_ssize_t
_libc.flock.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.fcntl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p]

_libc.access.argtypes = [ctypes.c_char_p, ctypes.c_int]

_free = ctypes.CDLL(None, use_errno=True)
_free.recv.argtypes = _libc.recv.argtypes
_free.recv.restype = _libc.recv.restype
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_new_bytes.restype = ctypes.py_object
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes = [ctypes.py_object]
_address_of.restype = ctypes.c_void_p
_view_of = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_view_of.restype = ctypes.py_object
_WRITABLE = 0x200
"""PyBUF_WRITE."""

_LOCK = struct.Struct("hhqqi4x")


def exists(path: str) -> bool:
    """Is there such a file on a local disk?"""
    return bool(_libc.access(os.fsencode(path), os.F_OK) == 0)


def send_some(sock: socket.socket, data: bytes) -> int:
    """Send as much as the socket takes just now; return how much that was.

    Raises:
        OSError: the connection is broken.
    """
    sent: int = _libc.send(
        sock.fileno(), data, len(data), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    )
    if sent < 0:
        _raise_unless(errno.EAGAIN)
    return max(sent, 0)


def drop_received(sock: socket.socket, size: int) -> None:
    """Take so many bytes, which have been received, from the socket."""
    _libc.recv(sock.fileno(), ctypes.create_string_buffer(size), size, socket.MSG_DONTWAIT)


def blank(size: int, start: bytes) -> bytes:
    """Return bytes for ``receive_into``: behind ``start`` they hold anything until it came."""
    made: bytes = _new_bytes(None, size)
    ctypes.memmove(_address_of(made), start, len(start))
    return made


def view(data: bytes, start: int) -> memoryview:
    """Return what is to be filled of ``blank`` bytes, from ``start`` on; they must outlive it."""
    made: memoryview = _view_of(_address_of(data) + start, len(data) - start, _WRITABLE)
    return made


def receive_into(fd: int, data: bytes, start: int) -> int:
    """Receive what has come into ``data``, which nobody else has seen yet, from ``start`` on.

    Returns how much that was: 0 where the connection has ended, -1 where nothing has come.

    Raises:
        OSError: the connection is broken.
    """
    size: int = _free.recv(fd, _address_of(data) + start, len(data) - start, socket.MSG_DONTWAIT)
    if size < 0:
        _raise_unless(errno.EAGAIN, errno.EINTR)
    return size


def try_flock(fd: int) -> bool:
    """Lock a file (``flock``) if nobody else has."""
    if _libc.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) == 0:
        return True
    _raise_unless(errno.EWOULDBLOCK)
    return False


def unlock(fd: int) -> None:
    """Unlock a file."""
    _libc.flock(fd, fcntl.LOCK_UN)


def try_lock_byte(fd: int, byte: int) -> bool:
    """Lock one byte of a file, for this open file description, if nobody else has."""
    if _set_lock(fd, fcntl.F_WRLCK, byte) == 0:
        return True
    _raise_unless(errno.EAGAIN, errno.EACCES)
    return False


def unlock_byte(fd: int, byte: int) -> None:
    """Unlock one byte of a file."""
    _set_lock(fd, fcntl.F_UNLCK, byte)


def _set_lock(fd: int, kind: int, byte: int) -> int:
    lock = _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
    return int(_libc.fcntl(fd, fcntl.F_OFD_SETLK, lock))


def _raise_unless(*expected: int) -> None:
    code = ctypes.get_errno()
    if code not in expected:
        raise OSError(code, os.strerror(code))
