"""The order of one epoch: a pure function from canonical positions to samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError
from shardkit.order.hashing import Int64Array, make_key
from shardkit.order.lanes import Lanes, starts_of
from shardkit.order.mixing import MAX_BLOCK, MAX_KEYS, BufferMixing
from shardkit.order.permutation import Permutation, permute_groups

__all__ = ["DEFAULT_BUFFER_SIZE", "ORDER_VERSION", "EpochOrder", "Shuffle", "ShuffleOptions"]

# Raised whenever any order of any mode changes: states of other versions are refused mid-epoch.
ORDER_VERSION = 1

# Ten shards of the usual 1,000 samples: past that, neighbour distance grows but label runs of
# sorted data sets do not shrink visibly (docs/order.md has the measurement).
DEFAULT_BUFFER_SIZE = 10_000

# Hashes are scaled to a buffer by their upper 32 bits.
MAX_BUFFER_SIZE = 2**30

# Neighbours in the mixed order come from rows a third of the spread apart on average: with three,
# buffer_size apart, as neighbours do that leave a shuffle buffer of buffer_size samples.
_SPREAD = 3

Shuffle = Literal["none", "shard", "buffer", "global"]


@dataclass(frozen=True, slots=True)
class ShuffleOptions:
    """What the user chose about the order, resolved.

    Attributes:
        shuffle: "none", "shard" (groups permuted, rows in order), "buffer" (that, mixed within
            ``buffer_size``) or "global" (every sample anywhere).
        buffer_size: how far apart, in samples, neighbours in "buffer" mode come from on average,
            as with a shuffle buffer of that size; samples move by up to 1.5 times as far. It
            costs disk, not memory.
        seed: any integer from 0 to 2⁶³ - 1.
        num_lanes: L; the default of a dataset is its number of nodes, 1 for "none".
    """

    shuffle: Shuffle = "buffer"
    buffer_size: int = DEFAULT_BUFFER_SIZE
    seed: int = 0
    num_lanes: int = 1

    def __post_init__(self) -> None:
        if self.shuffle not in get_args(Shuffle):
            raise ConfigError(
                f"shuffle={self.shuffle!r} is not one of {', '.join(get_args(Shuffle))}: choose one"
            )
        _require("buffer_size", self.buffer_size, 1, MAX_BUFFER_SIZE, 'or use shuffle="global"')
        _require("seed", self.seed, 0, 2**63 - 1, "negative seeds have no order")
        _require("num_lanes", self.num_lanes, 1, 2**20, "use the number of nodes")


def _require(name: str, value: object, low: int, high: int, advice: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}={value!r} must be an integer from {low} to {high}: {advice}")


class EpochOrder:
    """Which sample stands at each canonical position of one epoch.

    Deterministic, thread-safe, picklable; O(groups) memory; nothing is drawn from a generator.
    A *sample id* is a number in [0, N): the rank of the sample in its natural order (group by
    group, row by row, selected samples only). ``Selection.locate`` turns ids into rows.

    Args:
        counts: selected samples of each group (shard, or row group of an index), int64[groups].
        options: shuffle, buffer_size, seed, num_lanes.
        epoch: from 0.
        fingerprint: of the data set, and
        selection: of the selection: part of the hash, so that two data sets with equal counts
            still have different orders.
    """

    def __init__(
        self,
        counts: npt.NDArray[np.integer],
        options: ShuffleOptions,
        epoch: int = 0,
        *,
        fingerprint: str = "",
        selection: str = "",
    ) -> None:
        _require("epoch", epoch, 0, 2**63 - 1, "epochs count from 0")
        self.options = options
        self.epoch = epoch
        sizes = counts.astype(np.int64)
        self.num_samples = int(sizes.sum())
        self.lanes = Lanes(self.num_samples, options.num_lanes)
        self._key = make_key("order", ORDER_VERSION, fingerprint, selection, options.seed, epoch)
        self._starts = starts_of(sizes)
        self._groups: Int64Array | None = None
        self._line_starts = self._starts
        self._permutation: Permutation | None = None
        if options.shuffle in ("shard", "buffer"):
            self._groups = permute_groups(len(sizes), make_key("groups", self._key))
            self._line_starts = starts_of(sizes[self._groups])
        elif options.shuffle == "global":
            self._permutation = Permutation(self.num_samples, make_key("samples", self._key))
        self._mixings: dict[int, BufferMixing] = {}

    @property
    def num_lanes(self) -> int:
        """L, the number of lanes."""
        return self.options.num_lanes

    @property
    def block_size(self) -> int:
        """How many positions to ask for at once, so that mixing pays for its buffer rarely."""
        if self.options.shuffle != "buffer":
            return MAX_BLOCK
        return max(MAX_BLOCK, min(self.options.buffer_size // 4, MAX_KEYS // 4))

    def at(self, positions: npt.NDArray[np.int64]) -> Int64Array:
        """Return the sample ids at canonical positions in [0, N), in any order: int64.

        Fast for dense requests of about ``block_size`` positions (millions a second); a lone
        position in "buffer" mode costs a look at ``buffer_size`` / L rows, some 50 µs.

        Raises:
            IndexError: a position is outside the epoch.
        """
        positions = np.asarray(positions, np.int64)
        if not positions.size:
            return positions.copy()
        if positions.min() < 0 or positions.max() >= self.num_samples:
            raise IndexError(
                f"positions {positions.min()} to {positions.max()} are not all in an epoch of "
                f"{self.num_samples} samples"
            )
        if self.options.shuffle == "buffer":
            return self._ids(self._mixed_line(positions))
        return self._ids(self.lanes.line(positions))

    def lane(self, lane: int, start: int, stop: int) -> Int64Array:
        """Return the ids of rows [start, stop) of one lane: int64[stop - start]."""
        return self.at(np.arange(start, stop) * self.num_lanes + lane)

    def groups(self, start: int, stop: int) -> Int64Array:
        """Return the groups that positions [start, stop) may touch, in the order of first need.

        For "global" that can be every group, in no order. In "buffer" mode the groups that come
        around from the end of a lane are listed too.
        """
        start, stop = max(start, 0), min(stop, self.num_samples)
        if stop <= start:
            return np.empty(0, np.int64)
        if self._permutation is not None:
            return np.flatnonzero(np.diff(self._starts, append=self.num_samples))
        slots = [self._slots(*piece) for piece in self._line_pieces(start, stop)]
        if self.num_lanes > 1:  # lane by lane → in turn
            longest = max(map(len, slots))
            padded = np.full((len(slots), longest), -1, np.int64)
            for row, values in zip(padded, slots, strict=True):
                row[: len(values)] = values
            flat = padded.T.ravel()
            flat = flat[flat >= 0]
        else:
            flat = np.concatenate(slots)
        unique, first = np.unique(flat, return_index=True)
        unique = unique[np.argsort(first)]
        return unique if self._groups is None else self._groups[unique]

    def _slots(self, start: int, stop: int) -> Int64Array:
        """Return the slots (places of groups on the line) under line rows [start, stop)."""
        first, last = np.searchsorted(self._line_starts, [start, stop - 1], "right") - 1
        slots = np.arange(first, last + 1)
        ends = np.append(self._line_starts[first + 1 : last + 1], self.num_samples)
        return slots[ends[: len(slots)] > self._line_starts[slots]]

    def _line_pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the stretches of the line that positions [start, stop) may look at."""
        pieces = []
        for lane in range(self.num_lanes):
            first, last = (self.lanes.rows_before(lane, place) for place in (start, stop))
            if first == last:
                continue
            lane_start, lane_stop = self.lanes.bounds(lane)
            reach = self._reach(lane) if self.options.shuffle == "buffer" else 0
            low, high = lane_start + first - reach, lane_start + last + reach
            pieces.append((max(low, lane_start), min(high, lane_stop)))
            if low < lane_start:
                pieces.append((max(lane_stop + low - lane_start, lane_start), lane_stop))
            if high > lane_stop:
                pieces.append((lane_start, min(lane_start + high - lane_stop, lane_stop)))
        return pieces

    def _ids(self, line: Int64Array) -> Int64Array:
        """Map places on the line to sample ids."""
        if self._permutation is not None:
            return self._permutation(line)
        if self._groups is None:
            return line
        slots = np.searchsorted(self._line_starts, line, "right") - 1
        line -= self._line_starts[slots]
        line += self._starts[self._groups[slots]]
        return line

    def _width(self, lane: int) -> int:
        start, stop = self.lanes.bounds(lane)
        return min(-(-_SPREAD * self.options.buffer_size // self.num_lanes), stop - start)

    def _reach(self, lane: int) -> int:
        """Return how far from their place rows are looked for: seven standard deviations."""
        width = self._width(lane)
        return width // 2 + 4 * math.isqrt(width) + 8

    def _mixing(self, lane: int) -> BufferMixing:
        mixing = self._mixings.get(lane)
        if mixing is None:
            start, stop = self.lanes.bounds(lane)
            key = make_key("buffer", self._key)
            mixing = BufferMixing.over(start, stop - start, self._width(lane), key)
            self._mixings[lane] = mixing
        return mixing

    def _mixed_line(self, positions: Int64Array) -> Int64Array:
        """Map positions to places on the line in "buffer" mode, one lane after another."""
        if self.num_lanes == 1:
            return self._mixed_rows(0, positions)
        rows, lanes = np.divmod(positions, self.num_lanes)
        by_lane = np.argsort(lanes.astype(np.int32), kind="stable")
        present, firsts = np.unique(lanes[by_lane], return_index=True)
        line = np.empty_like(rows)
        for lane, places in zip(present.tolist(), np.split(by_lane, firsts[1:]), strict=True):
            line[places] = self._mixed_rows(lane, rows[places])
        return line

    def _mixed_rows(self, lane: int, rows: Int64Array) -> Int64Array:
        """Map rows of a lane to places on the line, in as few dense blocks as they form."""
        mixing = self._mixing(lane)
        low, high = int(rows.min()), int(rows.max()) + 1
        limit = self.block_size
        if high - low <= max(limit, 2 * rows.size):
            return mixing.rows(low, high)[rows - low] + mixing.start
        by_row = np.argsort(rows, kind="stable")
        ordered = rows[by_row]
        line = np.empty_like(rows)
        first = 0
        while first < ordered.size:
            low = int(ordered[first])
            stop = int(np.searchsorted(ordered, low + limit))
            gaps = np.flatnonzero(np.diff(ordered[first:stop]) > mixing.width)
            stop = first + int(gaps[0]) + 1 if gaps.size else stop
            block = mixing.rows(low, int(ordered[stop - 1]) + 1)
            line[by_row[first:stop]] = block[ordered[first:stop] - low] + mixing.start
            first = stop
        return line
