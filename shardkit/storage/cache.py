"""The cache: one folder that all processes of a node share, under one hard byte limit.

An object is fetched at most once per residency however many ask (single flight), is written aside,
verified, stamped and renamed, and can be evicted only while nobody has it open. When everything is
in use, objects pass through memory instead. See ``docs/guarantees.md`` for what is promised, and
``space.py`` for why the limit holds at every instant.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from shardkit.errors import CacheError
from shardkit.format.sizes import parse_size, show_size
from shardkit.storage.boundary import store_error
from shardkit.storage.entries import (
    Entry,
    StaleError,
    entry_name,
    is_version,
    open_entry,
    read_entry,
)
from shardkit.storage.filesystems import filesystem_of, is_network_path
from shardkit.storage.flights import Flights
from shardkit.storage.folder import Folder
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.keeping import Job, Keeper
from shardkit.storage.policies import Policy, check_policy
from shardkit.storage.sinks import (
    STEP,
    AsideSink,
    Fill,
    NoRoomError,
    Sink,
    Wanted,
    check_fits,
    in_memory,
)
from shardkit.storage.space import Space

__all__ = ["Cache", "CacheStats", "CachedObject", "Fill", "Sink", "in_memory"]

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class CachedObject:
    """An entry as ``Cache.entries`` lists it; times are seconds since 1970."""

    key: str
    size: int
    created: float
    last_used: float
    path: str


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
        self._opened: _Opened | None = None  # guarded by _lock
        start_anew_in_children(self)

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[str, int | None, Policy]]:
        return _make_cache, (self.folder, self.limit, self.policy)

    def rest_for_fork(self) -> None:
        """Before a fork: no transaction is under way, the ledger is closed."""
        self._lock.acquire()
        if self._opened is not None:
            self._opened.space.rest_for_fork()

    def go_on_after_fork(self) -> None:
        """After a fork, in the parent: go on."""
        if self._opened is not None:
            self._opened.space.go_on_after_fork()
        self._lock.release()

    def forget_parent(self) -> None:
        """In a forked child: leave the parent's locks and ledger alone, open our own."""
        self._lock = threading.Lock()
        if self._opened is not None:
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
    ) -> bytes:
        """Return the bytes of ``key``; if they are not here, ``load`` fetches them.

        For small objects: one read, no pin. What finds no room is returned all the same.
        """
        opened = self._open()
        name = entry_name(key)
        if (data := self._read(opened, name)) is not None:
            return data
        return self._get_alone(
            opened,
            key,
            lambda: self._read(opened, name, drop=True),
            lambda: (load(), ""),
            cancelled,
        )

    def get_fresh(
        self,
        key: str,
        load: Callable[[], tuple[bytes, str]],
        ask: Callable[[], str],
        *,
        since_ns: int,
        cancelled: threading.Event | None = None,
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
        """
        opened = self._open()
        name = entry_name(key)

        def find() -> bytes | None:
            try:
                return self._read(opened, name, since_ns, drop=True)
            except StaleError:
                return self._read(opened, name) if self._is_still(opened, name, ask) else None

        return self._get_alone(opened, key, find, load, cancelled)

    def read(self, key: str, since_ns: int = 0) -> bytes | None:
        """Return the bytes of ``key`` if they are here, fetched or asked about since then."""
        try:
            return self._read(self._open(), entry_name(key), since_ns)
        except StaleError:
            return None

    def find(self, key: str) -> Entry | None:
        """Return the object of ``key``, pinned, if it is here."""
        opened, name = self._open(), entry_name(key)
        entry = self._hit(opened, name, None)
        if entry is None and not opened.keeper.is_idle:
            opened.keeper.settle()
            entry = self._hit(opened, name, None)
        return entry

    def holds(self, key: str, since_ns: int = 0) -> bool:
        """Is the object of ``key`` here just now, fetched or asked about since then?

        Nothing is pinned: it may go at any time.
        """
        try:
            status = os.stat(self._open().folder.entry(entry_name(key)))
        except FileNotFoundError:
            return False
        return status.st_ctime_ns >= since_ns

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
        return [
            CachedObject(r.key, r.size, r.created, r.last_used, opened.folder.entry(r.name))
            for r in opened.space.rows()
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

    def _open(self) -> _Opened:
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            if self._opened is None:
                self._opened = _Opened(self.folder, self.limit, self.policy)
            return self._opened

    def _settled(self) -> _Opened:
        opened = self._open()
        opened.keeper.settle()
        return opened

    def _hit(
        self, opened: _Opened, name: str, due: float | None, *, drop: bool = False
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
        self, opened: _Opened, name: str, since_ns: int = 0, *, drop: bool = False
    ) -> bytes | None:
        try:
            data = read_entry(opened.folder.entry(name), since_ns)
        except ValueError:
            if drop:
                self._drop_damaged(opened, name)
            return None
        if data is not None:
            self.stats.hits += 1
            opened.space.used(name, None)
        return data

    def _is_still(self, opened: _Opened, name: str, ask: Callable[[], str]) -> bool:
        """Whether an old entry is what the far end has; else it goes. For who holds its flight."""
        path = opened.folder.entry(name)
        version = ask()
        try:
            status = os.stat(path)
            if not version or is_version(status, version):
                os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))  # changed: just now
                return True
        except FileNotFoundError:
            return False
        opened.space.drop(name)
        return False

    def _drop_damaged(self, opened: _Opened, name: str) -> None:
        logger.warning("cache entry %s was changed behind our back; dropped", name)
        self.stats.damaged += 1
        opened.space.drop(name)

    def _fetch(self, opened: _Opened, wanted: Wanted) -> Entry:
        """Fill and publish an entry, and pin it."""
        sink = self._published(opened, wanted, AsideSink.pin)
        return Entry(sink.detach(), opened.folder.entry(wanted.name), sink.size, is_cached=True)

    def _get_alone(
        self,
        opened: _Opened,
        key: str,
        find: Callable[[], bytes | None],
        load: Callable[[], tuple[bytes, str]],
        cancelled: threading.Event | None,
    ) -> bytes:
        """Find bytes here, or load and keep them; alone until they are kept."""
        name = entry_name(key)
        opened.flights.take(name, cancelled)
        try:
            if (found := find()) is None:
                self.stats.misses += 1
                data, version = load()
                check_fits(self.limit, key, len(data))
        except BaseException:
            opened.flights.release(name)
            raise
        if found is not None:
            opened.flights.release(name)
            return found
        wanted = Wanted(name, key, lambda sink: sink.write(data), len(data), version=version)
        write = functools.partial(self._keep, opened, wanted)
        done = functools.partial(opened.flights.release, name)
        opened.keeper.keep(Job(len(data), write, done))
        return data

    def _keep(self, opened: _Opened, wanted: Wanted) -> None:
        try:
            self._published(opened, wanted, AsideSink.close)
        except NoRoomError:
            self.stats.passed_through += 1

    def _published(
        self, opened: _Opened, wanted: Wanted, settle: Callable[[AsideSink], None]
    ) -> AsideSink:
        """Fill, settle and publish an entry, evicting more if the disk itself is full."""
        while True:
            try:
                return self._fill_and_publish(opened, wanted, settle)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if not opened.space.make_disk_room(max(wanted.size, STEP)):
                    raise self._disk_full(wanted) from error

    def _fill_and_publish(
        self, opened: _Opened, wanted: Wanted, settle: Callable[[AsideSink], None]
    ) -> AsideSink:
        sink = AsideSink(opened.space, self.limit, wanted)
        try:
            wanted.fill(sink)
            sink.finish()
            settle(sink)
            opened.space.publish(sink.path, wanted.name, wanted.key, sink.size, wanted.due)
        except BaseException:
            sink.discard()
            raise
        return sink

    def _disk_full(self, wanted: Wanted) -> CacheError:
        full = CacheError(
            f"the disk of the cache {self.folder} is full and nothing of the cache is left to "
            f"evict: no room for {wanted.key} ({show_size(max(wanted.size, 0))}); make room there, "
            "or choose a smaller cache_limit or another cache_dir"
        )
        full.errno = errno.ENOSPC
        return full


class _Opened:
    """What an open cache holds in one process."""

    def __init__(self, root: str, limit: int | None, policy: Policy) -> None:
        if is_network_path(root):
            raise CacheError(
                f"cache_dir={root!r} lies on a network filesystem ({filesystem_of(root)}), where "
                "locks cannot be trusted; choose a folder on a disk of this machine, such as "
                "a scratch disk (each node keeps its own cache)"
            )
        self.folder = Folder(root)
        try:
            self.folder.make()
            self.flights = Flights(self.folder.flights)
            self.space = Space(self.folder, limit, policy)
            self.keeper = Keeper()
        except OSError as error:
            if isinstance(error, CacheError):
                raise
            raise CacheError(f"cannot open the cache in {root}: {error}") from error

    def close(self) -> None:
        self.keeper.settle()
        self.space.close()
        self.flights.close()

    def abandon(self) -> None:
        self.flights.close()
        self.space.abandon()


def _make_cache(folder: str, limit: int | None, policy: Policy) -> Cache:
    return Cache(folder, limit, policy=policy)


def _identity(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise store_error("stat", path, error) from error
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
