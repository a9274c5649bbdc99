"""Who makes batches: this thread, a pool of threads, or a pool of processes; the same order anyway.

All give batches back in the order in which they were asked for, so who makes them never shows in
what the consumer gets.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol

from shardkit.errors import ShardkitError
from shardkit.loader.work import BatchMaker, Made
from shardkit.order.batches import Batch

__all__ = ["InlineWorkers", "ProcessWorkers", "ThreadWorkers", "WorkerLostError", "Workers"]


class WorkerLostError(ShardkitError, RuntimeError):
    """A loader process was killed; its batch is not lost: the state has not counted it."""


class Workers(Protocol):
    """Makers of batches, for one consumer; ``close`` returns at once and leaves nothing behind."""

    @property
    def num_workers(self) -> int:
        """How many batches are made at a time; 0 where the consumer makes them."""
        ...

    def submit(self, epoch: int, batch: Batch) -> None:
        """Ask for a batch."""
        ...

    def take(self) -> Made:
        """Wait for the oldest batch that was asked for, and give it out.

        Raises:
            Exception: what making it raised.
        """
        ...

    def close(self) -> None:
        """Forget what was asked for and end."""
        ...


class InlineWorkers:
    """The consumer makes each batch when it wants it."""

    num_workers = 0

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._asked: deque[tuple[int, Batch]] = deque()

    def submit(self, epoch: int, batch: Batch) -> None:
        """See ``Workers``."""
        self._asked.append((epoch, batch))

    def take(self) -> Made:
        """See ``Workers``."""
        return self._maker(*self._asked.popleft())

    def close(self) -> None:
        """See ``Workers``."""
        self._asked.clear()


class ThreadWorkers:
    """Threads of this process: what they decode needs no way to the consumer."""

    def __init__(self, maker: BatchMaker, num_workers: int) -> None:
        self.num_workers = num_workers
        self._maker = maker
        self._pool = ThreadPoolExecutor(num_workers, "shardkit-loader")
        self._asked: deque[Future[Made]] = deque()

    def submit(self, epoch: int, batch: Batch) -> None:
        """See ``Workers``."""
        self._asked.append(self._pool.submit(self._maker, epoch, batch))

    def take(self) -> Made:
        """See ``Workers``."""
        return self._asked.popleft().result()

    def close(self) -> None:
        """See ``Workers``."""
        self._asked.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


class ProcessWorkers:
    """Processes, for transforms that hold the interpreter: batch i is made by worker i mod n.

    Args:
        maker: picklable, with its transforms and collate.
        num_workers: processes.
        context: multiprocessing start method.
        worker_init: called in each process with its number, before its first batch.
    """

    def __init__(
        self,
        maker: BatchMaker,
        num_workers: int,
        context: str,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        self.num_workers = num_workers
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._asked: deque[int] = deque()
        self._next = 0
        start = multiprocessing.get_context(context)
        try:
            for number in range(num_workers):
                here, there = start.Pipe()
                process = start.Process(  # type: ignore[attr-defined]
                    target=_serve,
                    args=(maker, there, number, worker_init),
                    daemon=True,
                    name=f"shardkit-loader-{number}",
                )
                process.start()
                there.close()
                self._processes.append(process)
                self._connections.append(here)
        except BaseException:
            self.close()
            raise

    def submit(self, epoch: int, batch: Batch) -> None:
        """See ``Workers``."""
        worker = self._next
        self._next = (worker + 1) % self.num_workers
        self._asked.append(worker)
        with contextlib.suppress(BrokenPipeError):  # its death is told where its batch is taken
            self._connections[worker].send((epoch, batch))

    def take(self) -> Made:
        """See ``Workers``.

        Raises:
            WorkerLostError: the worker that had the batch is dead.
        """
        worker = self._asked.popleft()
        connection, process = self._connections[worker], self._processes[worker]
        wait_for([connection, process.sentinel])
        try:
            made = connection.recv()
        except (EOFError, ConnectionError) as error:
            process.join(1.0)
            raise WorkerLostError(
                f"loader worker {worker} is dead (exit code {process.exitcode}): killed for want "
                "of memory, or by a crash in a library; the state has not counted its batch, so "
                "loading it continues without loss. Fewer workers take less memory"
            ) from error
        if isinstance(made, BaseException):
            raise made
        return made  # type: ignore[no-any-return]

    def close(self) -> None:
        """See ``Workers``."""
        self._asked.clear()
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def _serve(
    maker: BatchMaker,
    connection: Connection,
    number: int,
    worker_init: Callable[[int], None] | None,
) -> None:
    """Make batches until the consumer is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the consumer, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    made: Any
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            if worker_init is not None:
                worker_init(number)
        except Exception as error:  # noqa: BLE001 - told to the consumer
            connection.recv()
            connection.send(_portable(error))
            return
        while True:
            epoch, batch = connection.recv()
            try:
                made = maker(epoch, batch)
            except Exception as error:  # noqa: BLE001 - told to the consumer
                made = error
            try:
                connection.send(_portable(made) if isinstance(made, Exception) else made)
            except (AttributeError, TypeError, ValueError) as error:
                connection.send(_portable(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error with the worker's traceback as a note; one that can't be pickled, as its text."""
    text = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error):
            error.add_note(f"in a loader worker:\n{text}")
            return error
    except Exception:  # noqa: BLE001 - many exceptions can't be pickled, each in its own way
        return ShardkitError(f"in a loader worker: {text}")
    return ShardkitError(f"in a loader worker: {text}")
