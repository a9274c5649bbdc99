"""What an open cache holds in one process, and how it is closed where nobody does so."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.util
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from shardkit.errors import CacheError, ShardkitError
from shardkit.storage.filesystems import filesystem_of, is_network_path
from shardkit.storage.flights import Flights
from shardkit.storage.folder import Folder
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.keeping import Keeper
from shardkit.storage.policies import Policy
from shardkit.storage.space import Space
from shardkit.storage.writing import Writer

__all__ = ["Opened", "close_with_process", "dropped"]

logger = logging.getLogger(__name__)


class Opened:
    """See the module's; ``passed`` is called for each object that found no room."""

    def __init__(
        self, root: str, limit: int | None, policy: Policy, passed: Callable[[], None]
    ) -> None:
        if is_network_path(root):
            raise CacheError(
                f"cache_dir={root!r} lies on a network filesystem ({filesystem_of(root)}), where "
                "locks cannot be trusted; choose a folder on a disk of this machine, such as "
                "a scratch disk (each node keeps its own cache)"
            )
        self.pid = os.getpid()
        self.folder = Folder(root)
        try:
            self.folder.make()
            self.flights = Flights(self.folder.flights)
            self.space = Space(self.folder, limit, policy)
            self.segments = self.space.segments
            self.writer = Writer(self.space, limit, root, passed)
            self.keeper = Keeper(self.writer.write_jobs)
        except OSError as error:
            if isinstance(error, CacheError):
                raise
            raise CacheError(f"cannot open the cache in {root}: {error}") from error

    def close(self) -> None:
        """Record everything, give all room back."""
        self.keeper.settle()
        self.keeper.rest()
        try:
            self.space.close()
        finally:
            self.keeper.go_on()
        self.flights.close()

    def abandon(self) -> None:
        """In a forked child: leave it to the parent."""
        self.flights.close()
        self.space.abandon()


class _Dropped:
    """Open caches that nobody has any more, and that are to be closed.

    By a thread, since the collector may come at any moment; at once before a fork, since no ledger
    may be open then, and when the process ends. Mutable state: those that wait (a deque); the turn
    to close.
    """

    def __init__(self) -> None:
        self._waiting: deque[Opened] = deque()
        self._turn = threading.Lock()
        start_anew_in_children(self)

    def add(self, opened: Opened) -> None:
        """Close it soon."""
        if os.getpid() != opened.pid:
            opened.abandon()
            return
        self._waiting.append(opened)
        if not threading.main_thread().is_alive():  # the interpreter ends: a thread would not run
            self._close_all()
            return
        with contextlib.suppress(RuntimeError):  # no more threads: it ends with the process
            threading.Thread(target=self._close_all, name="shardkit-close", daemon=True).start()

    def close(self, opened: Opened) -> None:
        """Close it now."""
        self._waiting.append(opened)
        self._close_all()

    def rest_for_fork(self) -> None:
        """Close what waits, and nothing more until the fork is over."""
        self._turn.acquire()
        self._close_waiting()

    def go_on_after_fork(self) -> None:
        """Go on, in the parent."""
        self._turn.release()

    def forget_parent(self) -> None:
        """In a forked child: there is nothing to close."""
        self._turn = threading.Lock()
        self._waiting = deque()

    def _close_all(self) -> None:
        with self._turn:
            self._close_waiting()

    def _close_waiting(self) -> None:
        while self._waiting:
            try:
                self._waiting.popleft().close()
            except (OSError, ShardkitError) as error:
                logger.debug("a cache that was dropped could not be closed: %s", error)


dropped = _Dropped()


def close_with_process(end: weakref.finalize[..., Any]) -> None:
    """Have a finalizer that adds to ``dropped`` close at the normal end of this process, too.

    The interpreter's end calls finalizers, but children of ``multiprocessing`` end without it.
    """
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _close_now, (end,), exitpriority=10)


def _close_now(end: weakref.finalize[..., Any]) -> None:
    alive = end.detach()
    if alive is not None:
        dropped.close(alive[2][0])
