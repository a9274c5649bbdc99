"""Processes that make batches, for transforms that hold the interpreter."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.reduction import recv_handle
from typing import Any

from shardkit.errors import ConfigError, ShardkitError
from shardkit.loader.plan import Job
from shardkit.loader.segments import Lender
from shardkit.loader.serve import Reply, serve
from shardkit.loader.stats import CacheCounts, sum_counts
from shardkit.loader.work import BatchMaker, Made

__all__ = ["ProcessWorkers", "WorkerLostError"]

_PRELOADED = "shardkit.loader.serve"
"""What the fork server imports once for all its children; torch with it, which takes seconds."""


class WorkerLostError(ShardkitError, RuntimeError):
    """A loader process was killed; its batch is not lost: the state has not counted it."""


@dataclass(slots=True)
class _Worker:
    """A process, and what it was asked for: tickets and the segments lent for them, in order."""

    process: Any
    connection: Connection
    lender: Lender = field(default_factory=Lender)
    asked: deque[tuple[int, int | None]] = field(default_factory=deque)
    cache: CacheCounts = field(default_factory=CacheCounts)


class ProcessWorkers:
    """A batch is made by the process that has the least to do; see ``Workers``.

    Batches come through shared memory (``segments``), messages through a socket.

    Args:
        maker: picklable, with its transforms and collate.
        num_workers: processes.
        context: multiprocessing start method.
        worker_init: called in each process with its number, before its first batch.

    Raises:
        ConfigError: something of the maker can't be pickled for another process, or processes
            can't be started so from a forked one.
    """

    def __init__(
        self,
        maker: BatchMaker,
        num_workers: int,
        context: str,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        self._workers: list[_Worker] = []
        self._tickets = itertools.count()
        self._order: deque[tuple[int, _Worker]] = deque()  # asked for and not taken
        self._replies: dict[int, Reply | Exception] = {}  # that have come before their turn
        self._end = weakref.finalize(self, _kill, os.getpid(), self._workers)
        start = multiprocessing.get_context(context)
        if context == "fork":
            maker = maker.with_fresh_sources()
        if context == "forkserver":
            _preload(start)
        try:
            for number in range(num_workers):
                here, there = start.Pipe()
                process = start.Process(  # type: ignore[attr-defined]
                    target=serve,
                    args=(maker, there, number, worker_init),
                    daemon=True,
                    name=f"shardkit-loader-{number}",
                )
                with contextlib.closing(there):
                    self._workers.append(_Worker(process, here))
                    process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise ConfigError(
                f"a decoder, transform, collate_fn or worker_init_fn can't be sent to a {context} "
                f"process: {error}. Define it at the top of a module, or use workers='threads' or "
                "multiprocessing_context='fork'"
            ) from error
        except ChildProcessError as error:
            self.close()
            raise ConfigError(
                "the fork server is another process's child: this one was forked from a process "
                "that has loader processes of its own. Use multiprocessing_context='spawn' here, "
                "or workers='threads'"
            ) from error
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        """See ``Workers``."""
        self._receive(0)
        least = min(len(worker.asked) for worker in self._workers)
        worker = next(worker for worker in self._workers if len(worker.asked) == least)
        self._workers.append(self._workers.pop(self._workers.index(worker)))  # in turn if equal
        ticket = next(self._tickets)
        segment, dropped = worker.lender.lend()
        worker.asked.append((ticket, segment))
        self._order.append((ticket, worker))
        try:
            worker.connection.send((job, segment, dropped))
        except (BrokenPipeError, ConnectionResetError) as error:
            self._lose(worker, error)

    def take(self) -> Made:
        """See ``Workers``.

        Raises:
            WorkerLostError: the worker that had the batch is dead.
        """
        ticket, worker = self._order.popleft()
        while ticket not in self._replies:
            self._receive(None)
        reply = self._replies.pop(ticket)
        if isinstance(reply, Exception):
            raise reply
        made = reply.made
        made.value = worker.lender.read(reply.parcel)
        return made

    def cache_counts(self) -> CacheCounts:
        """See ``Workers``."""
        return sum_counts(worker.cache for worker in self._workers)

    def close(self) -> None:
        """See ``Workers``."""
        self._order.clear()
        self._replies.clear()
        self._end()

    def _receive(self, timeout: float | None) -> None:
        """Take in what workers have sent; with None, wait until there is something."""
        busy = {worker.connection: worker for worker in self._workers if worker.asked}
        sentinels = {worker.process.sentinel: worker for worker in busy.values()}
        ready = wait_for([*busy, *sentinels], timeout)
        found = {id(one): one for one in (busy.get(r) or sentinels.get(r) for r in ready) if one}  # type: ignore[call-overload]
        for worker in found.values():
            try:
                if not worker.connection.poll():
                    raise EOFError  # dead, and it said nothing
                self._receive_from(worker)
            except (EOFError, ConnectionError, pickle.UnpicklingError) as error:
                self._lose(worker, error)

    def _receive_from(self, worker: _Worker) -> None:
        reply = worker.connection.recv()
        ticket, lent = worker.asked[0]
        if isinstance(reply, Reply):
            fd = recv_handle(worker.connection) if reply.parcel.is_new else None
            worker.lender.received(reply.parcel, lent, fd)
            worker.cache = reply.cache
        else:
            worker.lender.give_back(lent)
        worker.asked.popleft()
        self._replies[ticket] = reply

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """Answer all that a dead worker was asked for."""
        worker.process.join(1.0)
        lost = WorkerLostError(
            f"{worker.process.name} is dead (exit code {worker.process.exitcode}): "
            f"{_reason(worker.process.exitcode)}. The state has not counted its batches, so "
            "loader.load_state_dict(loader.state_dict()) continues without loss"
        )
        lost.__cause__ = error
        while worker.asked:
            ticket, _ = worker.asked.popleft()
            self._replies[ticket] = lost


def _reason(exitcode: int | None) -> str:
    """What usually ends a process so."""
    if exitcode == 1 and not hasattr(sys.modules["__main__"], "__file__"):
        return (
            "it could not start, and wrote why to the standard error; it can't import what a "
            "notebook or a prompt defines: put that into a module, or use workers='threads' or "
            "multiprocessing_context='fork'"
        )
    if exitcode == 1:
        return (
            "it could not start, and wrote why to the standard error; a script that starts "
            'processes runs its own part under `if __name__ == "__main__":`'
        )
    return "killed for want of memory (fewer workers take less), or by a crash in a library"


def _preload(start: Any) -> None:
    """Have the fork server import us before it forks, besides what was asked of it already."""
    modules = list(getattr(forkserver._forkserver, "_preload_modules", ["__main__"]))  # noqa: SLF001
    if _PRELOADED not in modules:
        start.set_forkserver_preload([*modules, _PRELOADED])


def _kill(pid: int, workers: Sequence[_Worker]) -> None:
    if os.getpid() != pid:
        return  # a forked child has the object; the processes are its parent's
    for worker in workers:
        worker.connection.close()
    started = [worker.process for worker in workers if worker.process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()
        process.close()
