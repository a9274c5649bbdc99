"""Who makes batches: this thread, or a pool of threads; for processes see ``processes``.

All give batches back in the order in which they were asked for, so who makes them never shows in
what the consumer gets.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

from shardkit.loader.plan import Job
from shardkit.loader.stats import CacheCounts
from shardkit.loader.work import BatchMaker, Made, keep_memory
from shardkit.samples.maker import StageTimes

__all__ = ["InlineWorkers", "ThreadWorkers", "Workers"]

_CLOSE_S = 0.4
"""How long closing waits for threads. One that sits in a decoder or a socket ends by itself when
its sample is done; it is a daemon, and nobody waits for what it makes."""

_LOOKED_AT = 8
"""Batches after which one thread is judged: the first ones open shards."""

_Jobs = queue.SimpleQueue[tuple["Future[Made]", Job] | None]


class Workers(Protocol):
    """Makers of batches, for one consumer; ``close`` is quick and leaves nothing behind."""

    def submit(self, job: Job) -> None:
        """Ask for a batch."""
        ...

    def take(self) -> Made:
        """Wait for the oldest batch that was asked for, and give it out.

        Raises:
            Exception: what making it raised.
        """
        ...

    def cache_counts(self) -> CacheCounts:
        """What processes of their own asked of caches."""
        ...

    def close(self) -> None:
        """Forget what was asked for and end."""
        ...


class InlineWorkers:
    """The consumer makes each batch when it wants it."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._asked: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """See ``Workers``."""
        self._asked.append(job)

    def take(self) -> Made:
        """See ``Workers``."""
        return self._maker(self._asked.popleft())

    def cache_counts(self) -> CacheCounts:
        """See ``Workers``."""
        return CacheCounts()

    def close(self) -> None:
        """See ``Workers``."""
        self._asked.clear()


class ThreadWorkers:
    """Threads of this process: what they decode needs no way to the consumer.

    They are daemons that know only their queue, and end between two samples: at ``close``, when
    this object is dropped, or when the interpreter ends.

    Where samples leave as the source gives them there is nothing to decode, and slices of a map
    hold the interpreter: a second thread only adds hand-overs (docs/decisions/602). So one begins
    alone, and the others are started if it turns out to wait for bytes, or to collate, for most of
    its time.
    """

    def __init__(self, maker: BatchMaker, num_workers: int) -> None:
        keep_memory()
        self._maker = maker
        self._num_workers = num_workers
        self._jobs: _Jobs = queue.SimpleQueue()
        self._asked: deque[Future[Made]] = deque()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._end = weakref.finalize(
            self, _stop, os.getpid(), self._jobs, self._stopped, self._threads
        )
        self._times, self._num_taken = StageTimes(), 0
        self._start_threads(1 if maker.only_reads else num_workers)

    def submit(self, job: Job) -> None:
        """See ``Workers``."""
        future: Future[Made] = Future()
        self._asked.append(future)
        self._jobs.put((future, job))

    def take(self) -> Made:
        """See ``Workers``."""
        made = self._asked.popleft().result()
        if len(self._threads) < self._num_workers:
            self._look_at(made.times)
        return made

    def cache_counts(self) -> CacheCounts:
        """See ``Workers``."""
        return CacheCounts()

    def close(self) -> None:
        """See ``Workers``."""
        self._asked.clear()
        self._end()

    def _look_at(self, times: StageTimes) -> None:
        """Start the other threads once one alone has shown that they would help."""
        self._times.add(times)
        self._num_taken += 1
        total = self._times
        reads_only = total.collate + total.waiting < total.fetch - total.waiting
        if self._num_taken >= _LOOKED_AT and not reads_only:
            self._start_threads(self._num_workers)

    def _start_threads(self, count: int) -> None:
        ready = threading.Semaphore(0)
        with _torch_as_it_was():
            for number in range(len(self._threads), count):
                thread = threading.Thread(
                    target=_work,
                    args=(self._maker, self._jobs, self._stopped, ready),
                    name=f"shardkit-loader-{number}",
                    daemon=True,
                )
                self._threads.append(thread)
                thread.start()
                ready.acquire()


@contextlib.contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Give back the number of torch's threads that this thread had, which others change inside."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    yield
    if torch is not None:
        torch.set_num_threads(before)


def _work(
    maker: BatchMaker, jobs: _Jobs, stopped: threading.Event, ready: threading.Semaphore
) -> None:
    _use_one_torch_thread()
    ready.release()
    while not stopped.is_set() and (asked := jobs.get()) is not None:
        future, job = asked
        try:
            future.set_result(maker(job, stopped.is_set))
        except BaseException as error:  # noqa: BLE001 - raised by whoever takes the batch
            future.set_exception(error)
        del asked, future, job  # an idle thread keeps nothing alive


def _use_one_torch_thread() -> None:
    """Have this thread work alone in torch, as torch's own loader workers do.

    Cores are shared by the workers: threads of threads only wait for each other (7 % of the time
    of pictures decoded and resized by two threads on two cores). OpenMP keeps the number per
    thread; what torch keeps besides, ``_torch_as_it_was`` mends.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.get_num_threads()  # a thread that has not asked takes the default at its first use
        torch.set_num_threads(1)


def _stop(
    pid: int, jobs: _Jobs, stopped: threading.Event, threads: Sequence[threading.Thread]
) -> None:
    if os.getpid() != pid:
        return  # a forked child has the object, and none of the threads
    stopped.set()
    for _ in threads:
        jobs.put(None)
    until = time.monotonic() + _CLOSE_S
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
