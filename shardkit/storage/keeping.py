"""Small objects become entries a few at a time, written by whoever finds nobody writing.

After each of the system calls that writing takes, Python's threads take turns: 16 threads that
wrote files at once took three times the processor time of one. So a thread that has fetched an
object leaves it here and fetches the next, unless it is the one that writes: that one writes what
has come meanwhile, too, in one go.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from shardkit.storage.segments import Packed

__all__ = ["Job", "Keeper"]

_SMALL = 1 << 20
_MOST_WAITING = 32
"""Small objects that may wait for their turn: at most 32 MiB."""

_MOST_IN_TURN = 16
"""Objects that a thread writes for others before it delivers its own: 1 ms."""


class Job:
    """An object in memory that is to be written.

    Args:
        packed: the object.
        tell: called once, in whichever thread wrote it, with the reason if it was not written.
        is_file: it is to be a file of its own.

    Attributes:
        error: why it was not written.
    """

    __slots__ = ("error", "is_file", "packed", "tell")

    def __init__(
        self, packed: Packed, tell: Callable[[Exception | None], None], *, is_file: bool
    ) -> None:
        self.packed = packed
        self.tell = tell
        self.is_file = is_file
        self.error: Exception | None = None


class Keeper:
    """Writes jobs, some at a time. Thread-safe.

    Args:
        write: writes jobs, and gives those that it can't write their error.

    Mutable state: jobs that wait (a deque: appending and taking are atomic); the turn to write.
    """

    def __init__(self, write: Callable[[Sequence[Job]], None]) -> None:
        self._write = write
        self._waiting: deque[Job] = deque()
        self._turn = threading.Lock()

    def keep(self, jobs: Sequence[Job]) -> None:
        """Write ``jobs`` now, and others that wait; or leave them to the thread that is writing."""
        wait = len(self._waiting) >= _MOST_WAITING or any(
            len(job.packed.data) > _SMALL for job in jobs
        )
        self._waiting.extend(jobs)
        num_left = _MOST_IN_TURN
        # again after the turn has ended: what came while it ended was left to nobody
        while self._waiting and self._turn.acquire(blocking=wait):
            try:
                num_left -= self._write_waiting()
            finally:
                self._turn.release()
            if num_left <= 0 and self._waiting and self._hand_over():
                break  # this thread has results to deliver

    def rest(self) -> None:
        """Write nothing until ``go_on``."""
        self._turn.acquire()

    def go_on(self) -> None:
        """Write again, first what came meanwhile."""
        self._turn.release()
        if self._waiting and not self._hand_over():
            self.settle()

    @property
    def is_idle(self) -> bool:
        """Is everything that was left here written?"""
        return not self._waiting and not self._turn.locked()

    def settle(self) -> None:
        """Return when everything that was left here is written."""
        while True:
            with self._turn:
                while self._waiting:
                    self._write_waiting()
            if not self._waiting:  # else it came while the turn ended, and was left to nobody
                return

    def _hand_over(self) -> bool:
        """Have a thread of its own write what waits; not where no more can be started."""
        try:
            threading.Thread(target=self.settle, name="shardkit-keep", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _write_waiting(self) -> int:
        """In turn: write what waits, not too much of it; return how many objects that was."""
        jobs: list[Job] = []
        try:
            while self._waiting and len(jobs) < _MOST_IN_TURN:
                jobs.append(self._waiting.popleft())
            self._write(jobs)
        finally:
            for job in jobs:
                job.tell(job.error)
        return len(jobs)
