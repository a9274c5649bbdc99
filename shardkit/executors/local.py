"""Who runs a plan's shards: this process, or one process per core of this machine."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import TypeVar, cast

from shardkit.errors import ConfigError, ShardkitError
from shardkit.executors.messages import Done, Failed, Progress
from shardkit.executors.protocol import Report, Task
from shardkit.executors.workers import Worker, start_worker

__all__ = ["LocalExecutor", "WorkerLostError", "num_cores"]

R = TypeVar("R")

_MAX_LOSSES = 3
"""Workers killed in a row, with nothing finished between, before a run gives up: what kills one
worker after the other (memory that is too small) would kill the next one too."""


class WorkerLostError(ShardkitError, RuntimeError):
    """Worker processes were killed again and again; what they had published stays."""


class LocalExecutor:
    """Processes of this machine; with one worker, this process itself.

    A worker that is killed is replaced, and its item done anew; the others go on.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_cores() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise ConfigError(f"workers={num_workers} must be at least 1")
        self._started: list[Worker] = []

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """See ``Executor``. A worker takes as long to start as a plan to make."""
        if self.num_workers > 1:
            self._started.extend(start_worker() for _ in range(self.num_workers))
        try:
            yield
        finally:
            _kill(self._started)
            self._started = []

    def run(self, task: Task[R], items: Iterable[int], report: Report) -> Iterator[R]:
        """See ``Executor``."""
        todo = deque(items)
        if self.num_workers == 1 or len(todo) <= 1:
            for item in todo:
                yield task(item, report)
            return
        with contextlib.closing(_Crew(pickle.dumps(task), todo, report)) as crew:
            for _ in range(min(self.num_workers, len(todo))):
                crew.add(self._started.pop() if self._started else start_worker())
            while crew.workers:
                yield from cast("list[R]", crew.step())


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Crew:
    """Worker processes, each at one item; whoever ends gets the next."""

    def __init__(self, task: bytes, todo: deque[int], report: Report) -> None:
        self.workers: dict[Connection, Worker] = {}
        self._items: dict[Connection, int] = {}
        self._task = task
        self._todo = todo
        self._report = report
        self._num_losses = 0

    def add(self, worker: Worker) -> None:
        """Give a worker the task, and its first item."""
        self.workers[worker.connection] = worker
        with contextlib.suppress(BrokenPipeError):
            worker.connection.send_bytes(self._task)
        self._go_on(worker.connection)

    def step(self) -> list[object]:
        """Wait for word from workers; returns results that came."""
        results = []
        for connection in cast("list[Connection]", wait(list(self.workers))):
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace(connection)
                continue
            if isinstance(message, Progress):
                self._report(message.samples, message.num_bytes)
            elif isinstance(message, Failed):
                raise message.error
            elif isinstance(message, Done):
                self._num_losses = 0
                results.append(message.result)
                self._go_on(connection)
        return results

    def close(self) -> None:
        """End all workers now: after an error or Ctrl-C nobody wants what they are doing."""
        _kill(self.workers.values())
        self.workers = {}

    def _go_on(self, connection: Connection) -> None:
        """Give a worker its next item, or let it go."""
        if not self._todo:
            self.workers.pop(connection).end()
            return
        item = self._todo.popleft()
        self._items[connection] = item
        with contextlib.suppress(BrokenPipeError):  # it was killed: its end is the next word of it
            connection.send(item)

    def _replace(self, connection: Connection) -> None:
        worker = self.workers.pop(connection)
        worker.end()
        self._num_losses += 1
        if self._num_losses > _MAX_LOSSES:
            raise WorkerLostError(
                f"{self._num_losses} worker processes in a row were killed (the last ended with "
                f"{worker.process.returncode}): out of memory? What is finished stays: run the "
                "same command again to continue, with fewer --workers if memory is short"
            )
        self._todo.appendleft(self._items[connection])
        self.add(start_worker())


def _kill(workers: Collection[Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.end()
