"""Small entries in large files: each process appends to segments of its own, all read them.

A file of its own costs a small entry more than its bytes do: making, naming and deleting it are
three transactions of the filesystem. So objects in memory are appended to a segment, several in one
call; where each lies is told by a table that all processes map (``places.py``). A reader takes no
lock: it copies the bytes and proves them by their digest, so that whatever was let go, overwritten
or damaged meanwhile is as if it was not there. An entry begins at a block of the disk, and its
blocks are given back by punching a hole; a segment in which nothing is left is deleted.

A segment belongs to the lease whose number its name begins with. Its owner holds it locked while it
grows, by a lock that ends with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from shardkit.storage.entries import StaleError
from shardkit.storage.folder import Folder
from shardkit.storage.places import Place, Places, digest_of

__all__ = ["MAX_PACKED", "NoHolesError", "Packed", "Segments"]

MAX_PACKED = 1 << 20
"""Larger objects are files: at this size, making one costs little against writing it."""

_SEGMENT = 64 << 20
_PARTS = 4
"""A segment also ends at this part of the limit: ``ls`` shows how long it is, holes and all."""

_BLOCK = 4096
_ZEROS = bytes(_BLOCK)
_MAX_OPEN = 64
_PUNCH = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE of linux/falloc.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class NoHolesError(Exception):
    """This filesystem can't give back a part of a file, so small objects are files of their own."""


class Packed(NamedTuple):
    """An object in memory that is to be an entry of a segment."""

    name: str
    key: str
    data: bytes
    mark: int
    digest: int


