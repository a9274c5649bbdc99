"""Small objects become entries one at a time, written by whoever finds nobody writing.

Making a small file is a dozen short system calls, and after each of them Python's threads take
turns again: 16 threads that write at once took 330 us of processor time a file, one alone takes
110. So a thread that has fetched an object leaves it here and fetches the next, unless it is the
one that writes: that one writes what has come meanwhile, too.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Job", "Keeper"]

logger = logging.getLogger(__name__)

_SMALL = 1 << 20
_MOST_WAITING = 32
"""Small objects that may wait for their turn: at most 32 MiB."""

_MOST_IN_TURN = 16
"""Objects that a thread writes for others before it delivers its own: 2 ms."""


class Job:
    """An object in memory that is to be written.

    Args:
        num_bytes: of the object.
        write: writes it; what it raises reaches who asked only if they write it themselves.
        done: called after it, or instead of it, in whichever thread.
    """

    __slots__ = ("done", "num_bytes", "write")

    def __init__(self, num_bytes: int, write: Callable[[], None], done: Callable[[], None]) -> None:
        self.num_bytes = num_bytes
        self.write = write
        self.done = done


class Keeper:
    """Writes jobs, one at a time. Thread-safe.

    Mutable state: jobs that wait (a deque: appending and taking are atomic); the turn to write.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._turn = threading.Lock()

    def keep(self, job: Job) -> None:
        """Write ``job`` now, and others that wait; or leave it to the thread that is writing."""
        wait = job.num_bytes > _SMALL or len(self._waiting) >= _MOST_WAITING
        self._waiting.append(job)
        raised: BaseException | None = None
        num_left = _MOST_IN_TURN
        # again after the turn has ended: what came while it ended was left to nobody
        while self._waiting and self._turn.acquire(blocking=wait):
            try:
                num_left, error = self._write(job, num_left)
                raised = raised or error
            finally:
                self._turn.release()
            if num_left <= 0 and self._waiting:  # this thread has a result to deliver
                threading.Thread(target=self.settle, name="shardkit-keep", daemon=True).start()
                break
        if raised is not None:
            raise raised

    @property
    def is_idle(self) -> bool:
        """Is everything that was left here written?"""
        return not self._waiting and not self._turn.locked()

    def settle(self) -> None:
        """Return when everything that was left here is written."""
        with self._turn:
            while self._waiting:
                self._write(None, _MOST_IN_TURN)

    def _write(self, own: Job | None, most: int) -> tuple[int, BaseException | None]:
        """In turn: write so many jobs; return how many more it could be, and what to raise."""
        raised: BaseException | None = None
        while self._waiting and most > 0:
            job = self._waiting.popleft()
            most -= 1
            try:
                job.write()
            except BaseException as error:  # noqa: BLE001 - its own, or a Ctrl-C: raised at the end
                if job is own or not isinstance(error, Exception):
                    raised = error
                else:
                    logger.warning("an object was fetched and not kept: %s", error)
            finally:
                job.done()
        return most, raised
