"""Leases: what one process has reserved in the cache, in a form that outlives no process.

A lease is a file that its process keeps locked (``flock``: the kernel unlocks it at death, whatever
the death), a row of the ledger with the bytes reserved, and the prefix of the names of the
process's temporaries. The file's content is a journal: names of entries about to appear or
disappear. Whoever finds a lease unlocked can thus clean up after its owner without looking at
anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator

from shardkit.storage.entries import is_entry_name

__all__ = ["Lease", "dead_leases", "journal_of"]

_REGION = 8 << 10
"""Bytes of a journal that are written beforehand, so that noting works on a full disk too."""


class Lease:
    """The lease of this process. Not thread-safe: its cache calls it under one lock."""

    def __init__(self, folder: str) -> None:
        while True:
            self.name = secrets.token_hex(8)
            self.path = os.path.join(folder, self.name)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o666)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.fstat(self._fd).st_nlink:  # nobody took it for dead before it was locked
                break
            os.close(self._fd)
        self._end = 0
        os.pwrite(self._fd, b"\n" * _REGION, 0)
        self._map = mmap.mmap(self._fd, _REGION)  # noting is a store to memory, no system call

    def note(self, names: list[str]) -> None:
        """Write down names before their files appear or disappear."""
        lines = "".join(f"{name}\n" for name in names).encode()
        stop = self._end + len(lines)
        if stop <= _REGION:
            self._map[self._end : stop] = lines
        else:
            os.pwrite(self._fd, lines, self._end)
        self._end = stop

    def forget(self) -> None:
        """All that was noted is in the ledger now."""
        if self._end > _REGION:
            os.ftruncate(self._fd, _REGION)
        used = min(self._end, _REGION)
        self._map[:used] = b"\n" * used
        self._end = 0

    def abandon(self) -> None:
        """Close the file without touching it: in a forked child it is the parent's."""
        self._map.close()
        os.close(self._fd)

    def end(self) -> None:
        """Delete the file; the row must be gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._map.close()
        os.close(self._fd)


def dead_leases(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yield name and journal of each lease whose process is gone; locked until one goes on.

    A lease is deleted by the consumer, after it has cleaned up, through ``os.unlink``.
    """
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield name, journal_of(path)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def journal_of(path: str) -> list[str]:
    """Return the names that a lease has noted; none if the lease is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return [noted for noted in file.read().split("\n") if is_entry_name(noted)]
    except FileNotFoundError:
        return []
