"""Loading, many pieces at once: by threads that block, and whole objects by one that need not.

Data's path of an object that a server gives over plain HTTP: it waits for its turn → the sole right
to fetch it is taken, unless it is cached → its request goes out on an idle connection
(``receiving.py``) → what has come is kept in the cache, some objects at a time → whoever asked is
told. That there is no such object is told at once. Whatever else is not as usual on this way is
loaded by a thread that blocks, from the beginning: first connections, other protocols, errors and
their retries, what another process is fetching.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from shardkit.errors import NotFoundError
from shardkit.storage.cache import Cache, Fetched, Right
from shardkit.storage.crew import CLOSE_S, Crew
from shardkit.storage.flights import Cancelled
from shardkit.storage.forks import importing
from shardkit.storage.protocol import Store
from shardkit.storage.segments import MAX_PACKED
from shardkit.storage.urls import place_of

if TYPE_CHECKING:
    from shardkit.storage.plain_get import PlainRequest
    from shardkit.storage.receiving import Answer, Receiver

__all__ = ["Downloads", "Wanted"]

logger = logging.getLogger(__name__)

_TOGETHER = 16
"""Objects that are signed together, and written together."""

_MOST_ODD = 16
"""Objects of a place, none of which can be had plainly, before its others are not tried either."""


class Wanted(Protocol):
    """A piece of work.

    Attributes:
        url: of the whole object that it loads; "" if it is anything else.
        key: under which the cache has the object; "" keeps it nowhere.
    """

    url: str
    key: str


T = TypeVar("T", bound=Wanted)

Load = Callable[[], Any]


class Downloads(Generic[T]):
    """Up to ``num_threads`` pieces of work under way at once, whoever does them. Thread-safe.

    Args:
        num_threads: see above.
        name: of the threads.
        begin: a method that claims a piece of work: returns what does it by blocking, ``None`` if
            nobody wants it any more.
        end: is told of each piece that was claimed, its value or its error; after ``close`` perhaps
            not. Both are called by any thread.
        store: where objects are; ``None`` leaves all to threads that block.
        cache: where they are kept.
        as_file: kept as files of their own.
    """

    def __init__(
        self,
        num_threads: int,
        name: str,
        begin: Callable[[T], Load | None],
        end: Callable[[T, Any, Exception | None], None],
        *,
        store: Store | None = None,
        cache: Cache | None = None,
        as_file: bool = False,
    ) -> None:
        self._num_threads = num_threads
        self._name = name
        self._begin = begin
        self._end = end
        self._store = store
        self._cache = cache
        self._as_file = as_file
        self._crew = Crew(num_threads, name)
        self._lock = threading.Lock()
        self._loop: _Loop[T] | None = None  # made with the lock
        self._is_closed = False

    def submit(self, wanted: T) -> None:
        """Have a piece of work done."""
        loop = self._loop
        if loop is None and wanted.url and self._store is not None:
            loop = self._started(self._store)
        if loop is None or not wanted.url or not loop.submit(wanted):
            self.run(functools.partial(_work, wanted, self._begin, self._end))

    def run(self, work: Callable[[], None]) -> None:
        """Have anything done by a thread that may block; it must not raise."""
        _do_elsewhere(self._crew, work)

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Drop what has not begun and what is under way, wait a moment for threads to end."""
        until = time.monotonic() + wait_s
        with self._lock:
            self._is_closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            self._at_exit.detach()
            loop.close()
        self._crew.close(wait_s)
        if loop is not None:
            loop.join(max(0.0, until - time.monotonic()))
        self._begin, self._end = _claim_nothing, _tell_nobody  # theirs know us: no cycles

    def forget_parent(self) -> None:
        """In a forked child, told by the owner: the parent's threads do nothing here."""
        self._lock = threading.Lock()
        self._loop, self._is_closed = None, True
        self._crew = Crew(1, self._name)

    def _started(self, store: Store) -> _Loop[T] | None:
        with self._lock:
            if self._loop is None and not self._is_closed:
                self._loop = _Loop(
                    self._num_threads,
                    _weakly(self._begin),
                    _weakly(self._end),
                    store,
                    self._cache,
                    self._crew,
                    as_file=self._as_file,
                )
                self._at_exit = weakref.finalize(self, _end_loop, self._loop)
                self._loop.start(f"shardkit-{self._name}-receive")
            return self._loop


