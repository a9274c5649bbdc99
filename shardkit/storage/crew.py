"""A few threads that do what they are handed, and are gone when told so."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable

from shardkit.storage.retry import end_waits_with

__all__ = ["CLOSE_S", "Crew"]

CLOSE_S = 0.4
"""How long ``close`` waits. A thread that sits in a socket of a dead server ends by itself when the
stall deadline cuts it; it is a daemon and holds nothing that anybody waits for."""


class Crew:
    """Up to ``num_threads`` daemon threads, started as work comes.

    Threads know only the queue, never who owns the crew, so an owner that is dropped can be
    collected and close it; one that waits before it asks a server again ends at once. When the
    interpreter ends, crews that are still open are closed while all modules are there: an iterator
    that was left half-way closes its own only after that.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []  # added to with the lock
        self._closed = threading.Event()
        self._end = weakref.finalize(self, _end, self._closed, self._work, self._threads, CLOSE_S)

    def submit(self, job: Callable[[], None]) -> None:
        """Have ``job`` done by some thread; it must not raise. Thread-safe."""
        if self._closed.is_set():
            return
        if len(self._threads) < self._num_threads:
            self._start_one()
        self._work.put(job)

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Drop work that has not begun, end the threads, wait for them a moment."""
        with self._lock:
            self._closed.set()
        if self._end.detach():
            _end(self._closed, self._work, self._threads, wait_s)

    def _start_one(self) -> None:
        with self._lock:
            if self._closed.is_set() or len(self._threads) >= self._num_threads:
                return
            thread = threading.Thread(
                target=_work,
                args=(self._work, self._closed),
                name=f"shardkit-{self._name}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:  # no more threads: those that there are do it
                if not self._threads:
                    raise
                self._num_threads = len(self._threads)
                return
            self._threads.append(thread)


def _end(
    closed: threading.Event,
    work: queue.SimpleQueue[Callable[[], None] | None],
    threads: list[threading.Thread],
    wait_s: float,
) -> None:
    closed.set()
    while True:
        try:
            work.get_nowait()
        except queue.Empty:
            break
    for _ in threads:
        work.put(None)
    until = time.monotonic() + wait_s
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
    threads.clear()


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None], closed: threading.Event) -> None:
    end_waits_with(closed)
    while (job := jobs.get()) is not None:
        job()
        del job  # an idle thread must keep nothing alive
