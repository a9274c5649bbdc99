"""Where an object is written before it is an entry: aside on the disk, or in memory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shardkit.errors import CacheError, CorruptError
from shardkit.storage.entries import Entry, stamp
from shardkit.storage.space import Space

__all__ = ["STEP", "AsideSink", "Fill", "NoRoomError", "Sink", "Wanted", "check_fits", "in_memory"]

STEP = 4 << 20
"""Most bytes reserved at a time for an object of unknown size."""


class Sink(Protocol):
    """Where ``fill`` writes an object."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        ...

    def restart(self) -> None:
        """Forget what was written: the next write is the first byte again."""
        ...


Fill = Callable[[Sink], None]
"""Writes a whole object, verified; may be called again after a failure on our side."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that is asked for."""

    name: str
    key: str
    fill: Fill
    size: int
    due: float | None = None
    mark: int = 0


class NoRoomError(Exception):
    """Everything in the cache is in use; the object must pass through memory."""


def check_fits(limit: int | None, key: str, num_bytes: int) -> None:
    """Raise ``CacheError`` if one object is larger than the limit."""
    if limit is not None and num_bytes > limit:
        raise CacheError(
            f"cache_limit={limit} bytes is smaller than one object: {key} needs {num_bytes}; raise "
            "cache_limit (to several objects for each worker)"
        )


class AsideSink:
    """A temporary that never holds more bytes than are reserved for it."""

    def __init__(self, space: Space, limit: int | None, wanted: Wanted) -> None:
        size = wanted.size
        self._space = space
        self._limit = limit
        self._key = wanted.key
        self._mark = wanted.mark
        self._expected = size
        self.size = 0
        self._reserved = 0
        self._fd = -1
        check_fits(limit, self._key, size)
        self._claim(max(size, 0))
        self.path = ""
        try:
            self._fd, self.path = space.make_aside()
            if size > STEP:  # find out now, not after the download
                os.posix_fallocate(self._fd, 0, size)
        except BaseException:
            self.discard()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, reserving more room first if the size was not known."""
        missing = self.size + len(data) - self._reserved
        if missing > 0:
            check_fits(self._limit, self._key, self.size + len(data))
            step = min(STEP, max(self._reserved, missing))  # doubles, up to a point
            if self._limit is not None:
                step = min(step, self._limit - self._reserved)
            if step <= missing or not self._may_claim(step):
                self._claim(missing)
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self.size += written
            view = view[written:]

    def restart(self) -> None:
        """Forget what was written; the room stays reserved."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.ftruncate(self._fd, 0)
        self.size = 0

    def finish(self) -> None:
        """Give back what was not needed, and stamp."""
        if self._expected not in (-1, self.size):
            raise CorruptError(
                f"{self._key} has {self.size} bytes, {self._expected} were expected: it was cut or "
                "replaced; verify the dataset"
            )
        self._give_back(self._reserved - self.size)
        when = stamp(self.size, self._mark)
        os.utime(self._fd, ns=(when, when))

    def pin(self) -> None:
        """Pin for whoever waits, before anybody can evict it."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Close the file: nobody waits for more than its bytes."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def detach(self) -> int:
        """Return the open file; it and its room belong to the entry now."""
        fd, self._fd = self._fd, -1
        return fd

    def discard(self) -> None:
        """Delete the temporary and give its room back; a published one is left alone."""
        if self._fd >= 0:
            self.close()
        if self.path and not os.path.lexists(self.path):
            return  # it is an entry now, and so is its room
        if self.path:
            os.unlink(self.path)
        self._give_back(self._reserved)

    def _claim(self, num_bytes: int) -> None:
        if not self._may_claim(num_bytes):
            raise NoRoomError

    def _may_claim(self, num_bytes: int) -> bool:
        if num_bytes and not self._space.reserve(num_bytes):
            return False
        self._reserved += num_bytes
        return True

    def _give_back(self, num_bytes: int) -> None:
        if num_bytes:
            self._reserved -= num_bytes
            self._space.give_back(num_bytes)


class _MemorySink:
    """An anonymous file in memory, for what finds no room on the disk."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("shardkit", os.MFD_CLOEXEC)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def restart(self) -> None:
        os.lseek(self.fd, 0, os.SEEK_SET)
        os.ftruncate(self.fd, 0)


def in_memory(key: str, fill: Fill, size: int) -> Entry:
    """Return an object as an anonymous file in memory, for what finds no room or has no cache."""
    sink = _MemorySink()
    try:
        fill(sink)
        found = os.fstat(sink.fd).st_size
        if size not in (-1, found):
            raise CorruptError(f"{key} has {found} bytes, {size} were expected")
    except BaseException:
        os.close(sink.fd)
        raise
    return Entry(sink.fd, f"/proc/self/fd/{sink.fd}", found, is_cached=False)