class _Asked(NamedTuple, Generic[T]):
    """A piece of work whose request is under way."""

    wanted: T
    load: Load
    right: Right | None


class _Loop(Generic[T]):
    """The thread that receives whole objects.

    Mutable state: what waits, what others have done (deques: appending and taking are atomic),
    whether the thread sleeps and would do more; all else is the thread's own.
    """

    def __init__(
        self,
        num_at_once: int,
        begin: Callable[[T], Load | None],
        end: Callable[[T, Any, Exception | None], None],
        store: Store,
        cache: Cache | None,
        crew: Crew,
        *,
        as_file: bool,
    ) -> None:
        self._num_at_once = num_at_once
        self._begin = begin
        self._end = end
        self._store = store
        self._cache = cache
        self._crew = crew
        self._as_file = as_file
        self._receiver: Receiver[_Asked[T]] = _make_receiver(num_at_once)
        self._waiting: deque[T] = deque()
        self._returned: deque[None] = deque()
        self._num_handed = 0  # to other threads
        self._unconnected: dict[int, _Asked[T]] = {}  # for which others are making connections
        self._connected: deque[tuple[_Asked[T], PlainRequest, socket.socket | None]] = deque()
        self._arrived: list[Fetched] = []
        self._thread: threading.Thread | None = None
        self._is_asleep = self._is_closed = self._is_over = False
        # By place, objects in a row that can't be had plainly; a guess, as any thread reads it.
        self._odd: dict[str, int] = {}
        self._pid = os.getpid()

    def start(self, name: str) -> None:
        """Start the thread."""
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: ``submit`` takes nothing
            self._is_over = True
            self._receiver.close()
            self._hand_over_waiting()
        else:
            self._thread = thread

    def submit(self, wanted: T) -> bool:
        """Have an object loaded; False if this is not the way."""
        if self._is_over or self._odd.get(place_of(wanted.url), 0) >= _MOST_ODD:
            return False
        self._waiting.append(wanted)
        self._wake()
        self._hand_over_waiting()
        return True

    def close(self) -> None:
        """Drop what waits and what is under way; the thread ends soon."""
        self._is_closed = True
        if os.getpid() == self._pid:
            self._receiver.wake()

    def join(self, wait_s: float) -> None:
        """Wait a moment for the thread to end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    # -- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._is_closed:
                self._start_some()
                self._receive_some()
        finally:
            self._is_over = True
            left = [*self._receiver.close(), *self._unconnected.values()]
            for wanted, load, right in left:
                if right is not None:
                    right.give_up()
                if self._is_closed:
                    self._end(wanted, None, Cancelled("closed"))
                else:  # this thread is at fault: it said so
                    self._do_elsewhere(functools.partial(_finish, wanted, load, self._end))
            self._keep_arrived()
            self._hand_over_waiting()

    def _hand_over_waiting(self) -> None:
        """Once the thread is over: have the crew do what it may not have seen."""
        while self._is_over and self._waiting and not self._is_closed:
            try:
                wanted = self._waiting.popleft()
            except IndexError:
                return
            self._do_elsewhere(functools.partial(_work, wanted, self._begin, self._end))

    def _start_some(self) -> None:
        """Ask for as much of what waits as may be under way."""
        while True:
            self._ask_connected()
            while self._returned:
                self._returned.popleft()
                self._num_handed -= 1
            room = self._num_at_once - self._receiver.num_busy - self._num_handed
            begun: list[_Asked[T]] = []
            while self._waiting and len(begun) < min(room, _TOGETHER):
                wanted = self._waiting.popleft()
                if (load := self._begin(wanted)) is None:
                    continue
                if (asked := self._with_right(wanted, load)) is not None:
                    begun.append(asked)
                else:
                    self._finish_elsewhere(wanted, load)
                    room -= 1
            if not begun:
                return
            requests = self._requests([asked.wanted.url for asked in begun])
            for asked, request in zip(begun, requests, strict=True):
                if request is None:
                    self._give_up(asked)
                else:
                    self._ask(asked, request)

    def _with_right(self, wanted: T, load: Load) -> _Asked[T] | None:
        """With the right to fetch an object; ``None`` if there is none."""
        if self._cache is None or not wanted.key:
            return _Asked(wanted, load, None)
        try:
            right = self._cache.begin(wanted.key)
        except Exception as error:  # noqa: BLE001 - who loads it by blocking meets it again
            logger.debug("%s is not asked for: %s", wanted.url, error)
            return None
        return None if right is None else _Asked(wanted, load, right)

    def _requests(self, urls: Sequence[str]) -> Sequence[PlainRequest | None]:
        try:
            requests = self._store.requests(urls)
        except Exception as error:  # noqa: BLE001 - as above
            if len(urls) > 1:  # the others are not at fault
                return [self._requests([url])[0] for url in urls]
            logger.debug("%s is not read plainly: %s", urls[0], error)
            requests = [None]
        for url, request in zip(urls, requests, strict=True):
            self._note(place_of(url), is_plain=request is not None)
        return requests

    def _note(self, place: str, *, is_plain: bool) -> None:
        if not is_plain:
            self._odd[place] = self._odd.get(place, 0) + 1
        elif place in self._odd:
            del self._odd[place]

    def _ask(self, asked: _Asked[T], request: PlainRequest) -> None:
        """Send a request, as soon as there is a connection for it."""
        if self._receiver.start(request, asked):
            return
        self._num_handed += 1
        self._unconnected[id(asked)] = asked
        self._do_elsewhere(functools.partial(self._connect, asked, request))

    def _connect(self, asked: _Asked[T], request: PlainRequest) -> None:
        """By a thread that may block: make a connection for a request."""
        sock = None
        try:
            sock = request.getter.connect(request.origin)
        except Exception as error:  # noqa: BLE001 - who loads it by blocking meets it again
            logger.debug("%s is not read plainly: %s", asked.wanted.url, error)
        self._connected.append((asked, request, sock))
        self._wake()

    def _ask_connected(self) -> None:
        """Send the requests for which connections were made; give up the others."""
        while self._connected:
            asked, request, sock = self._connected.popleft()
            del self._unconnected[id(asked)]
            self._num_handed -= 1
            if sock is not None:
                self._receiver.adopt(request, sock)
            # not connected again: a server that resets each connection is for retries with patience
            if sock is None or not self._receiver.start(request, asked):
                self._give_up(asked)

    def _give_up(self, asked: _Asked[T]) -> None:
        """Let a thread that blocks have a piece of work."""
        if asked.right is not None:
            asked.right.give_up()
        self._finish_elsewhere(asked.wanted, asked.load)

    def _receive_some(self) -> None:
        """Wait for answers; while others are to be delivered, take only those that are there."""
        answers = self._receiver.wait(0.0) if self._arrived else []
        if not answers:
            self._keep_arrived()
            self._is_asleep = True
            if self._can_go_on():  # something came before it was said that we sleep
                self._is_asleep = False
                return
            answers = self._receiver.wait()
            self._is_asleep = False
        for answer in answers:
            asked, data = answer.tag, answer.data
            if answer.missing is not None:
                self._tell_missing(asked, answer)
            elif data is None:
                self._give_up(asked)
            elif asked.right is None:
                self._end(asked.wanted, data, None)
            else:
                told = functools.partial(self._end, asked.wanted, data)
                self._keep_soon(Fetched(asked.right, data, answer.version, told))

    def _tell_missing(self, asked: _Asked[T], answer: Answer[_Asked[T]]) -> None:
        if asked.right is not None:
            asked.right.give_up()
        if self._cache is not None:
            self._cache.stats.misses += 1
        try:
            answer.raise_if_missing(asked.wanted.url)
        except NotFoundError as error:
            self._end(asked.wanted, None, error)

    def _can_go_on(self) -> bool:
        num_busy = self._receiver.num_busy + self._num_handed - len(self._returned)
        if self._is_closed or self._connected:
            return True
        return bool(self._waiting) and num_busy < self._num_at_once

    def _wake(self) -> None:
        """Have the thread look at what is new, unless it is about to by itself."""
        if self._is_asleep:
            self._is_asleep = False
            self._receiver.wake()

    # -- what takes long is for other threads ---------------------------------------------------

    def _finish_elsewhere(self, wanted: T, load: Load) -> None:
        """Have the crew do what was begun; it counts as under way until then."""
        self._num_handed += 1
        work = functools.partial(_finish, wanted, load, self._end)
        self._do_elsewhere(functools.partial(self._do_and_return, work))

    def _do_elsewhere(self, work: Callable[[], None]) -> None:
        _do_elsewhere(self._crew, work)

    def _do_and_return(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._returned.append(None)
            if self._waiting:
                self._wake()

    def _keep_soon(self, fetched: Fetched) -> None:
        """Keep an object together with others, a large one by a thread of its own."""
        if len(fetched.data) <= MAX_PACKED:
            self._arrived.append(fetched)
            if len(self._arrived) >= _TOGETHER:
                self._keep_arrived()
            return
        work = functools.partial(self._do_and_return, functools.partial(self._keep, [fetched]))
        self._num_handed += 1
        try:
            # not of the crew, which drops what it has not begun: the right would never end
            threading.Thread(target=work, name="shardkit-keep", daemon=True).start()
        except RuntimeError:  # no more threads
            work()

    def _keep_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        if arrived:
            self._keep(arrived)

    def _keep(self, objects: Sequence[Fetched]) -> None:
        """Keep objects, which tells whoever asked."""
        if self._cache is not None:
            self._cache.keep(objects, as_file=self._as_file)


def _do_elsewhere(crew: Crew, work: Callable[[], None]) -> None:
    """Have the crew do something, or do it here: whoever waits for it gets what it gives."""
    try:
        crew.submit(work)
    except RuntimeError:  # not one thread can be started
        work()


def _end_loop(loop: _Loop[Any]) -> None:
    """Close a loop whose owner was dropped, or when the interpreter ends."""
    loop.close()
    if not threading.main_thread().is_alive():  # it would be stopped for good, with a lock of ours
        loop.join(CLOSE_S)


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls a method while somebody has its object; ``None`` afterwards.

    Or the thread would hold its owner, and who was dropped without being closed would live on.
    """
    known = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        bound = known()
        return None if bound is None else bound(*args)

    return call


def _make_receiver(num_at_once: int) -> Receiver[Any]:
    with importing:
        from shardkit.storage.receiving import Receiver  # noqa: PLC0415 - heavy

        return Receiver(max(64, num_at_once))


def _work(
    wanted: T,
    begin: Callable[[T], Load | None],
    end: Callable[[T, Any, Exception | None], None],
) -> None:
    """Do a piece of work, by blocking."""
    if (load := begin(wanted)) is not None:
        _finish(wanted, load, end)


def _finish(wanted: T, load: Load, end: Callable[[T, Any, Exception | None], None]) -> None:
    try:
        value = load()
    except Exception as error:  # noqa: BLE001 - told to whoever wanted it
        end(wanted, None, error)
    else:
        end(wanted, value, None)


def _claim_nothing(wanted: Wanted) -> None:
    del wanted


def _tell_nobody(wanted: Wanted, value: Any, error: Exception | None) -> None:
    del wanted, value, error
