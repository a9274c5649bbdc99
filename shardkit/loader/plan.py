"""Which batches there are, from any place on: what a loader asks of a data set or a mixture.

A *place* says how far a run has come: (epoch, position) of a data set, a ``MixState`` of a mixture.
Places are values; nothing here remembers one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from shardkit.dataset import SampleDataset
from shardkit.loader.work import Feed
from shardkit.order.batches import iterate_batches
from shardkit.order.hashing import Int64Array
from shardkit.order.mix import MixPart
from shardkit.order.split import Remainder, Split
from shardkit.samples.failures import Failures

__all__ = ["DatasetPlan", "Job", "Place", "Plan"]

Place = Any


@dataclass(frozen=True, slots=True)
class Job:
    """One batch of this rank, to be made.

    Attributes:
        parts: its samples, by stream and epoch.
        interleave: int64, the order of the batch over the parts' slots laid in a row; None: as
            they are.
        marks: entries of the batch as a whole.
    """

    parts: tuple[MixPart, ...]
    interleave: Int64Array | None = None
    marks: Mapping[str, Any] = field(default_factory=dict)


class Plan(Protocol):
    """The batches of one rank. Deterministic."""

    @property
    def feeds(self) -> Sequence[Feed]:
        """What the parts of jobs are read from, by their number."""
        ...

    @property
    def failures(self) -> Sequence[Failures]:
        """Where failures of the feeds are counted, by their number."""
        ...

    @property
    def num_lanes(self) -> Sequence[int]:
        """L of the feeds' orders."""
        ...

    def num_batches(self) -> int | None:
        """Count the batches of an epoch; None if it never ends."""
        ...

    def is_over(self, place: Place) -> bool:
        """Whether a place, not at its epoch's start, has no batch behind it."""
        ...

    def jobs(self, place: Place) -> Iterator[tuple[Job, Place]]:
        """Yield each batch to the end of the epoch, and the place when it has been consumed."""
        ...

    def spans_epoch(self, start: Place, stop: Place) -> bool:
        """Whether the batches from one place to another, perhaps, are all that there are.

        Those of an epoch; or, where it never ends, every sample of each feed.
        """
        ...

    def end(self, place: Place) -> Place:
        """Return the place at the end of the epoch whose last batch led to ``place``."""
        ...

    def next_epoch(self, place: Place) -> Place:
        """Return the start of the epoch after that of ``place``."""
        ...

    def ahead(self, place: Place) -> AbstractContextManager[Any]:
        """Bring near what the jobs from a place on will read, while the block runs."""
        ...


class DatasetPlan:
    """See ``Plan``; of one data set.

    Raises:
        ConfigError: the batch size does not fit the world.
    """

    def __init__(
        self, dataset: SampleDataset, global_batch_size: int, remainder: Remainder
    ) -> None:
        world, options = dataset.world, dataset.options
        self.feeds = (Feed("", dataset.stream, dataset.on_error, options),)
        self.failures = (dataset.failures,)
        self.num_lanes = (options.num_lanes,)
        self._dataset = dataset
        self._split = Split(
            dataset.num_samples,
            global_batch_size,
            remainder,
            world.rank,
            world.world_size,
            options.num_lanes,
        )

    def num_batches(self) -> int:
        """See ``Plan``; a last batch that has nothing for this rank ("keep") does not count."""
        split = self._split
        total = split.num_batches()
        last = (total - 1) * split.global_batch_size
        return total - 1 if total and not len(split.batch(last)) else total

    def is_over(self, place: tuple[int, int]) -> bool:
        """See ``Plan``."""
        return place[1] > 0 and not self._split.num_batches(place[1])

    def jobs(self, place: tuple[int, int]) -> Iterator[tuple[Job, tuple[int, int]]]:
        """See ``Plan``."""
        epoch, position = place
        for batch in iterate_batches(self._dataset.order(epoch), self._split, position):
            if len(batch.ids):
                part = MixPart(0, epoch, batch.positions, batch.ids, batch.is_pad)
                yield Job((part,)), (epoch, batch.stop)

    def spans_epoch(self, start: tuple[int, int], stop: tuple[int, int]) -> bool:
        """See ``Plan``."""
        return start[1] == 0 and stop[1] == self._dataset.num_samples

    def end(self, place: tuple[int, int]) -> tuple[int, int]:
        """See ``Plan``."""
        return place[0], self._dataset.num_samples

    def next_epoch(self, place: tuple[int, int]) -> tuple[int, int]:
        """See ``Plan``."""
        return place[0] + 1, 0

    def ahead(self, place: tuple[int, int]) -> AbstractContextManager[None]:
        """See ``Plan``."""
        stream = self._dataset.stream
        places = (stream.selection.locate(job.parts[0].ids) for job, _ in self.jobs(place))
        return stream.source.ahead(iter([places]), self._dataset.groups_after(place[0]))
