"""The executor of this machine: this process, and beside it a worker per further core.

This process works too, for a worker takes as long to start as many a pack takes; between two
reports of its own item it listens to the workers. Each of them has an item more than it is at, so
that none waits while this process is deep in one.
"""

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
    """This process and ``num_workers - 1`` others.

    A worker that is killed is replaced, and what it had is done anew; the others go on.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_cores() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise ConfigError(f"workers={num_workers} must be at least 1")
        self._started: list[Worker] = []

    @contextlib.contextmanager
    def ready(self, task: type[object] | None = None) -> Iterator[None]:
        """See ``Executor``. A worker takes as long to start as a plan to make.

        No more start than run at once: there may be few items, however many workers are asked for.
        """
        if self._started:
            yield
            return
        imports = None if task is None else task.__module__
        num_now = min(self.num_workers - 1, num_cores())
        self._started = [start_worker(imports) for _ in range(num_now)]
        try:
            yield
        finally:
            _kill(self._started)
            self._started = []

    def run(self, task: Task[R], items: Iterable[int], report: Report) -> Iterator[R]:
        """See ``Executor``."""
        todo = deque(items)
        num_others = min(self.num_workers, len(todo)) - 1
        if num_others < 1:
            for item in todo:
                yield task(item, report)
            return
        own = todo.popleft()
        imports = type(task).__module__
        with contextlib.closing(_Crew(pickle.dumps(task), imports, todo, report)) as crew:
            for _ in range(num_others):
                crew.add(self._started.pop() if self._started else start_worker(imports))
            while True:
                yield task(own, crew.report)
                crew.num_losses = 0
                yield from cast("list[R]", crew.results())
                if not todo:
                    break
                own = todo.popleft()
            while crew.workers:
                crew.listen(timeout=None)
                yield from cast("list[R]", crew.results())


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Crew:
    """Worker processes, each at its first item; whoever ends that gets one more."""

    def __init__(self, task: bytes, imports: str, todo: deque[int], report: Report) -> None:
        self.workers: dict[Connection, Worker] = {}
        self.num_losses = 0  # since an item was finished
        self._items: dict[Connection, deque[int]] = {}
        self._results: list[object] = []
        self._task = task
        self._imports = imports
        self._todo = todo
        self._report = report

    def add(self, worker: Worker) -> None:
        """Give a worker the task, and its first items."""
        self._give(worker, deque())

    def report(self, samples: int, num_bytes: int) -> None:
        """Pass on what this process has done, and listen to the workers."""
        self._report(samples, num_bytes)
        self.listen(timeout=0)

    def listen(self, timeout: float | None) -> None:
        """Take what workers have said; with no timeout, wait for the next word of any."""
        while ready := cast("list[Connection]", wait(list(self.workers), timeout)):
            for connection in ready:
                self._hear(connection)
            timeout = 0

    def results(self) -> list[object]:
        """What has come since the last call."""
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """End all workers now: after an error or Ctrl-C nobody wants what they are doing."""
        _kill(self.workers.values())
        self.workers = {}

    def _hear(self, connection: Connection) -> None:
        try:
            message = connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(connection)
            return
        if isinstance(message, Progress):
            self._report(message.samples, message.num_bytes)
        elif isinstance(message, Failed):
            raise message.error
        elif isinstance(message, Done):
            self.num_losses = 0
            self._results.append(message.result)
            self._items[connection].popleft()
            self._go_on(connection)

    def _give(self, worker: Worker, items: deque[int]) -> None:
        """Start a worker on the task with these items, those of a lost one."""
        connection = worker.connection
        self.workers[connection], self._items[connection] = worker, items
        with contextlib.suppress(BrokenPipeError):
            connection.send_bytes(self._task)
        for item in items:
            _send(connection, item)
        self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """See that a worker has an item, and a next one while there are many; or let it go."""
        items = self._items[connection]
        while self._todo and (not items or (len(items) == 1 and self._are_many)):
            items.append(self._todo.popleft())
            _send(connection, items[-1])
        if not items:
            self.workers.pop(connection).end()

    @property
    def _are_many(self) -> bool:
        """Whether an item that waits for its worker now is not one that the last wait for."""
        return len(self._todo) > 2 * len(self.workers)

    def _replace(self, connection: Connection) -> None:
        worker = self.workers.pop(connection)
        worker.end()
        self.num_losses += 1
        if self.num_losses > _MAX_LOSSES:
            raise WorkerLostError(
                f"{self.num_losses} worker processes in a row were killed (the last ended with "
                f"{worker.process.returncode}): out of memory? What is finished stays: run the "
                "same command again to continue, with fewer --workers if memory is short"
            )
        self._give(start_worker(self._imports), self._items.pop(connection))


def _send(connection: Connection, item: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # it was killed: its end is the next word of it
        connection.send(item)


def _kill(workers: Collection[Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.end()
