"""Whole shards ahead of use: each a pinned, verified, mapped file when it is opened.

The consumer says once what it will open, in order of first use, and opens; a few threads fetch
ahead of it, bounded in bytes. What was fetched ahead is pinned until it is opened. If there is no
room, looking ahead stops; if there is none for the shard that is needed *now*, what was fetched
ahead is let go, farthest first, and at last the shard passes through memory: nobody ever waits for
room.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Literal, get_args

from shardkit.errors import ConfigError, StoreError
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.cache import Cache, in_memory
from shardkit.storage.crew import Crew
from shardkit.storage.entries import Entry
from shardkit.storage.filesystems import is_network_path
from shardkit.storage.flights import Cancelled
from shardkit.storage.protocol import Store
from shardkit.storage.requests import Request, fill_from, prove
from shardkit.storage.urls import is_local, local_path

__all__ = ["ShardFetcher", "Verify"]

logger = logging.getLogger(__name__)

Verify = Literal["once", "always", "never"]

LOOKAHEAD_BYTES = 1 << 30
"""Several shards of the usual 128-512 MB."""

NUM_THREADS = 4
"""Shards fetched at once: on loopback S3, 2 streams reached 600 MB/s and 4 reached 650 MB/s, as
much as any client; over a network 4 hide each other's round trips."""


_GUESS = 128 << 20
"""Bytes assumed of a shard whose size is not known."""

_Place = tuple[str, int, "int | None"]


class _Slot:
    """A shard that is being, or was, fetched ahead; ``done`` once it ended either way."""

    __slots__ = ("done", "entry", "error", "request", "wanted")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.done = threading.Event()
        self.entry: Entry | None = None
        self.error: Exception | None = None
        self.wanted = True  # guarded by _Shared.lock


class _Shared:
    """What fetching threads need; they never know the fetcher itself."""

    def __init__(self, store: Store, cache: Cache | None, verify: Verify) -> None:
        self.store = store
        self.cache = cache
        self.verify = verify
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.no_room = False  # guarded by lock: set by a worker, cleared by the next open
        self.pace_s = 1.0  # seconds a request, as the consumer goes; written by it alone

    def work(self, slot: _Slot) -> None:
        """Fetch ahead; without room the slot ends empty."""
        try:
            if slot.wanted and not self.closed.is_set() and not self.no_room:
                slot.entry = self.open(slot.request, room="or raise")
        except BlockingIOError:
            with self.lock:
                self.no_room = True
        except Cancelled:
            pass
        except Exception as error:  # noqa: BLE001 - it belongs to who opens this shard
            slot.error = error
        with self.lock:
            unwanted = slot.entry if not slot.wanted or self.closed.is_set() else None
            if unwanted is not None:
                slot.entry = None
            slot.done.set()
        if unwanted is not None:
            unwanted.close()

    def open(self, request: Request, *, room: str) -> Entry:
        if is_local(request.url) and request.is_whole:
            path = local_path(request.url)
            if self.cache is None or not is_network_path(path):
                return self._open_local(request, path)
        fill = fill_from(self.store, request, check=self.verify != "never", cancelled=self.closed)
        if self.cache is None:
            return in_memory(request.url, fill, request.num_bytes)
        due = None if request.next_use is None else time.time() + request.next_use * self.pace_s
        entry = self.cache.open(
            request.key(self.store),
            fill,
            size=request.num_bytes,
            due=due,
            cancelled=self.closed,
            room=room,
        )
        if self.verify == "always":
            self._prove_or_close(request, entry)
        return entry

    def _open_local(self, request: Request, path: str) -> Entry:
        with map_os_errors("read", request.url):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        entry = Entry(fd, path, status.st_size, is_cached=False)
        known = self.cache is not None and self.verify == "once" and self.cache.is_verified(path)
        if known or self.verify == "never":
            return entry
        self._prove_or_close(request, entry)
        if self.cache is not None and request.checksum is not None:
            self.cache.note_verified(path)
        return entry

    @staticmethod
    def _prove_or_close(request: Request, entry: Entry) -> None:
        try:
            prove(request, entry.data)
        except BaseException:
            entry.close()
            raise


