"""Which sample when: pure functions of (fingerprint, selection, seed, epoch, options).

Everything here takes and returns values: no store, no clock, no torch, no generator. A *position*
is a place in the canonical order of an epoch, 0 … N-1; a *sample id* is the rank of a sample in
natural order (group by group, row by row, selected samples only), also 0 … N-1.

The order of an epoch (``epoch.py``)::

    options = ShuffleOptions("buffer", buffer_size=10_000, seed=0, num_lanes=2)
    order = EpochOrder(selection.counts, options, epoch, fingerprint=…, selection=selection.key)
    order.num_samples, order.num_lanes, order.block_size
    order.at(positions)              # int64 ids, any positions; millions a second in bulk
    order.lane(lane, start, stop)    # int64 ids of rows of a lane
    order.groups(start, stop)        # groups that positions may touch, by first need: what to fetch
    sample_seeds(seed, epoch, positions)                   # uint64, one per position

Its split over ranks (``split.py``, ``batches.py``)::

    split = Split(num_samples, global_batch_size, "pad", rank, world_size, num_lanes)
    split = Split.bare(num_samples, rank, world_size, num_lanes, remainder="keep")
    split.num_batches(position=0)    # left from a position; equal on all ranks but for "keep"
    split.num_positions(position=0)  # this rank's samples and pads from a position
    for batch in iterate_batches(order, split, position=0, worker=0, num_workers=1):
        batch.start, batch.stop      # position before it, and to resume from after it
        batch.positions              # int64; those ≥ N are pads
        batch.ids, batch.is_pad      # int64, bool; a pad's id repeats a sample of the epoch
    for block in iterate_blocks(order, split, position=0, worker=0, num_workers=1):
        block.positions, block.ids, block.is_pad   # many batches at once, for bare iteration
        block.bounds                 # batch i is [bounds[i], bounds[i + 1]) of these arrays
        block.starts, block.stops    # int64 per batch: positions before and after

Which rows there are (``selection.py``)::

    selection = Selection.all(counts)                      # every row, O(groups) memory
    key = selection_key(dataset_fingerprint, where, …)     # names the file and guards it
    write_selection(path, row_counts, chunks, key=key)     # chunks: bool, or copies per row
    selection = open_selection(path, row_counts, key=key)  # memory-mapped, ≤ N/8 bytes a copy
    selection.counts, selection.num_samples, selection.key
    selection.locate(ids)            # → (group int64[], row int64[]) in the index
    copies_of(weights, seed=0, start=0)                    # weights → copies, deterministic

Its state (``state.py``)::

    state = State(fingerprint=…, selection=…, num_samples=…, epoch=…, position=…, …)
    state.to_dict(); State.from_dict(mapping)              # plain JSON values; every field checked
    epoch, position = state.check(fingerprint=…, selection=…, num_samples=…, extends=…)
                                                           # where to go on; StateError says why not
    state.options()                                        # the ShuffleOptions it was made with
    state.explain()                                        # in words

Several data sets (``schedule.py``, ``draws.py``, ``mix.py``, ``mix_count.py``)::

    streams = [MixStream("photos", num_samples, weight=0.6, num_lanes=2), …]
    mix = MixOrder(streams, MixOptions(by="sample", schedule="balanced", ends="first", …),
                   global_batch_size, rank, world_size)
    state = mix.start()                                    # or mix.from_dict(mapping)
    for batch in mix.iterate(state, order_of):             # order_of(stream, epoch) → EpochOrder
        batch.parts                  # MixPart(stream, epoch, positions, ids, is_pad) of this rank
        batch.interleave             # int64: the batch's order over the parts' samples, in a row
        batch.num_rounds_left        # of a turn that accumulates
        batch.state                  # MixState to resume from after it; mix.to_dict(state)
    state = mix.next_epoch(state)                          # streams go on where they are
    count_batches(mix)                                     # None for ends="never"

Shuffle quality (``quality.py``)::

    measure_quality(ids, num_samples)                      # → Quality, each figure beside the ideal
    measure_stretches(ids, num_samples, length)            # epoch, start, middle, end
"""

from __future__ import annotations

from shardkit.order.batches import Batch, Block, iterate_batches, iterate_blocks
from shardkit.order.epoch import (
    DEFAULT_BUFFER_SIZE,
    ORDER_VERSION,
    EpochOrder,
    Shuffle,
    ShuffleOptions,
)
from shardkit.order.hashing import make_key, sample_seeds
from shardkit.order.mix import MixBatch, MixOrder, MixPart
from shardkit.order.mix_count import count_batches
from shardkit.order.mix_state import MixBy, MixEnds, MixOptions, MixState, MixStream, StreamState
from shardkit.order.quality import Quality, measure_quality, measure_stretches
from shardkit.order.schedule import Schedule, ScheduleName
from shardkit.order.selection import (
    Selection,
    copies_of,
    open_selection,
    selection_key,
    write_selection,
)
from shardkit.order.split import Remainder, Split
from shardkit.order.state import State

__all__ = [
    "DEFAULT_BUFFER_SIZE",
    "ORDER_VERSION",
    "Batch",
    "Block",
    "EpochOrder",
    "MixBatch",
    "MixBy",
    "MixEnds",
    "MixOptions",
    "MixOrder",
    "MixPart",
    "MixState",
    "MixStream",
    "Quality",
    "Remainder",
    "Schedule",
    "ScheduleName",
    "Selection",
    "Shuffle",
    "ShuffleOptions",
    "Split",
    "State",
    "StreamState",
    "copies_of",
    "count_batches",
    "iterate_batches",
    "iterate_blocks",
    "make_key",
    "measure_quality",
    "measure_stretches",
    "open_selection",
    "sample_seeds",
    "selection_key",
    "write_selection",
]
