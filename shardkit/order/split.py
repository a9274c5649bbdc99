"""The split of an epoch's positions over global batches and ranks: arithmetic, no samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from shardkit.errors import ConfigError
from shardkit.order.hashing import Int64Array
from shardkit.order.lanes import cut

__all__ = ["Remainder", "Split"]

Remainder = Literal["pad", "drop", "keep"]


@dataclass(frozen=True, slots=True)
class Split:
    """How one rank takes part in each global batch of an epoch.

    A batch that starts at position p takes the next G positions, puts them in lane-major order (by
    position mod L, then position) and gives rank r the r-th run; runs differ by at most one
    sample where the world size does not divide G. So the *set* of a global batch is the same for
    any world size, and nodes own disjoint lanes when the number of nodes divides L and L divides G.

    Args:
        num_samples: N.
        global_batch_size: G, at least the world size.
        remainder: what becomes of the last N mod G positions: "pad" repeats the latest
            positions of the epoch, lane by lane, up to a full batch; "drop" leaves them out;
            "keep" makes a short batch, of which some ranks may get nothing.
        rank: from 0.
        world_size: ranks that share the epoch.
        num_lanes: L of the order.
    """

    num_samples: int
    global_batch_size: int
    remainder: Remainder
    rank: int = 0
    world_size: int = 1
    num_lanes: int = 1

    def __post_init__(self) -> None:
        if self.remainder not in get_args(Remainder):
            raise ConfigError(
                f"remainder={self.remainder!r} is not one of {', '.join(get_args(Remainder))}: "
                "choose one"
            )
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank {self.rank} is not in a world of {self.world_size}: ranks count from 0"
            )
        if self.global_batch_size < self.world_size:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} gives some of {self.world_size} ranks "
                "nothing: make it at least the world size"
            )
        if self.num_samples < 0 or self.num_lanes < 1:
            raise ConfigError(
                f"num_samples={self.num_samples} must be at least 0 and "
                f"num_lanes={self.num_lanes} at least 1"
            )

    @classmethod
    def bare(
        cls,
        num_samples: int,
        rank: int = 0,
        world_size: int = 1,
        num_lanes: int = 1,
        *,
        remainder: Remainder = "keep",
    ) -> Split:
        """Deal positions one by one: a global batch is one sample of each rank."""
        return cls(num_samples, world_size, remainder, rank, world_size, num_lanes)

    def num_batches(self, position: int = 0) -> int:
        """Return how many global batches are left from a position; the same on every rank.

        With "keep" the last one may hold nothing for this rank.
        """
        left = max(self.num_samples - position, 0)
        if self.remainder == "drop":
            return left // self.global_batch_size
        return -(-left // self.global_batch_size)

    def num_positions(self, position: int = 0) -> int:
        """Return how many samples and pads this rank gets from a position on."""
        num_full, left = divmod(max(self.num_samples - position, 0), self.global_batch_size)
        share = self._share(self.global_batch_size)
        total = num_full * share
        if left and self.remainder != "drop":
            total += share if self.remainder == "pad" else self._share(left)
        return total

    def batch(self, start: int) -> Int64Array:
        """Return this rank's positions in the batch that starts at ``start``; pads are ≥ N."""
        return start + self.offsets(start % self.num_lanes, self.batch_stop(start) - start)

    def batch_stop(self, start: int) -> int:
        """Return where the batch that starts at ``start`` ends, pads included."""
        stop = start + self.global_batch_size
        return min(stop, self.num_samples) if self.remainder == "keep" else stop

    def offsets(self, phase: int, size: int) -> Int64Array:
        """Return this rank's offsets in a batch of ``size`` that starts at lane ``phase``.

        They are run ``rank`` of the offsets in lane-major order, found without sorting them.
        """
        return lane_major(*cut(size, self.world_size, self.rank), phase, size, self.num_lanes)

    def unpad(self, positions: Int64Array) -> Int64Array:
        """Map pads to the positions whose samples they repeat.

        That is a multiple of L back, within the last G positions of the epoch where N allows: so
        a node needs no lane that is not its own, and no shard that it does not have near.
        """
        period = min(self.num_samples, self.global_batch_size)
        if period > self.num_lanes:
            period -= period % self.num_lanes
        over = np.maximum(positions - (self.num_samples - 1), 0)
        unpadded: Int64Array = positions - -(-over // period) * period
        return unpadded

    def _share(self, size: int) -> int:
        start, stop = cut(size, self.world_size, self.rank)
        return stop - start


def lane_major(start: int, stop: int, phase: int, size: int, num_lanes: int) -> Int64Array:
    """Return places [start, stop) of the lane-major order of ``size`` positions from ``phase``.

    Position ``phase + offset`` lies in lane (phase + offset) mod L. Lanes come in order, offsets of
    a lane in order; found from the lanes' counts, without sorting. Returns offsets, int64.
    """
    if num_lanes == 1:
        return np.arange(start, stop)
    first = (np.arange(num_lanes) - phase) % num_lanes  # the first offset of each lane
    ends = np.cumsum((size - first + num_lanes - 1) // num_lanes)
    places = np.arange(start, stop)
    lanes = np.searchsorted(ends, places, "right")
    starts = np.concatenate(([0], ends[:-1]))
    offsets: Int64Array = first[lanes] + num_lanes * (places - starts[lanes])
    return offsets
