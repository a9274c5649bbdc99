"""Space: the one place where room in the cache's folder is granted, given back and taken away.

State, all under one lock: the lease of this process (bytes granted), how many of them are in use
(temporaries, and entries published but not yet recorded), entries waiting to be recorded, evicted
ones waiting to be forgotten, uses waiting to be flushed.

The order of steps makes the sum of leases and rows at every instant at least what lies on the disk:
reserve, write, journal, rename, record; journal, unlink or hide, punch, forget. What is appended to
a segment needs no journal: the segment is its lease's, and what was not recorded is cut off it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Sequence

from shardkit.errors import CacheError
from shardkit.storage.asides import Asides
from shardkit.storage.audit import Holdings, differences, is_changed, let_go
from shardkit.storage.entries import remove_unpinned
from shardkit.storage.folder import Folder
from shardkit.storage.leases import Lease
from shardkit.storage.ledger import Ledger, Row, room_of
from shardkit.storage.mending import check_boot, drop, find_again, name_anew, reap
from shardkit.storage.places import Place, remove_litter
from shardkit.storage.policies import POLICIES
from shardkit.storage.segments import Packed, Segments

__all__ = ["Space"]

logger = logging.getLogger(__name__)

_QUANTUM = 32 << 20
"""Bytes a lease grows by at least, so that small entries do not cost a transaction each."""

_SHARES = 8
"""Objects that are kept together never evict more than this part of the limit at once."""

_SHARE = 256
"""A lease keeps at most this part of the limit in idle bytes; small limits are kept exactly."""

_BATCH = 200
"""Rows a transaction: 4,000 starved SQLite's checkpoints (the log grew to 226 MB), 200 did not."""

_FLUSH_S = 1.0
_USES_S = 5.0
_PACE_S, _IDLE_PACE_S = 0.2, 1.0
"""Seconds between two batches of uses, under a limit and without one: then only a full disk ever
asks what was used last."""

_MAX_USES = 20_000


