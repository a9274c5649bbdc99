"""Where small entries lie: one table that all processes of a cache map, from name to place.

A set-associative table in a file: a name's low bits choose one of ``num_sets`` sets, in which it
may take any of 16 slots. A reader takes no lock and makes no system call; what it reads while
somebody writes may be a blend of two places, and is proved by the digest of the bytes that lie
there, which depends on the name. Writers lock the file. When a set is full, a table twice as large
takes the file's name, in which every slot keeps its column; processes that map the old one see its
mark.

Names are known by their 32 hex digits; the ext that may follow is not in the table.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from shardkit.storage.quick_calls import try_flock, unlock

__all__ = ["Place", "Places", "digest_of", "remove_litter"]

logger = logging.getLogger(__name__)

_MAGIC = 0x31_54_4B_53
_HEAD = struct.Struct("<QQQ")
_HEAD_SIZE = 4096
_OLD_AT = 16
_WAYS = 16
_NAMES = 16 * _WAYS
_PLACE = struct.Struct("<QQIIQQQ")
_PLACES = np.dtype("<u8, <u8, <u4, <u4, <u8, <u8, <u8")
_ASKED = struct.Struct("<Q")
_SET_SIZE = _NAMES + _PLACE.size * _WAYS
_FIRST_SETS = 256
_EMPTY = bytes(16)
_LITTER_S = 60.0


class Place(NamedTuple):
    """Where the bytes of a small entry lie, and how to know them.

    Attributes:
        lease: number of the lease whose process wrote the segment.
        segment: number of the segment among that lease's.
        start: byte of the segment.
        size: bytes.
        digest: see ``digest_of``.
        mark: of the object's version, see ``entries.mark_of``.
        asked_ns: when it was published, or the far end last asked about it.
    """

    lease: int
    segment: int
    start: int
    size: int
    digest: int
    mark: int
    asked_ns: int

    @property
    def file(self) -> str:
        """The name of its segment's file."""
        return f"{self.lease:016x}-{self.segment}"

    def is_same(self, other: Place) -> bool:
        """Is it the same but for when it was asked about?"""
        return self[:-1] == other[:-1]


def digest_of(name: str, data: bytes) -> int:
    """Return a digest of an entry's bytes that no other entry's bytes have."""
    return xxh3_64_intdigest(data, int(name[:16], 16))