class _File:
    """An open segment; closed when its last reader has gone."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Segments:
    """The segments of one cache folder. Reading is thread-safe; one thread at a time appends.

    Mutable state: the segment that grows and where it ends (of the thread that appends); open
    segments of whomever (under a lock).
    """

    def __init__(self, folder: Folder, lease: str, limit: int | None = None) -> None:
        self._folder = folder
        self._longest = _SEGMENT
        if limit is not None:
            self._longest = min(_SEGMENT, max(limit // _PARTS, MAX_PACKED))
        self._lease = int(lease, 16)
        self.places = Places(folder.places)
        self._number = -1
        self._fd = -1
        self._end = 0
        self._lock = threading.Lock()
        self._open: dict[tuple[int, int], _File] = {}
        self._sealed: list[tuple[str, int]] = []  # locked until all that is in them is recorded
        self.can_append = True  # False once the filesystem was seen to punch no holes

    # -- reading ------------------------------------------------------------------------------

    def read(self, name: str, since_ns: int = 0) -> bytes | None:
        """Return the bytes of an entry; ``None`` if there is none.

        Raises:
            ValueError: they are not what was written there.
            StaleError: it was published, or last asked about, before ``since_ns``.
        """
        place = self.places.find(name)
        while place is not None:
            if place.asked_ns < since_ns:
                raise StaleError(name)
            data = self._bytes_at(place)
            if data is not None and digest_of(name, data) == place.digest:
                return data
            found, place = place, self.places.find(name)
            if found == place:
                raise ValueError(name)
        return None

    def is_sound(self, name: str, place: Place) -> bool:
        """Do the bytes of an entry lie there as they were written?"""
        with contextlib.suppress(FileNotFoundError):
            file = _File(self._folder.segment(place.file))
            data = os.pread(file.fd, place.size, place.start)
            return len(data) == place.size and digest_of(name, data) == place.digest
        return False

    def _bytes_at(self, place: Place) -> bytes | None:
        try:
            file = self._opened(place)
        except FileNotFoundError:
            return None
        data = os.pread(file.fd, place.size, place.start)
        return data if len(data) == place.size else None

    def _opened(self, place: Place) -> _File:
        number = place.lease, place.segment
        file = self._open.get(number)
        if file is None:
            file = _File(self._folder.segment(place.file))
            with self._lock:
                if len(self._open) >= _MAX_OPEN:
                    del self._open[next(iter(self._open))]
                self._open[number] = file
        return file

    # -- writing ------------------------------------------------------------------------------

    def append(self, objects: Sequence[Packed]) -> list[Place]:
        """Write objects, and make them findable.

        Raises:
            OSError: the disk is full; nothing of it is kept.
            NoHolesError: not on this filesystem.
        """
        if self._fd < 0 or self._end >= self._longest or os.fstat(self._fd).st_nlink == 0:
            self._begin()
        now_ns = time.time_ns()
        places, parts, end = [], [], self._end
        for packed in objects:
            _, _, data, mark, digest = packed
            size = len(data)
            places.append(Place(self._lease, self._number, end, size, digest, mark, now_ns))
            padding = -size % _BLOCK
            parts += [data, _ZEROS[:padding]]
            end += size + padding
        try:
            _write_all(self._fd, parts, self._end)
            self.places.put(zip((packed.name for packed in objects), places, strict=True))
        except BaseException:
            os.ftruncate(self._fd, self._end)
            raise
        self._end = end
        return places

    def take_sealed(self) -> list[str]:
        """Return the segments that have ended since the last call: all in them is recorded now."""
        sealed, self._sealed = self._sealed, []
        for _, fd in sealed:
            os.close(fd)
        return [file for file, _ in sealed]

    def are_lost(self) -> bool:
        """Was the table made anew? Then all that is recorded must be found again in it."""
        lost = self.places.is_lost()
        if lost:
            self.places = Places(self._folder.places)
        is_new, self.places.is_new = self.places.is_new, False
        return lost or is_new

    def seal(self) -> None:
        """End the segment that grows."""
        if self._fd >= 0:
            self._sealed.append((f"{self._lease:016x}-{self._number}", self._fd))
            self._fd = -1

    def _begin(self) -> None:
        if not self.can_append:
            raise NoHolesError
        self.seal()
        self._number += 1
        path = self._folder.segment(f"{self._lease:016x}-{self._number}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd, self._end = os.open(path, flags, 0o666), 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            _punch(self._fd, 0, _BLOCK)
        except OSError as error:
            self.can_append = False
            self.seal()
            raise NoHolesError from error

    # -- letting go ---------------------------------------------------------------------------

    def free(self, places: Iterable[Place]) -> None:
        """Give the blocks of entries back that are found no more."""
        for file, there in groupby(sorted(places), key=lambda place: place.file):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self._folder.segment(file), os.O_RDWR | os.O_CLOEXEC)
                try:
                    for start, stop in _joined(there):
                        _punch(fd, start, stop)
                finally:
                    os.close(fd)

    def remove(self, file: str) -> bool:
        """Delete a segment in which nothing is left, unless it still grows; is it gone?

        Cut first: its blocks are free at once, though some process may have it open.
        """
        path = self._folder.segment(file)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.unlink(path)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        lease, _, number = file.partition("-")
        with self._lock:
            self._open.pop((int(lease, 16), int(number)), None)
        return True

    def cut(self, file: str, end: int) -> None:
        """Give back what lies behind ``end`` of a segment whose owner is dead."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(path := self._folder.segment(file)) > end:
                os.truncate(path, end)

    def files(self, lease: str | None = None) -> list[str]:
        """Return the names of all segments, or of a lease's."""
        found = os.listdir(self._folder.segments)
        return [name for name in found if _is_segment(name) and name.startswith(lease or "")]

    def close(self) -> None:
        """Close what is open; all is recorded, and nothing is appended any more."""
        self.can_append = False
        self.seal()
        self.take_sealed()
        with self._lock:
            self._open.clear()

    def abandon(self) -> None:
        """In a forked child: leave what grows to the parent."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self.close()


def _write_all(fd: int, parts: list[bytes], start: int) -> None:
    written, size = os.pwritev(fd, parts, start), sum(map(len, parts))
    if written < size:  # next the kernel says why
        rest = memoryview(b"".join(parts))
        while written < size:
            written += os.pwrite(fd, rest[written:], start + written)


def _joined(places: Iterable[Place]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of blocks of places sorted by start, neighbours as one."""
    first = last = 0
    for place in places:
        stop = place.start + place.size + -place.size % _BLOCK
        if place.start > last:
            if last > first:
                yield first, last
            first = place.start
        last = max(last, stop)
    if last > first:
        yield first, last


def _punch(fd: int, start: int, stop: int) -> None:
    if _libc.fallocate(fd, _PUNCH, start, stop - start):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _is_segment(name: str) -> bool:
    lease, _, number = name.partition("-")
    return len(lease) == 16 and number.isdecimal()
