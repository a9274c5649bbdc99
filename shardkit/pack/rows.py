"""Stretches of an index's rows, a few thousand at a time: in its own order, or in a random one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shardkit.index.gather import gather_rows
from shardkit.index.index import Index
from shardkit.index.rows import Rows
from shardkit.order.hashing import make_key
from shardkit.order.permutation import Permutation

__all__ = ["pack_order", "rows_in_order", "rows_shuffled"]

_ROWS_AT_ONCE = 4_096  # rows whose URLs and metadata are Python objects at a time: a few MB
_SHUFFLED_AT_ONCE = 16_384  # each look at a group costs as much as about ten rows of it


def pack_order(num_rows: int, seed: int) -> Permutation:
    """The random order of this seed: from a row's place in the shards to its number."""
    return Permutation(num_rows, make_key("pack", num_rows, seed))


def rows_in_order(index: Index, start: int, stop: int) -> Iterator[Rows]:
    """Rows ``[start, stop)`` of the whole index."""
    ends = np.cumsum(index.counts)
    group = int(np.searchsorted(ends, start, side="right"))
    while start < stop:
        first = int(ends[group] - index.counts[group])
        until = min(stop, int(ends[group]))
        while start < until:
            piece = min(until, start + _ROWS_AT_ONCE)
            yield index.read(group, start - first, piece - first)
            start = piece
        group += 1


def rows_shuffled(index: Index, seed: int, start: int, stop: int) -> Iterator[Rows]:
    """Rows ``[start, stop)`` of the index in the random order of this seed.

    ``index`` is to be a mapped one: the rows of a shard are spread over all its groups.
    """
    permutation = pack_order(index.num_rows, seed)
    ends = np.cumsum(index.counts)
    for first in range(start, stop, _SHUFFLED_AT_ONCE):
        places = np.arange(first, min(stop, first + _SHUFFLED_AT_ONCE), dtype=np.int64)
        ids = permutation(places)
        groups = np.searchsorted(ends, ids, side="right")
        yield gather_rows(index, groups, ids - (ends - index.counts)[groups])
