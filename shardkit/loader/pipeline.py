"""Batches that were asked for and not yet taken: always as many as should be, in order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator

from shardkit.loader.plan import Job, Place, Plan
from shardkit.loader.work import Made
from shardkit.loader.workers import Workers

__all__ = ["Pipeline"]


class Pipeline:
    """Asks workers for batches ahead of use, across the ends of epochs, for one consumer.

    Args:
        plan: which batches there are.
        workers: who makes them; closed with this.
        num_ahead: batches that are asked for and not taken.
        place: where to begin.
        goes_on: whether the next epoch is begun before this one is consumed.

    Attributes:
        at: the place of the next batch that will be given out.
    """

    def __init__(
        self, plan: Plan, workers: Workers, num_ahead: int, place: Place, *, goes_on: bool
    ) -> None:
        self.at = place
        self._plan = plan
        self._workers = workers
        self._num_ahead = num_ahead
        self._goes_on = goes_on
        self._planned = self._jobs(place)
        self._asked: deque[Place | None] = deque()  # the place behind each batch; None: epoch ends
        self._num_asked = 0
        # What is brought near for each epoch that has begun, until its last batch is taken.
        self._near: deque[contextlib.ExitStack] = deque()

    def take(self) -> tuple[Made, Place] | None:
        """Return the next batch and the place behind it, None at the end of the epoch.

        Raises:
            Exception: what making the batch raised.
        """
        self._fill()
        behind = self._asked.popleft()
        if behind is None:
            self.at = self._plan.next_epoch(self.at)
            self._near.popleft().close()
            return None
        self._num_asked -= 1
        made = self._workers.take()
        self.at = behind
        self._fill()
        return made, behind

    def close(self) -> None:
        """End the workers, and what fetches ahead for them."""
        self._workers.close()
        self._planned.close()
        while self._near:
            self._near.popleft().close()

    def _fill(self) -> None:
        """Ask for batches, of this epoch and the next; of few more where epochs are tiny."""
        while self._num_asked < self._num_ahead and len(self._near) <= 2:
            planned = next(self._planned, None)
            if planned is None:
                return
            job, behind = planned
            self._asked.append(behind)
            if job is not None:
                self._num_asked += 1
                self._workers.submit(job)

    def _jobs(self, place: Place) -> Generator[tuple[Job | None, Place | None], None, None]:
        while True:
            near = contextlib.ExitStack()
            self._near.append(near)
            near.enter_context(self._plan.ahead(place))
            for job, behind in self._plan.jobs(place):
                place = behind
                yield job, behind
            yield None, None
            if not self._goes_on:
                return
            place = self._plan.next_epoch(place)
