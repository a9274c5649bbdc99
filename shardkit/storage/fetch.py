"""Fetch in order: many requests at once, results in the order of the requests, bounded in bytes.

The consumer's own thread pulls the requests (so a generator of them never runs in two threads) and
tops the lookahead up whenever it takes a result; worker threads only fetch. An error is the value
of its request: those after it still come.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from shardkit.errors import ConfigError
from shardkit.storage.cache import Cache
from shardkit.storage.downloads import Downloads
from shardkit.storage.flights import Cancelled
from shardkit.storage.protocol import Store
from shardkit.storage.requests import Request, load_verified
from shardkit.storage.urls import is_local

__all__ = ["OrderedFetch", "Request", "Result", "fetch_in_order"]

LOOKAHEAD_BYTES = 64 << 20
"""At 1 GB/s this is 64 ms ahead, at 100 MB/s 0.6 s: several round trips either way."""

NUM_THREADS = 32
"""100 KB objects on loopback S3: 8 threads reached 3,400/s, 32 threads 3,600/s; over a real network
a thread is one request in flight, so more is needed than on loopback."""

_RUN = 16
"""Local files one job reads: handing over costs about what reading a small file does."""

_FIRST_GUESS = 256 << 10
_MOST_OUTSTANDING = 4096


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a request: ``data``, or ``error``."""

    request: Request
    data: bytes = b""
    error: Exception | None = None

    def unwrap(self) -> bytes:
        """Return the data, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.data


class _Slot:
    """A request's place in the row. ``result`` is set once, by whoever did it."""

    __slots__ = ("guess", "key", "request", "result", "url")

    def __init__(self, request: Request, guess: int, url: str, key: str) -> None:
        self.request = request
        self.guess = guess
        self.url = url
        self.key = key
        self.result: Result | None = None


class _Shared:
    """What workers and consumer share; workers never know the iterator itself."""

    def __init__(self, store: Store, cache: Cache | None, num_threads: int) -> None:
        self.store = store
        self.cache = cache
        self.closed = threading.Event()
        self.arrived = threading.Condition()
        self.awaited: _Slot | None = None  # written by the consumer alone
        self.downloads: Downloads[_Slot] = Downloads(
            num_threads, "fetch", self._begin, self._end, store=store, cache=cache
        )

    def close(self) -> None:
        self.closed.set()
        with self.arrived:
            self.arrived.notify_all()
        self.downloads.close()

    def slot(self, request: Request, guess: int) -> _Slot:
        """A slot, which says whether the request is of an object as it is."""
        is_plain = request.is_whole and request.checksum is None and request.check is None
        if self.cache is None:
            return _Slot(request, guess, request.url if is_plain else "", "")
        if not is_plain or request.version is None:
            return _Slot(request, guess, "", "")
        return _Slot(request, guess, request.url, request.key(self.store))

    def work(self, slots: list[_Slot]) -> None:
        """Do what asks for local files."""
        for slot in slots:
            load = self._begin(slot)
            if load is None:
                return
            try:
                self._end(slot, load(), None)
            except Exception as error:  # noqa: BLE001 - every error belongs to its request
                self._end(slot, None, error)

    def _begin(self, slot: _Slot) -> Callable[[], bytes] | None:
        if self.closed.is_set():
            return None
        return functools.partial(self._load, slot.request)

    def _end(self, slot: _Slot, data: bytes | None, error: Exception | None) -> None:
        if isinstance(error, Cancelled):
            return
        slot.result = Result(slot.request, data or b"", error)
        if self.awaited is slot:
            with self.arrived:
                self.arrived.notify()

    def _load(self, request: Request) -> bytes:
        if self.cache is None or is_local(request.url):
            return load_verified(self.store, request)
        return self.cache.get(
            request.key(self.store),
            lambda: load_verified(self.store, request),
            cancelled=self.closed,
        )


class OrderedFetch:
    """Iterator over results; a context manager. Used by one thread. See ``fetch_in_order``."""

    def __init__(self, shared: _Shared, requests: Iterable[Request], lookahead_bytes: int) -> None:
        self._shared = shared
        self._requests: Iterator[Request] | None = iter(requests)
        self._lookahead_bytes = lookahead_bytes
        self._row: deque[_Slot] = deque()
        self._outstanding = 0  # bytes of the row, by guess
        self._mean = float(_FIRST_GUESS)
        self._end = weakref.finalize(self, shared.close)  # for iterators that are just dropped

    def __iter__(self) -> OrderedFetch:
        return self

    def __next__(self) -> Result:
        if self._shared.closed.is_set():
            raise StopIteration
        self._top_up()
        if not self._row:
            self.close()
            raise StopIteration
        slot = self._row[0]
        result = self._wait_for(slot)
        self._row.popleft()
        self._outstanding -= slot.guess
        if slot.request.num_bytes < 0 and result.error is None:
            self._mean += 0.1 * (len(result.data) - self._mean)
        return result

    def close(self) -> None:
        """Stop at once; what is in flight is dropped."""
        self._requests = None
        self._row.clear()
        self._end()

    def __enter__(self) -> OrderedFetch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait_for(self, slot: _Slot) -> Result:
        result = slot.result
        if result is not None:
            return result
        shared = self._shared
        shared.awaited = slot
        with shared.arrived:
            while (result := slot.result) is None:
                if shared.closed.is_set():
                    raise StopIteration
                shared.arrived.wait()
        shared.awaited = None
        return result

    def _top_up(self) -> None:
        run: list[_Slot] = []
        while self._requests is not None and self._has_room():
            request = next(self._requests, None)
            if request is None:
                self._requests = None
                break
            guess = request.num_bytes if request.num_bytes >= 0 else int(self._mean)
            slot = self._shared.slot(request, guess)
            self._row.append(slot)
            self._outstanding += guess
            if not is_local(request.url):
                self._shared.downloads.submit(slot)
                continue
            run.append(slot)
            if len(run) >= _RUN:
                self._submit(run)
                run = []
        if run:
            self._submit(run)

    def _has_room(self) -> bool:
        if not self._row:
            return True
        return (
            self._outstanding + int(self._mean) <= self._lookahead_bytes
            and len(self._row) < _MOST_OUTSTANDING
        )

    def _submit(self, run: list[_Slot]) -> None:
        shared = self._shared
        shared.downloads.run(functools.partial(shared.work, run))


def fetch_in_order(
    store: Store,
    requests: Iterable[Request],
    *,
    lookahead_bytes: int = LOOKAHEAD_BYTES,
    num_threads: int = NUM_THREADS,
    cache: Cache | None = None,
) -> OrderedFetch:
    """Return an iterator of one ``Result`` a request, in order, fetched ahead and concurrently.

    Args:
        store: see ``open_store``.
        requests: any iterable, pulled as far ahead as the lookahead allows, in the caller's thread.
        lookahead_bytes: bound on what is in flight or waiting to be taken; a single object larger
            than it still comes. Where sizes are not known, the mean of those seen is assumed.
        num_threads: requests in flight at once.
        cache: where far objects are kept; local ones never are. ``None`` keeps nothing.

    Close it, or use ``with``; an iterator that is just dropped closes itself when collected.
    """
    if lookahead_bytes < 1 or num_threads < 1:
        raise ConfigError(
            f"lookahead_bytes={lookahead_bytes}, num_threads={num_threads}: both must be at least 1"
        )
    return OrderedFetch(_Shared(store, cache, num_threads), requests, lookahead_bytes)
