"""Entries as files: how one is named, stamped, pinned, mapped and read. No ledger here.

A published entry carries a stamp: its modification time is a fixed function of its size and, within
the second, of its version at the far end. Whoever writes into it, cuts it or copies it over changes
that time, so damage is seen by the ``fstat`` that a hit does anyway, with nothing looked up. Its
change time says when it was published, or last asked about. A pin is a shared ``flock`` on the open
file: it ends with the process. Evicting takes the exclusive lock, so what is in use stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
from types import TracebackType

from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from shardkit.storage.quick_calls import exists

__all__ = [
    "Entry",
    "StaleError",
    "entry_name",
    "is_entry_name",
    "is_sound",
    "is_version",
    "mark_of",
    "open_entry",
    "read_entry",
    "remove_unpinned",
    "stamp",
]

_HEX = frozenset("0123456789abcdef")
_S = 1_000_000_000
_LONGEST_EXT = 8
_STAMP_S = 946_684_800
"""2000-01-01: a stamp must never look like a time at which anybody writes a file now."""


class Entry:
    """An object as a local file, pinned until ``close``: what it maps stays, whatever is evicted.

    ``path`` is good while the entry is open. Threads may share an entry; one of them closes it.
    """

    __slots__ = ("_fd", "_map", "is_cached", "path", "size")

    def __init__(self, fd: int, path: str, size: int, *, is_cached: bool) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None
        self.path = path
        self.size = size
        self.is_cached = is_cached

    @property
    def data(self) -> memoryview:
        """The bytes, mapped read only."""
        if self._fd < 0:
            raise ValueError(f"entry {self.path} is closed")
        if self.size == 0:
            return memoryview(b"")
        if self._map is None:
            self._map = mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ)
        return memoryview(self._map)

    def fileno(self) -> int:
        """The open file, good until ``close``: for ``os.pread`` and for maps of one's own."""
        if self._fd < 0:
            raise ValueError(f"entry {self.path} is closed")
        return self._fd

    def close(self) -> None:
        """Unpin. Views that are still held stay valid: the kernel keeps what they map."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._map is not None:
            with contextlib.suppress(BufferError):  # somebody holds a view; freed with it
                self._map.close()
            self._map = None
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # also for children that inherited the file
        os.close(fd)

    def __enter__(self) -> Entry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Entry({self.path!r}, size={self.size}, is_cached={self.is_cached})"


def entry_name(key: str) -> str:
    """Return the file name of a key: its 128-bit hash, so that keys of any text never collide.

    And the ext of its URL, for libraries that ask a path what it is.
    """
    digest = xxh3_128_hexdigest(key.encode("utf-8", "surrogateescape"))
    url = key.partition("\n")[0]
    if "?" in url:
        url = url.partition("?")[0]
    _, dot, ext = url.rpartition(".")
    return digest + _suffix(ext) if dot else digest


@functools.lru_cache
def _suffix(ext: str) -> str:
    """Return what makes a file one of this ext; nothing where it is none. Every hit asks."""
    is_one = len(ext) <= _LONGEST_EXT and ext.isalnum() and ext.isascii()
    return f".{ext.lower()}" if is_one else ""


def is_entry_name(name: str) -> bool:
    """Could this file be ours?"""
    ext = name[33:]
    return (
        len(name) >= 32
        and _HEX.issuperset(name[:32])
        and (len(name) == 32 or (name[32:33] == "." and ext.isalnum() and ext.isascii()))
    )


def mark_of(version: str) -> int:
    """Return what an entry keeps of the object's version: 30 bits of its hash, 0 unknown."""
    return 1 + xxh3_64_intdigest(version.encode()) % 999_999_999 if version else 0


def stamp(size: int, mark: int = 0) -> int:
    """Return the modification time (ns) of a sound entry of ``size`` bytes.

    Args:
        size: bytes.
        mark: of its version when it was fetched, see ``mark_of``.
    """
    return (_STAMP_S + size % 200_000_000) * _S + mark


def is_sound(status: os.stat_result) -> bool:
    """Is the file as it was published?"""
    return status.st_mtime_ns // _S == _STAMP_S + status.st_size % 200_000_000


def is_version(status: os.stat_result, version: str) -> bool:
    """Is the entry of this version? Not where the version was unknown then, or is now."""
    return bool(version) and status.st_mtime_ns == stamp(status.st_size, mark_of(version))


def open_entry(path: str) -> Entry | None:
    """Pin the entry at ``path``; ``None`` if there is none, or it is being removed.

    Raises:
        ValueError: it is there, but was changed since it was published.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    status = os.fstat(fd)
    if status.st_nlink == 0:
        os.close(fd)
        return None
    if not is_sound(status):
        os.close(fd)
        raise ValueError(path)
    return Entry(fd, path, status.st_size, is_cached=True)


class StaleError(Exception):
    """The entry is older than it may be."""


def read_entry(path: str, since_ns: int = 0) -> bytes | None:
    """Return the bytes of an entry without pinning it; ``None`` if there is none.

    Raises:
        ValueError: it is there, but was changed since it was published.
        StaleError: it was published, or last asked about, before ``since_ns``: its change time.
    """
    if not exists(path):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not is_sound(status):
            raise ValueError(path)
        if status.st_ctime_ns < since_ns:
            raise StaleError(path)
        data = os.read(fd, status.st_size)
        while len(data) < status.st_size:
            more = os.read(fd, status.st_size - len(data))
            if not more:
                raise ValueError(path)
            data += more
        return data
    finally:
        os.close(fd)


def remove_unpinned(path: str) -> bool:
    """Delete the entry at ``path`` unless somebody has it open; was it (or is it) gone?"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(fd)
    return True
