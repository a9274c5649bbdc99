"""The last pass of a reshard: a pack's own tasks, of all datasets, over rows moved elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shardkit.executors import Report
from shardkit.format.sidecar import ShardRecord
from shardkit.index.rows import Rows
from shardkit.pack.spill import SpillPlaces
from shardkit.pack.write import ShardTask

__all__ = ["AllShardsTask", "ReshardTask"]


@dataclass(frozen=True)
class ReshardTask(ShardTask):
    """Makes a shard of rows whose members lie in the source's shards, or in spill files."""

    places: SpillPlaces | None = None

    @classmethod
    def of(cls, task: ShardTask) -> ReshardTask:
        """The task of the same shards."""
        return cls(task.index, task.plan, task.output)

    def rows(self, start: int, stop: int) -> Iterator[Rows]:
        """See ``ShardTask``."""
        for rows in super().rows(start, stop):
            yield rows if self.places is None else self.places.moved(rows, start)
            start += len(rows)


@dataclass(frozen=True)
class AllShardsTask:
    """Makes shard ``item`` of all datasets' shards, counted through.

    ``firsts`` has the number of each dataset's first shard. Returns which dataset it was, and what
    the shard table says of the shard.
    """

    tasks: tuple[ReshardTask, ...]
    firsts: tuple[int, ...]

    def __call__(self, item: int, report: Report) -> tuple[int, ShardRecord]:
        """Write and publish one shard."""
        number = int(np.searchsorted(self.firsts, item, side="right")) - 1
        return number, self.tasks[number](item - self.firsts[number], report)