class ShardFetcher:
    """Opens shards as pinned local files, fetched ahead of use. Thread-safe.

    Args:
        store: see ``open_store``.
        cache: where far shards are kept; ``None`` keeps them in memory while they are open.
        lookahead_bytes: bound on shards that are fetched or being fetched but not opened yet; the
            next one is fetched in any case.
        num_threads: shards fetched at once.
        verify: checksums ``"once"``: when fetched, or when this node first reads a local file;
            ``"always"``: at every open; ``"never"``.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache | None = None,
        *,
        lookahead_bytes: int = LOOKAHEAD_BYTES,
        num_threads: int = NUM_THREADS,
        verify: Verify = "once",
    ) -> None:
        if verify not in get_args(Verify):
            raise ConfigError(f"verify={verify!r}: must be one of {', '.join(get_args(Verify))}")
        if lookahead_bytes < 0 or num_threads < 1:
            raise ConfigError(
                f"lookahead_bytes={lookahead_bytes}, num_threads={num_threads}: must be >= 0, >= 1"
            )
        self._shared = _Shared(store, cache, verify)
        self._crew = Crew(num_threads, "shards")
        self._lookahead_bytes = lookahead_bytes
        self._lock = threading.Lock()  # guards all below
        self._schedule: Iterator[Request | None] = iter(())
        self._held_back: Request | None = None
        self._ahead: OrderedDict[_Place, _Slot] = OrderedDict()
        self._opened_at = 0.0
        self._end = weakref.finalize(self, _end, self._shared, self._crew, self._ahead)

    def schedule(self, requests: Iterable[Request | None]) -> None:
        """Fetch these ahead, in this order, each before its first ``open``; replaces the former.

        None among them: go on at the next ``open``.

        What was fetched ahead for the former schedule and is not in the reach of the new one is
        let go when the new one needs its place.
        """
        with self._lock:
            self._schedule = iter(requests)
            self._held_back = None
            let_go = list(self._ahead.values())
            self._ahead.clear()
            self._shared.no_room = False
            self._top_up()
        for slot in let_go:
            _let_go(self._shared, slot)

    def is_coming(self, request: Request) -> bool:
        """Is it being fetched ahead just now, so that ``open`` would wait?"""
        with self._lock:
            slot = self._ahead.get(_place(request))
        return slot is not None and not slot.done.is_set()

    def open(self, request: Request) -> Entry:
        """Return a shard, pinned until its ``close``; waits for it if it is still on its way.

        Raises:
            NotFoundError, TransientError, StoreError: the store's errors.
            CorruptError: its checksum or size stayed wrong.
            CacheError: it is larger than the limit, or the disk is full.
        """
        with self._lock:
            self._note_pace()
            slot = self._ahead.get(_place(request))
        if slot is not None:
            slot.done.wait()
        if self._shared.closed.is_set():
            raise _closed(request)
        with self._lock:
            taken = slot is not None and self._ahead.pop(_place(request), None) is slot
            self._shared.no_room = False
        entry = None
        if slot is not None and taken:
            if slot.error is not None:
                self._after_open()
                raise slot.error
            entry, slot.entry = slot.entry, None
        if entry is None:
            entry = self._open_now(request)
        self._after_open()
        return entry

    def close(self) -> None:
        """Stop fetching and unpin what was fetched ahead; entries that were opened stay open."""
        self._end()

    def __enter__(self) -> ShardFetcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_now(self, request: Request) -> Entry:
        """Fetch in the caller's thread; make room at the cost of the lookahead, farthest first."""
        while True:
            try:
                return self._shared.open(request, room="or raise")
            except Cancelled:
                raise _closed(request) from None
            except BlockingIOError:
                with self._lock:
                    slot = next(
                        (s for s in reversed(self._ahead.values()) if s.entry is not None), None
                    )
                    if slot is not None:
                        del self._ahead[_place(slot.request)]
                if slot is None:
                    return self._shared.open(request, room="or memory")
                _let_go(self._shared, slot)

    def _after_open(self) -> None:
        with self._lock:
            self._top_up()

    def _note_pace(self) -> None:
        now = time.monotonic()
        if self._opened_at:
            self._shared.pace_s += 0.1 * (now - self._opened_at - self._shared.pace_s)
        self._opened_at = now

    def _top_up(self) -> None:
        """Under the lock: start fetching until the lookahead is full."""
        for place, slot in self._ahead.items():
            if slot.done.is_set() and slot.entry is None and slot.error is None:
                self._start(place, slot.request)  # it ended for want of room: there may be some now
        held = sum(_held_bytes(slot.request) for slot in self._ahead.values())
        while not self._shared.closed.is_set():
            request = self._held_back or next(self._schedule, None)
            self._held_back = None
            if request is None:
                return
            if self._ahead and held + _held_bytes(request) > self._lookahead_bytes:
                self._held_back = request
                return
            place = _place(request)
            if place in self._ahead:
                continue
            self._start(place, request)
            held += _held_bytes(request)

    def _start(self, place: _Place, request: Request) -> None:
        slot = self._ahead[place] = _Slot(request)
        self._crew.submit(functools.partial(self._shared.work, slot))


def _place(request: Request) -> _Place:
    return request.url, request.start, request.stop


def _held_bytes(request: Request) -> int:
    return request.num_bytes if request.num_bytes >= 0 else _GUESS


def _closed(request: Request) -> StoreError:
    return StoreError(f"cannot open {request.url}: this fetcher is closed")


def _let_go(shared: _Shared, slot: _Slot) -> None:
    with shared.lock:
        slot.wanted = False
        entry, slot.entry = slot.entry, None
    if entry is not None:
        entry.close()


def _end(shared: _Shared, crew: Crew, ahead: OrderedDict[_Place, _Slot]) -> None:
    shared.closed.set()
    crew.close()
    for slot in list(ahead.values()):
        _let_go(shared, slot)
        slot.done.set()  # whoever waits finds the fetcher closed
    ahead.clear()
