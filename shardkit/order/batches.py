"""A rank's batches of an epoch, with their sample ids, computed many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError
from shardkit.order.epoch import EpochOrder
from shardkit.order.hashing import Int64Array
from shardkit.order.split import Split

__all__ = ["Batch", "Block", "iterate_batches", "iterate_blocks"]

# The first block is small, so that a fresh or resumed epoch starts at once.
_FIRST_BLOCK = 4096

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch.

    Attributes:
        start: canonical position at which the global batch starts.
        stop: position to resume from when it has been consumed; N after the last one.
        positions: int64, this rank's positions; pads are ≥ N.
        ids: int64, their samples.
        is_pad: bool, whether the sample is a repetition.
    """

    start: int
    stop: int
    positions: Int64Array
    ids: Int64Array
    is_pad: BoolArray


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive batches of one rank and worker in flat arrays.

    Attributes:
        positions: int64[n], as in ``Batch``, of all batches in a row.
        ids: int64[n].
        is_pad: bool[n].
        bounds: int64[batches + 1], where each batch begins in these arrays.
        starts: int64[batches], canonical position before each batch.
        stops: int64[batches], canonical position to resume from after it.
    """

    positions: Int64Array
    ids: Int64Array
    is_pad: BoolArray
    bounds: Int64Array
    starts: Int64Array
    stops: Int64Array

    def batches(self) -> Iterator[Batch]:
        """Yield the batches one by one (views, no copies)."""
        bounds = self.bounds.tolist()
        ends = zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        for number, (start, stop) in enumerate(ends):
            part = slice(bounds[number], bounds[number + 1])
            yield Batch(start, stop, self.positions[part], self.ids[part], self.is_pad[part])


def iterate_batches(
    order: EpochOrder, split: Split, position: int = 0, *, worker: int = 0, num_workers: int = 1
) -> Iterator[Batch]:
    """Yield this rank's batches from a position to the end of the epoch.

    With ``num_workers`` > 1 only every num_workers-th batch from number ``worker`` on.

    Raises:
        ConfigError: order and split are not of the same epoch, or the position is outside it.
    """
    for block in iterate_blocks(order, split, position, worker=worker, num_workers=num_workers):
        yield from block.batches()


def iterate_blocks(
    order: EpochOrder, split: Split, position: int = 0, *, worker: int = 0, num_workers: int = 1
) -> Iterator[Block]:
    """Yield the same batches in blocks of about ``order.block_size`` canonical positions."""
    _check(order, split, position, worker, num_workers)
    size = split.global_batch_size
    number, num_batches = worker, split.num_batches(position)
    num_positions = _FIRST_BLOCK
    while number < num_batches:
        stop = min(num_batches, number + max(num_workers, num_positions // size))
        numbers = np.arange(number, stop, num_workers)
        yield _block(order, split, position + numbers * size)
        number = int(numbers[-1]) + num_workers
        num_positions = min(4 * num_positions, order.block_size)


def _check(order: EpochOrder, split: Split, position: int, worker: int, num_workers: int) -> None:
    if (order.num_samples, order.num_lanes) != (split.num_samples, split.num_lanes):
        raise ConfigError(
            f"an order of {order.num_samples} samples in {order.num_lanes} lanes can't be split as "
            f"{split.num_samples} in {split.num_lanes}: make both from the same values"
        )
    if not 0 <= position <= order.num_samples:
        raise ConfigError(f"position {position} is outside an epoch of {order.num_samples} samples")
    if not 0 <= worker < num_workers:
        raise ConfigError(f"worker {worker} is not one of {num_workers}: workers count from 0")


def _block(order: EpochOrder, split: Split, starts: Int64Array) -> Block:
    """Build the batches that start at ``starts``; only the last one may be short."""
    size = split.global_batch_size
    last_size = split.batch_stop(int(starts[-1])) - int(starts[-1])
    full = starts if last_size == size else starts[:-1]
    phases, which = np.unique(full % split.num_lanes, return_inverse=True)
    pieces = []
    length = 0
    if full.size:
        table = np.stack([split.offsets(phase, size) for phase in phases.tolist()])
        length = table.shape[1]
        pieces.append((full[:, None] + table[which]).ravel())
    if last_size < size:
        pieces.append(split.batch(int(starts[-1])))
    positions = np.concatenate(pieces)
    bounds = np.arange(starts.size + 1) * length
    bounds[-1] = positions.size
    is_pad = positions >= split.num_samples
    ids = order.at(split.unpad(positions) if is_pad.any() else positions)
    stops = np.minimum(starts + size, split.num_samples)
    if split.num_batches(int(stops[-1])) == 0:
        stops[-1] = split.num_samples  # past the positions that "drop" leaves out
    return Block(positions, ids, is_pad, bounds, starts, stops)
