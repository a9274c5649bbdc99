"""Single flight: of all threads and processes of a node, one works on a name at a time.

Each name is one byte of one lock file, locked with an open-file-description lock (fcntl(2),
F_OFD_SETLK): the kernel drops it when its process dies, so nobody waits for the dead, and there
are no lock files to clean up. Threads of one process share the description, so among themselves
they keep a set of names.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shardkit.storage.quick_calls import try_lock_byte, unlock_byte

__all__ = ["Cancelled", "Flights"]

_FIRST_WAIT_S, _LAST_WAIT_S = 0.001, 0.02


class Cancelled(Exception):  # noqa: N818 - not an error: the waiter was told to stop
    """The wait was given up because the waiter is closing."""


class Flights:
    """Exclusive rights to names. Thread-safe; made anew after a fork (``forget_parent``).

    Mutable state: the names that threads of this process hold, under one lock.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Close the lock file; everything held is free."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def alone(self, name: str, cancelled: threading.Event | None = None) -> Iterator[None]:
        """Hold ``name`` (hex digits) for the block. See ``take``."""
        self.take(name, cancelled)
        try:
            yield
        finally:
            self.release(name)

    def take(self, name: str, cancelled: threading.Event | None = None) -> None:
        """Hold ``name`` until ``release``, by any thread; wait while somebody else does.

        The wait asks again every few milliseconds instead of sleeping in the kernel, because a
        thread that sleeps in ``F_OFD_SETLKW`` cannot be told to close.

        Raises:
            Cancelled: ``cancelled`` was set meanwhile.
        """
        if self.try_take(name):
            return
        wait_s = _FIRST_WAIT_S
        idle = cancelled or threading.Event()
        while not self.try_take(name):
            if idle.wait(wait_s):
                raise Cancelled(name)
            wait_s = min(_LAST_WAIT_S, wait_s * 2)

    def try_take(self, name: str) -> bool:
        """Hold ``name`` until ``release``, unless somebody does."""
        with self._lock:
            if name in self._held:
                return False
            if self._fd >= 0 and not try_lock_byte(self._fd, _byte_of(name)):
                return False
            self._held.add(name)
            return True

    def release(self, name: str) -> None:
        """Let ``name`` go."""
        with self._lock:
            self._held.discard(name)
            if self._fd >= 0:
                unlock_byte(self._fd, _byte_of(name))


def _byte_of(name: str) -> int:
    return int(name[:15], 16)
