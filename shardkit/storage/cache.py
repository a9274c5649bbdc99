"""The cache: one folder that all processes of a node share, under one hard byte limit.

An object is fetched at most once per residency however many ask (single flight), is written aside,
verified, stamped and renamed, and can be evicted only while nobody has it open. When everything is
in use, objects pass through memory instead. See ``docs/guarantees.md`` for what is promised, and
``space.py`` for why the limit holds at every instant.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from shardkit.errors import CacheError
from shardkit.format.sizes import parse_size, show_size
from shardkit.storage.boundary import store_error
from shardkit.storage.entries import (
    Entry,
    StaleError,
    entry_name,
    is_version,
    mark_of,
    open_entry,
    read_entry,
)
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.keeping import Job
from shardkit.storage.opened import Opened, close_with_process, dropped
from shardkit.storage.places import digest_of
from shardkit.storage.policies import Policy, check_policy
from shardkit.storage.quick_calls import exists
from shardkit.storage.segments import MAX_PACKED, Packed
from shardkit.storage.sinks import (
    AsideSink,
    Fill,
    NoRoomError,
    Sink,
    Wanted,
    check_fits,
    in_memory,
)

__all__ = [
    "Cache",
    "CacheStats",
    "CachedObject",
    "Fetched",
    "Fill",
    "Right",
    "Sink",
    "in_memory",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedObject:
    """An entry as ``Cache.entries`` lists it; times are seconds since 1970.

    Its bytes are ``size`` of the file ``path`` from byte ``start``.
    """

    key: str
    size: int
    created: float
    last_used: float
    path: str
    start: int


class Right(NamedTuple):
    """The sole right of all threads and processes to fetch an object, until it is used."""

    opened: Opened
    name: str
    key: str

    def give_up(self) -> None:
        """Let others fetch it."""
        self.opened.flights.release(self.name)


class Fetched(NamedTuple):
    """An object that was fetched, and who is to be told, once, when it is kept or why it is not."""

    right: Right
    data: bytes
    version: str
    tell: Callable[[Exception | None], None]


@dataclass(slots=True)
class CacheStats:
    """What this process asked of the cache so far (read it, don't write it)."""

    hits: int = 0
    misses: int = 0
    passed_through: int = 0
    damaged: int = 0


class Cache:
    """Objects by key, on local disk, shared by every process that names the same folder.

    Thread-safe. Picklable: a copy in another process opens the same folder. Opens on first use,
    and anew in a forked child.

    Args:
        folder: local folder; what is the cache's own lies in one sub-folder of it, nothing else
            is ever touched. ``~`` is expanded.
        limit: bytes, or a size like ``"200gb"``, that entries, temporaries and reservations of
            all processes together never exceed; ``None`` is unlimited. Give every job the same.
        policy: which entries go first: ``"next-use"`` (what is needed latest, where consumers say
            so; else least recently used) or ``"lru"``.

    Raises:
        ConfigError: limit or policy make no sense.
        CacheError: on first use, the folder lies on a network filesystem or can't be written.
    """

    def __init__(
        self,
        folder: str,
        limit: int | str | None = None,
        *,
        policy: Policy = "next-use",
    ) -> None:
        check_policy(policy)
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.limit = None if limit is None else parse_size(limit, "cache_limit")
        self.policy = policy
        self.stats = CacheStats()
        self._lock = threading.Lock()
        self._opened: Opened | None = None  # guarded by _lock
        start_anew_in_children(self)

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[str, int | None, Policy]]:
        return _make_cache, (self.folder, self.limit, self.policy)

    def rest_for_fork(self) -> None:
        """Before a fork: no transaction is under way, the ledger is closed."""
        self._lock.acquire()
        if self._opened is not None:
            self._opened.keeper.rest()
            self._opened.space.rest_for_fork()

    def go_on_after_fork(self) -> None:
        """After a fork, in the parent: go on."""
        if self._opened is not None:
            self._opened.space.go_on_after_fork()
            self._opened.keeper.go_on()
        self._lock.release()

    def forget_parent(self) -> None:
        """In a forked child: leave the parent's locks and ledger alone, open our own."""
        self._lock = threading.Lock()
        if self._opened is not None:
            self._end.detach()
            self._opened.abandon()
            self._opened = None

    # -- objects ------------------------------------------------------------------------------

    def open(
        self,
        key: str,
        fill: Fill,
        *,
        size: int = -1,
        due: float | None = None,
        cancelled: threading.Event | None = None,
        room: str = "or memory",
    ) -> Entry:
        """Return the object of ``key``, pinned; if it is not here, ``fill`` writes it.

        Args:
            key: names content for good: URL and version.
            fill: see ``Fill``; its exceptions reach the caller, and nothing is kept.
            size: bytes, if known; room is made before anything is fetched.
            due: when this consumer needs it after this use, on a scale of its own that grows.
            cancelled: stops waiting for another process that fetches the same object.
            room: ``"or memory"`` passes the object through memory if all room is in use,
                ``"or raise"`` raises ``BlockingIOError`` then.

        Raises:
            CacheError: the object is larger than the limit, or the disk is full of other things.
            CorruptError: ``fill`` wrote another number of bytes than ``size``.
        """
        opened = self._open()
        name = entry_name(key)
        if (entry := self._hit(opened, name, due)) is not None:
            return entry
        with opened.flights.alone(name, cancelled):
            if (entry := self._hit(opened, name, due, drop=True)) is not None:
                return entry
            try:
                if (entry := self._unpacked(opened, key, due)) is not None:
                    return entry
                entry = self._fetch(opened, Wanted(name, key, fill, size, due))
            except NoRoomError:
                if room == "or raise":
                    raise BlockingIOError(f"no room for {key}: everything is in use") from None
            else:
                self.stats.misses += 1
                return entry
        self.stats.misses += 1
        self.stats.passed_through += 1
        return in_memory(key, fill, size)

    def get(
        self,
        key: str,
        load: Callable[[], bytes],
        *,
        cancelled: threading.Event | None = None,
        as_file: bool = False,
    ) -> bytes:
        """Return the bytes of ``key``; if they are not here, ``load`` fetches them.

        For small objects: one read, no pin. What finds no room is returned all the same.

        Args:
            key: names content for good: URL and version.
            load: fetches the bytes.
            cancelled: stops waiting for another process that fetches the same object.
            as_file: keep it as a file of its own, for ``find``; small objects are packed otherwise.
        """
        opened = self._open()
        name = entry_name(key)
        if (data := self._read(opened, name)) is not None:
            return data
        return self._get_alone(
            opened,
            name,
            key,
            lambda: self._read(opened, name, drop=True),
            lambda: (load(), ""),
            cancelled,
            as_file,
        )

    def get_fresh(
        self,
        key: str,
        load: Callable[[], tuple[bytes, str]],
        ask: Callable[[], str],
        *,
        since_ns: int,
        cancelled: threading.Event | None = None,
        as_file: bool = False,
    ) -> bytes:
        """Return the bytes of ``key``, whose content may change at the far end; see ``read``.

        A copy that was fetched, or asked about, since ``since_ns`` is good. An older one is good if
        its version still is; it is then as good as new, for every process of the node.

        Args:
            key: names the object, not its version.
            load: fetches bytes and version ("" unknown).
            ask: tells the version that the object has now; "" where nobody can tell.
            since_ns: nanoseconds since 1970; 0 never asks.
            cancelled: as of ``get``.
            as_file: as of ``get``.
        """
        opened = self._open()
        name = entry_name(key)

        def find() -> bytes | None:
            try:
                return self._read(opened, name, since_ns, drop=True)
            except StaleError:
                return self._read(opened, name) if self._is_still(opened, name, ask) else None

        return self._get_alone(opened, name, key, find, load, cancelled, as_file)

    def begin(self, key: str) -> Right | None:
        """Return the right to fetch the object of ``key``; end it by ``keep``, or give it up.

        ``None`` if the object is here in whatever form, or somebody else is fetching it: ``get``
        knows what to do then.
        """
        opened, name = self._open(), entry_name(key)
        if not opened.flights.try_take(name):
            return None
        right = Right(opened, name, key)
        if opened.segments.places.find(name) is None and not exists(opened.folder.entry(name)):
            return right
        right.give_up()
        return None

    def keep(self, objects: Sequence[Fetched], *, as_file: bool = False) -> None:
        """Keep objects, at least one, for which there was the right to fetch them."""
        self.stats.misses += len(objects)
        jobs = []
        opened = objects[0].right.opened
        for right, data, version, tell in objects:
            done = functools.partial(_give_up_and_tell, right, tell)
            try:
                check_fits(self.limit, right.key, len(data))
            except CacheError as error:
                done(error)
            else:
                jobs.append(_job(opened, right, data, version, done, as_file=as_file))
        opened.keeper.keep(jobs)

    def read(self, key: str, since_ns: int = 0) -> bytes | None:
        """Return the bytes of ``key`` if they are here, fetched or asked about since then."""
        try:
            return self._read(self._open(), entry_name(key), since_ns)
        except StaleError:
            return None

    def find(self, key: str) -> Entry | None:
        """Return the object of ``key``, pinned, if it is here; a packed one becomes a file."""
        opened, name = self._open(), entry_name(key)
        entry = self._hit(opened, name, None)
        if entry is None and not opened.keeper.is_idle:
            opened.keeper.settle()
            entry = self._hit(opened, name, None)
        if entry is None and opened.segments.places.find(name) is not None:
            with opened.flights.alone(name), contextlib.suppress(NoRoomError):
                entry = self._hit(opened, name, None) or self._unpacked(opened, key, None)
        return entry

    def holds(self, key: str, since_ns: int = 0) -> bool:
        """Is the object of ``key`` here just now, fetched or asked about since then?

        Nothing is pinned: it may go at any time.
        """
        opened, name = self._open(), entry_name(key)
        place = opened.segments.places.find(name)
        if place is not None:
            return place.asked_ns >= since_ns
        path = opened.folder.entry(name)
        try:
            return exists(path) and os.stat(path).st_ctime_ns >= since_ns
        except FileNotFoundError:
            return False

    def is_verified(self, path: str) -> bool:
        """Was this local file, of this size, time and inode, verified on this node before?"""
        return self._open().space.is_verified(os.path.abspath(path), _identity(path))

    def note_verified(self, path: str) -> None:
        """Remember that a local file was verified as it is now."""
        self._open().space.note_verified(os.path.abspath(path), _identity(path))

    # -- upkeep -------------------------------------------------------------------------------

    def entries(self) -> list[CachedObject]:
        """Return what the cache holds."""
        opened = self._settled()
        folder = opened.folder
        return [
            CachedObject(row.key, row.size, row.created, row.last_used, path, start)
            for row in opened.space.rows()
            for path, start in [
                (folder.entry(row.name), 0)
                if row.place is None
                else (folder.segment(row.place.file), row.place.start)
            ]
        ]

    def check(self) -> list[str]:
        """Compare ledger and disk both ways; return what is wrong (nothing, normally)."""
        return self._settled().space.check()

    def repair(self) -> list[str]:
        """Make ledger and disk agree; return what was wrong."""
        return self._settled().space.repair()

    def clear(self) -> int:
        """Delete everything that nobody has open; return how many bytes went."""
        return self._settled().space.clear()

    def flush(self) -> None:
        """Record recent uses and entries now (it happens by itself, and on ``close``)."""
        self._settled().space.flush()

    def close(self) -> None:
        """Record what is only in memory and give back all room; the next use opens again."""
        with self._lock:
            if self._opened is not None:
                self._end.detach()
                self._opened.close()
                self._opened = None

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        limit = None if self.limit is None else show_size(self.limit)
        return f"Cache({self.folder!r}, limit={limit!r}, policy={self.policy!r})"

    # -- steps --------------------------------------------------------------------------------

    def _open(self) -> Opened:
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            if self._opened is None:
                passed = functools.partial(_note_passed, self.stats)
                self._opened = Opened(self.folder, self.limit, self.policy, passed)
                self._end = weakref.finalize(self, dropped.add, self._opened)  # also at exit
                close_with_process(self._end)
            return self._opened

    def _settled(self) -> Opened:
        opened = self._open()
        opened.keeper.settle()
        return opened

    def _hit(
        self, opened: Opened, name: str, due: float | None, *, drop: bool = False
    ) -> Entry | None:
        """Pin an entry; a damaged one is dropped only by who holds its flight."""
        try:
            entry = open_entry(opened.folder.entry(name))
        except ValueError:
            if drop:
                self._drop_damaged(opened, name)
            return None
        if entry is not None:
            self.stats.hits += 1
            opened.space.used(name, due)
        return entry

    def _read(
        self, opened: Opened, name: str, since_ns: int = 0, *, drop: bool = False
    ) -> bytes | None:
        try:
            data = opened.segments.read(name, since_ns)
            if data is None:
                data = read_entry(opened.folder.entry(name), since_ns)
        except ValueError:
            if drop:
                self._drop_damaged(opened, name)
            return None
        if data is not None:
            self.stats.hits += 1
            opened.space.used(name, None)
        return data

    def _is_still(self, opened: Opened, name: str, ask: Callable[[], str]) -> bool:
        """Whether an old entry is what the far end has; else it goes. For who holds its flight."""
        version = ask()
        place = opened.segments.places.find(name)
        if place is not None:
            if not version or place.mark == mark_of(version):
                opened.segments.places.note_asked(name, place)
                return True
        else:
            path = opened.folder.entry(name)
            try:
                status = os.stat(path)
                if not version or is_version(status, version):
                    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))  # changed: just now
                    return True
            except FileNotFoundError:
                return False
        opened.space.drop(name)
        return False

    def _drop_damaged(self, opened: Opened, name: str) -> None:
        if opened.space.drop(name):
            logger.warning("cache entry %s was changed behind our back; dropped", name)
            self.stats.damaged += 1

    def _unpacked(self, opened: Opened, key: str, due: float | None) -> Entry | None:
        """Make a packed entry a file, and pin it, for who holds its flight; None if there is none.

        Raises:
            NoRoomError: there is no room for both.
        """
        name = entry_name(key)
        place = opened.segments.places.find(name)
        data = None if place is None else self._read(opened, name, drop=True)
        if place is None or data is None:
            return None
        wanted = Wanted(name, key, lambda sink: sink.write(data), len(data), due, place.mark)
        return self._fetch(opened, wanted)

    def _fetch(self, opened: Opened, wanted: Wanted) -> Entry:
        """Fill and publish an entry, and pin it."""
        sink = opened.writer.write_file(wanted, AsideSink.pin)
        return Entry(sink.detach(), opened.folder.entry(wanted.name), sink.size, is_cached=True)

    def _get_alone(
        self,
        opened: Opened,
        name: str,
        key: str,
        find: Callable[[], bytes | None],
        load: Callable[[], tuple[bytes, str]],
        cancelled: threading.Event | None,
        as_file: bool,
    ) -> bytes:
        """Find bytes here, or load and keep them; alone until they are kept."""
        opened.flights.take(name, cancelled)
        right = Right(opened, name, key)
        try:
            if (found := find()) is None:
                self.stats.misses += 1
                data, version = load()
                check_fits(self.limit, key, len(data))
        except BaseException:
            right.give_up()
            raise
        if found is not None:
            right.give_up()
            return found
        own, errors = threading.get_ident(), []

        def tell(error: Exception | None) -> None:
            right.give_up()
            if error is not None and threading.get_ident() == own:
                errors.append(error)
            elif error is not None:
                logger.warning("an object was fetched and not kept: %s", error)

        opened.keeper.keep([_job(opened, right, data, version, tell, as_file=as_file)])
        if errors:
            raise errors[0]
        return data


def _job(
    opened: Opened,
    right: Right,
    data: bytes,
    version: str,
    tell: Callable[[Exception | None], None],
    *,
    as_file: bool,
) -> Job:
    """An object to be kept, proved now, while the processor still has the bytes at hand."""
    packed = Packed(right.name, right.key, data, mark_of(version), digest_of(right.name, data))
    is_file = as_file or len(data) > MAX_PACKED or not opened.segments.can_append
    return Job(packed, tell, is_file=is_file)


def _give_up_and_tell(
    right: Right, tell: Callable[[Exception | None], None], error: Exception | None
) -> None:
    right.give_up()
    tell(error)


def _note_passed(stats: CacheStats) -> None:
    stats.passed_through += 1


def _make_cache(folder: str, limit: int | None, policy: Policy) -> Cache:
    return Cache(folder, limit, policy=policy)


def _identity(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise store_error("stat", path, error) from error
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