class Space:
    """Room under a limit, shared with every other process of the folder. Thread-safe."""

    def __init__(self, folder: Folder, limit: int | None, policy: str) -> None:
        self._folder = folder
        self._limit = limit
        self._queries = POLICIES[policy]
        self._lock = threading.Lock()
        self._ledger = Ledger(folder.ledger)
        self._lease = Lease(folder.leases)
        self._granted = 0
        self._used = 0
        self._asides = Asides(folder.asides, self._lease.name)
        self.segments = Segments(folder, self._lease.name, limit)
        self._held = Holdings(folder, self._ledger, self.segments)
        self._unrecorded: list[Row] = []
        self._unrecorded_bytes = 0
        self._gone: dict[str, None] = {}
        self._ended: set[str] = set()
        self._is_closed = False
        self._uses: dict[str, tuple[float, float | None]] = {}
        self._uses_flushed_at = time.monotonic()
        self._flushed_at = time.monotonic()
        idle = _QUANTUM if limit is None else limit // _SHARE
        self._quantum = min(_QUANTUM, idle)
        self._pace_s = _IDLE_PACE_S if limit is None else _PACE_S
        with self._lock, self._ledger.transaction():
            if self.segments.are_lost():
                find_again(self._held)
            remove_litter(folder.places)
            self._reap()
            name_anew(self._held)
            check_boot(self._held, limit)

    # -- room ---------------------------------------------------------------------------------

    def reserve(self, num_bytes: int) -> bool:
        """Take room for ``num_bytes``, evicting what is cold; False if all the rest is in use."""
        with self._lock:
            if self._is_closed:
                return False
            short = num_bytes - (self._granted - self._used)
            if short > 0 and not self._grow(short):
                return False
            self._used += num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """Return room that was reserved and not filled."""
        with self._lock:
            if self._is_closed:
                return
            self._used -= num_bytes
            idle = self._granted - self._used
            if idle > self._quantum and not self._unrecorded:
                self._shrink(idle - self._quantum)

    def make_disk_room(self, num_bytes: int) -> bool:
        """The disk is full: evict at least so many bytes whatever the limit says; did any go?"""
        with self._lock:
            return self._make_disk_room(num_bytes) > 0

    # -- entries ------------------------------------------------------------------------------

    def make_aside(self) -> tuple[int, str]:
        """Make a temporary of this process; return it, open, and its path."""
        with self._lock:
            return self._asides.make()

    def keep(self, objects: Sequence[Packed]) -> bool:
        """Make packed entries of objects in memory, all or none; False if there is no room.

        One thread at a time.

        Raises:
            OSError: the disk is full.
            NoHolesError: this filesystem can't have packed entries.
        """
        num_bytes = sum(len(packed.data) for packed in objects)
        if len(objects) > 1 and self._limit is not None and num_bytes > self._limit // _SHARES:
            return False
        if not self.reserve(num_bytes):
            return False
        places: list[Place] = []
        published = False
        try:
            places = self.segments.append(objects)
            now = time.time()
            with self._lock:
                if self._is_closed:
                    return False
                for packed in objects:
                    self._gone.pop(packed.name, None)
                self._unrecorded += [
                    Row(packed.name, packed.key, place.size, now, now, place=place)
                    for packed, place in zip(objects, places, strict=True)
                ]
                self._unrecorded_bytes += num_bytes
                published = True
                self._flush_if_due()
        finally:
            if not published:
                self.segments.places.remove(packed.name for packed in objects)
                self.segments.free(places)
                self.give_back(num_bytes)
        return True

    def publish(self, aside: str, name: str, key: str, size: int, due: float | None) -> None:
        """Make a complete, stamped temporary of reserved size an entry."""
        now = time.time()
        row = Row(name, key, size, now, now, due, None if due is None else self._lease.name)
        with self._lock:
            if self._is_closed:
                raise CacheError(f"the cache was closed while {key} was being fetched")
            self._lease.note([name])
            self.segments.places.remove([name])
            self._folder.move_in(aside, name)
            self._gone.pop(name, None)
            self._unrecorded.append(row)
            self._unrecorded_bytes += size
            self._flush_if_due()

    def used(self, name: str, due: float | None) -> None:
        """Note a hit, in memory; now and then such notes go to the ledger together.

        A batch costs 2 ms, so that a note for each of many quick hits would cost as much as the
        hits: what there is no time for is forgotten, and others are noted in its place.
        """
        self._uses[name] = (time.time(), due)
        waited = time.monotonic() - self._uses_flushed_at
        due_now = waited > _USES_S or (waited > self._pace_s and len(self._uses) >= _BATCH)
        if due_now and self._lock.acquire(blocking=False):
            try:
                if not self._is_closed:
                    self._flush_uses()
            finally:
                self._lock.release()

    def drop(self, name: str) -> bool:
        """Delete an entry that is damaged; who has it open keeps what they have. Was it one?"""
        with self._lock:
            if self._is_closed:
                return False
            known = any(row.name == name for row in self._unrecorded)
            known = known or self._ledger.row(name) is not None
            self._lease.note([name])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder.entry(name))
                known = True
            self.segments.places.remove([name])
            self._gone[name] = None
            self._flush()
        return known

    def clear(self) -> int:
        """Delete every entry that nobody has open; return how many bytes went."""
        with self._lock:
            self._flush()
            with self._ledger.transaction():
                num_bytes = self._evict_files(None)
                self._record()
            self._settle()
        return num_bytes

    # -- ledger facts -------------------------------------------------------------------------

    def is_verified(self, path: str, identity: str) -> bool:
        """Was this local file, as it is now, verified on this node before?"""
        with self._lock:
            return self._ledger.verified(path) == identity

    def note_verified(self, path: str, identity: str) -> None:
        """Record that a local file was verified."""
        with self._lock, self._ledger.transaction():
            self._ledger.note_verified(path, identity)

    def rows(self) -> list[Row]:
        """Return all entries, what this process has not yet recorded included."""
        with self._lock:
            self._flush()
            return list(self._ledger.rows())

    # -- upkeep -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Record what is only in memory."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Record everything, give all room back, end the lease."""
        with self._lock:
            self._is_closed = True
            self.segments.seal()
            with self._ledger.transaction():
                self._record()
                self._ledger.drop_lease(self._lease.name)
            self.segments.close()
            self._asides.remove_empty()
            self._lease.end()
            self._ledger.close()

    def abandon(self) -> None:
        """Leave everything to the parent: called in a forked child, which then starts anew."""
        self._lease.abandon()
        self.segments.abandon()

    def rest_for_fork(self) -> None:
        """Hold still with the ledger closed; ``go_on_after_fork`` ends it."""
        self._lock.acquire()
        self._ledger.close()

    def go_on_after_fork(self) -> None:
        """Go on in the parent; the ledger opens by itself."""
        self._lock.release()

    def repair(self) -> list[str]:
        """Make ledger and disk agree; return what was wrong. For ``check`` and new boots."""
        with self._lock:
            self._flush()
            with self._ledger.transaction():
                self._reap()
                found = differences(self._held, self._limit, mend=True)
        return found + self._changed(mend=True)

    def check(self) -> list[str]:
        """Return every disagreement of ledger, disk and limit; changes nothing."""
        with self._lock:
            self._flush()
            with self._ledger.transaction():
                found = differences(self._held, self._limit, mend=False)
        return found + self._changed(mend=False)

    def _changed(self, *, mend: bool) -> list[str]:
        """Prove every packed entry, while others go on; one that seems changed is looked at again.

        Returns what is wrong.
        """
        with self._lock:
            rows = [row for row in self._ledger.rows() if row.place is not None]
        found = []
        for row in rows:
            if row.place is None or self.segments.is_sound(row.name, row.place):
                continue
            with self._lock, self._ledger.transaction():
                if is_changed(self._held, row):
                    found.append(f"entry {row.name} ({row.key}) was changed since it was published")
                    if mend:
                        drop(self._held, row)
        return found

    # -- under the lock -----------------------------------------------------------------------

    def _grow(self, short: int) -> bool:
        """Grow the lease by what is short, if need be at the cost of the coldest entries."""
        try:
            grown = self._try_to_grow(short)
        except CacheError as error:
            if error.errno != errno.ENOSPC or not self._make_disk_room(short):
                raise
            grown = self._try_to_grow(short)
        self._granted += grown
        return grown >= short

    def _try_to_grow(self, short: int) -> int:
        with self._ledger.transaction():
            self._record()  # first, so that what we published ourselves can be evicted
            asked = self._room_for(short)
            if asked >= short:
                self._ledger.grow_lease(self._lease.name, asked)
        self._settle()
        return asked if asked >= short else 0

    def _room_for(self, short: int) -> int:
        """Return how much the lease may grow by: at least ``short``, or that can't be."""
        generous = max(short, self._quantum)
        if self._limit is None:
            return generous
        free = self._limit - self._ledger.total_bytes()
        if free < generous:
            self._reap()
            free = self._limit - self._ledger.total_bytes()
        if free < generous:
            self._evict_files(generous - free)
            self._forget_gone()
            free = self._limit - self._ledger.total_bytes()
        return min(free, generous)

    def _make_disk_room(self, num_bytes: int) -> int:
        try:
            self._flush()  # what we published ourselves can then be evicted like all else
        except CacheError as error:
            if error.errno != errno.ENOSPC:
                raise
            if gone := self._unpublish(num_bytes):
                return gone
        with self._ledger.transaction():
            gone = self._evict_files(num_bytes)
            self._record()
        self._settle()
        return gone

    def _unpublish(self, num_bytes: int) -> int:
        """Delete entries that the full disk doesn't even let us record; return their bytes."""
        gone = 0
        for row in list(self._unrecorded):
            if gone >= num_bytes:
                break
            if row.place is not None:
                self.segments.places.remove([row.name])
                self.segments.free([row.place])
            elif not remove_unpinned(self._folder.entry(row.name)):
                continue
            gone += row.size
            self._unrecorded.remove(row)
        self._unrecorded_bytes -= gone
        self._used -= gone
        return gone

    def _evict_files(self, num_bytes: int | None) -> int:
        """Within a transaction: unlink unpinned entries, coldest first, up to so much room.

        ``None`` is all. Their rows go with the next ``_forget_gone``. Returns their bytes.
        """
        held, num_held = self._ledger.counted()
        enough = None if num_bytes is None else room_of(held, num_held) - num_bytes
        gone = num_gone = 0
        packed: list[str] = []
        for query in self._queries:
            for name, size, is_packed in self._ledger.coldest(query):
                if enough is not None and room_of(held - gone, num_held - num_gone) <= enough:
                    break
                if name in self._gone:
                    continue
                self._lease.note([name])
                if is_packed:
                    packed.append(name)
                elif not remove_unpinned(self._folder.entry(name)):
                    continue
                self._gone[name] = None
                gone += size
                num_gone += 1
        if packed:
            self.segments.places.remove(packed)
        return gone

    def _record(self) -> None:
        """Within a transaction: published entries become rows, evicted ones go, uses are noted."""
        left: list[Place] = []
        if self._unrecorded:
            rows = []
            for row in self._unrecorded:
                if row.place is not None and not self._is_still(row.name, row.place):
                    left.append(row.place)
                else:
                    rows.append(row)
            left += self._ledger.add(rows)
            self._ledger.set_lease(self._lease.name, self._granted - self._unrecorded_bytes)
        self._forget_gone(left)
        if self._unrecorded:
            self._make_up()
        self._touch()

    def _make_up(self) -> None:
        """Within a transaction: evict for what new entries take besides their bytes."""
        over = 0 if self._limit is None else self._ledger.total_bytes() - self._limit
        if over > 0:
            self._evict_files(over)
            self._forget_gone()

    def _is_still(self, name: str, place: Place) -> bool:
        """Does an entry still lie there, or was it replaced meanwhile, here or elsewhere?"""
        found = self.segments.places.find(name)
        return found is not None and found.is_same(place)

    def _forget_gone(self, left: Sequence[Place] = ()) -> None:
        """Within a transaction, after recording: free what evicted entries took, then their rows.

        A segment in which no row is left goes as a whole.
        """
        places = [*left, *(self._ledger.remove(self._gone) if self._gone else ())]
        self._ended.update(self.segments.take_sealed())
        let_go(self._held, places, self._ended)

    def _touch(self) -> None:
        """Within a transaction: write some of the uses down."""
        names = list(self._uses)[:_BATCH]
        uses = [(name, *self._uses.pop(name)) for name in names]
        self._ledger.touch(uses, self._lease.name)
        self._uses_flushed_at = time.monotonic()

    def _settle(self) -> None:
        """After the transaction that recorded: the lease is smaller, the journal is empty."""
        self._granted -= self._unrecorded_bytes
        self._used -= self._unrecorded_bytes
        self._unrecorded = []
        self._unrecorded_bytes = 0
        self._gone = {}
        self._ended.clear()
        self._lease.forget()
        self._flushed_at = time.monotonic()

    def _flush(self) -> None:
        with self._ledger.transaction():
            self._record()
            if self.segments.are_lost():
                find_again(self._held)
        self._settle()

    def _flush_if_due(self) -> None:
        """Record now and then; if the ledger can't be written, the lease still holds the room."""
        late = time.monotonic() - self._flushed_at > _FLUSH_S
        many = len(self._unrecorded) >= _BATCH or self._unrecorded_bytes > self._quantum
        if not (late or many):
            return
        try:
            self._flush()
        except OSError as error:
            logger.warning("the ledger is put off: %s", error)
            self._flushed_at = time.monotonic()

    def _flush_uses(self) -> None:
        """Record hits if nobody else is writing; if somebody is, they can wait."""
        try:
            with self._ledger.short_wait(0.0), self._ledger.transaction():
                self._touch()
        except CacheError as error:
            logger.debug("uses are not noted now: %s", error)
        if len(self._uses) > _MAX_USES:
            self._uses.clear()

    def _shrink(self, num_bytes: int) -> None:
        with self._ledger.transaction():
            self._ledger.grow_lease(self._lease.name, -num_bytes)
        self._granted -= num_bytes

    def _reap(self) -> None:
        """Within a transaction: clean up after processes that died."""
        reap(self._held)
