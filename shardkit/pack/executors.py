"""Who runs a plan's shards: this process, or one process per core of this machine.

An executor takes a picklable task and shard numbers, and yields what the task returns as it ends.
It knows nothing of what the task does. Workers start by forkserver, so that no lock or client of
the parent is copied into them; they end with their parent, however it ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_connections
from typing import Any, Protocol, TypeVar

from shardkit.errors import ConfigError, ShardkitError

__all__ = ["Executor", "LocalExecutor", "Report", "Task", "WorkerLostError", "nothing", "num_cores"]

Report = Callable[[int, int], None]
"""Called with the samples and bytes done since the last call."""


def nothing(samples: int, num_bytes: int) -> None:
    """The progress report nobody reads."""


R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Task(Protocol[R_co]):
    """Work on one numbered item. Picklable; deterministic; safe to repeat after a kill."""

    def __call__(self, item: int, report: Report) -> R_co:
        """Do item ``item`` whole, and say so."""
        ...


class Executor(Protocol):
    """Runs tasks. ``run`` yields results in any order; the first error stops the rest."""

    def run(self, task: Task[R], items: Iterable[int], report: Report) -> Iterator[R]:
        """Yield ``task(item)`` for every item as it ends."""
        ...


class WorkerLostError(ShardkitError, RuntimeError):
    """A worker process was killed; what it had published stays."""


class LocalExecutor:
    """Processes of this machine; with one worker, this process itself."""

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_cores() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise ConfigError(f"workers={num_workers} must be at least 1")

    def run(self, task: Task[R], items: Iterable[int], report: Report) -> Iterator[R]:
        """See ``Executor``."""
        todo = list(items)
        if self.num_workers == 1 or len(todo) <= 1:
            for item in todo:
                yield task(item, report)
            return
        yield from _run_in_processes(task, todo, report, min(self.num_workers, len(todo)))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _run_in_processes(
    task: Task[R], items: list[int], report: Report, num_workers: int
) -> Iterator[R]:
    context = multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    lock = context.Lock()
    listener = threading.Thread(target=_listen, args=(receive, report), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (task, send, lock))
    try:
        queue = iter(items)
        pending: set[Future[R]] = set()
        for item in queue:
            pending.add(pool.submit(_run_item, item))
            if len(pending) >= 2 * num_workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise WorkerLostError(
            "a worker process was killed (out of memory, or by hand); what is finished stays: run "
            "the same command again to continue, with fewer --workers if memory was short"
        ) from error
    finally:
        _stop(pool)
        send.close()
        listener.join()
        receive.close()


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the pool now: after an error or Ctrl-C nobody wants the shards still being written."""
    processes = list((pool._processes or {}).values())  # noqa: SLF001 - no public way to end them
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


_task: Task[object]
_report: Report


def _start_worker(task: Task[object], progress: Connection, lock: object) -> None:
    """Set a worker process up: keep the task, report through the pipe, die with the parent."""
    global _task, _report  # one per worker process, set once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us

    def report(samples: int, num_bytes: int) -> None:
        with lock, contextlib.suppress(BrokenPipeError):  # type: ignore[attr-defined]
            progress.send((samples, num_bytes))

    _task, _report = task, report
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_connections([parent.sentinel])
        os._exit(1)


def _run_item(item: int) -> Any:
    return _task(item, _report)


def _listen(progress: Connection, report: Report) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            report(*progress.recv())