class _Table:
    """A mapped file. Closed when nobody uses it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        size = os.fstat(fd).st_size
        if size < _HEAD_SIZE:
            raise ValueError(size)
        self.map = mmap.mmap(fd, size)
        magic, num_sets, _ = _HEAD.unpack_from(self.map)
        self.num_sets: int = num_sets
        if magic != _MAGIC or size != _HEAD_SIZE + self.num_sets * _SET_SIZE:
            raise ValueError(size)

    def __del__(self) -> None:
        os.close(self.fd)

    def base(self, key: bytes) -> int:
        return _HEAD_SIZE + (int.from_bytes(key[8:], "little") & (self.num_sets - 1)) * _SET_SIZE

    def slot(self, base: int, key: bytes) -> int:
        """Return the slot of a key in its set, -1 none."""
        found = self.map.find(key, base, base + _NAMES)
        while found >= 0 and (found - base) % 16:
            found = self.map.find(key, found + 1, base + _NAMES)
        return (found - base) // 16 if found >= 0 else -1

    def set_name(self, base: int, slot: int, key: bytes) -> None:
        self.map[base + 16 * slot : base + 16 * slot + 16] = key


class Places:
    """The table of one cache folder, made if there is none. Thread-safe.

    Mutable state: the table that is mapped now, replaced under the lock.

    Attributes:
        is_new: there was none, or none that could be read: it was made, and is to be filled.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.is_new = False
        self._table = self._opened()

    def find(self, name: str) -> Place | None:
        """Return the place of an entry, or None."""
        table = self._table
        if table.map[_OLD_AT]:
            with self._lock:
                table = self._current()
        key = bytes.fromhex(name[:32])
        base = table.base(key)
        slot = table.slot(base, key)
        if slot < 0:
            return None
        at = base + _NAMES + slot * _PLACE.size
        return Place._make(_PLACE.unpack_from(table.map, at))

    def put(self, places: Iterable[tuple[str, Place]]) -> None:
        """Make entries findable, all of whose bytes are written."""
        with self._alone():
            for name, place in places:
                key = bytes.fromhex(name[:32])
                slot, is_taken = self._slot_for(key)
                table = self._table
                base = table.base(key)
                if is_taken:
                    table.set_name(base, slot, _EMPTY)
                _PLACE.pack_into(table.map, base + _NAMES + slot * _PLACE.size, *place)
                table.set_name(base, slot, key)

    def remove(self, names: Iterable[str]) -> None:
        """Let entries be found no more."""
        with self._alone():
            table = self._table
            for name in names:
                key = bytes.fromhex(name[:32])
                base = table.base(key)
                slot = table.slot(base, key)
                if slot >= 0:
                    table.set_name(base, slot, _EMPTY)

    def behind(self, lease: int, ends: Mapping[int, int]) -> list[tuple[str, Place]]:
        """Return what the segments of a lease hold from their ends on; of one not named, all."""
        found = []
        with self._alone():
            table = self._table
            sets = np.frombuffer(table.map, np.uint8, offset=_HEAD_SIZE)
            sets = sets.reshape(table.num_sets, _SET_SIZE)
            places = sets[:, _NAMES:].copy().view(_PLACES)
            for number, slot in np.argwhere(places["f0"] == lease).tolist():
                place = Place(*places[number, slot].tolist())
                name = sets[number, 16 * slot : 16 * slot + 16].tobytes()
                if name != _EMPTY and place.start >= ends.get(place.segment, 0):
                    found.append((name.hex(), place))
        return found

    def note_asked(self, name: str, place: Place) -> None:
        """Note that the far end was asked about an entry just now, if it still lies there."""
        with self._alone():
            if self.find(name) == place:
                table, key = self._table, bytes.fromhex(name[:32])
                base = table.base(key)
                at = base + _NAMES + table.slot(base, key) * _PLACE.size
                _ASKED.pack_into(table.map, at + _PLACE.size - _ASKED.size, time.time_ns())

    def is_lost(self) -> bool:
        """Was the file deleted or replaced by somebody else's?"""
        with self._lock:
            try:
                return not os.path.samestat(os.stat(self._path), os.fstat(self._current().fd))
            except (FileNotFoundError, ValueError):
                return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the table that is current, against threads and processes."""
        with self._lock:
            _lock(self._current().fd)
            while self._table.map[_OLD_AT]:  # somebody made a larger one while we waited
                unlock(self._table.fd)
                _lock(self._current().fd)
            try:
                yield
            finally:
                unlock(self._table.fd)

    def _current(self) -> _Table:
        """Under the lock: the table in use, mapped anew if another took its place."""
        while self._table.map[_OLD_AT]:
            self._table = self._opened()
        return self._table

    def _opened(self) -> _Table:
        try:
            return _open(self._path)
        except (FileNotFoundError, ValueError):
            _replace(self._path, _make(self._path, _FIRST_SETS))
            self.is_new = True
            return _open(self._path)

    def _slot_for(self, key: bytes) -> tuple[int, bool]:
        """Return the slot to write a key into, and whether it is taken; the table may grow."""
        while True:
            base = self._table.base(key)
            slot = self._table.slot(base, key)
            if slot >= 0:
                return slot, True
            slot = self._table.slot(base, _EMPTY)
            if slot >= 0:
                return slot, False
            try:
                self._grow()
            except OSError as error:
                logger.warning("the cache's table of small entries can't grow: %s", error)
                return key[
                    0
                ] % _WAYS, True  # who is there is found no more, and goes as the coldest

    def _grow(self) -> None:
        """Put a table twice as large in this one's place; we hold both until the end."""
        old = self._table
        num_sets = old.num_sets
        sets = np.frombuffer(old.map, np.uint8, offset=_HEAD_SIZE).reshape(num_sets, _SET_SIZE)
        names = sets[:, :_NAMES].copy().view("<u8").reshape(num_sets, _WAYS, 2)
        goes_up = (names[:, :, 1] & np.uint64(num_sets)) != 0
        temporary = _make(self._path, 2 * num_sets)
        new = _open(temporary)
        _lock(new.fd)
        halves = np.frombuffer(new.map, np.uint8, offset=_HEAD_SIZE).reshape(2, num_sets, _SET_SIZE)
        for half, leaves in ((halves[0], goes_up), (halves[1], ~goes_up)):
            half[:] = sets
            kept = names.copy()
            kept[leaves] = 0
            half[:, :_NAMES] = kept.view(np.uint8).reshape(num_sets, _NAMES)
        os.rename(temporary, self._path)
        old.map[_OLD_AT] = 1
        unlock(old.fd)
        self._table = new


def _lock(fd: int) -> None:
    if not try_flock(fd):
        fcntl.flock(fd, fcntl.LOCK_EX)


def _open(path: str) -> _Table:
    """Map a table.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none of ours, or was cut.
    """
    return _Table(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def remove_litter(path: str) -> None:
    """Delete tables that were made for ``path`` and never got its name."""
    folder, name = os.path.split(path)
    for found in os.listdir(folder):
        litter = os.path.join(folder, found)
        with contextlib.suppress(FileNotFoundError):
            if found.startswith(f"{name}.") and os.path.getmtime(litter) < time.time() - _LITTER_S:
                os.unlink(litter)


def _make(path: str, num_sets: int) -> str:
    """Make an empty table beside ``path``; return where.

    All its blocks are taken now: a full disk must not show itself in the middle of a store to it.
    """
    temporary = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.posix_fallocate(fd, 0, _HEAD_SIZE + num_sets * _SET_SIZE)
        os.pwrite(fd, _HEAD.pack(_MAGIC, num_sets, 0), 0)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def _replace(path: str, temporary: str) -> None:
    """Give a new table its name, unless another process was quicker with a sound one."""
    turn = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError, ValueError):
            _open(path)
            os.unlink(temporary)
            return
        os.rename(temporary, path)
    finally:
        os.close(turn)
