"""Stretches of an index's rows, a few thousand at a time: in its own order, or in a random one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardkit.index.index import Index
from shardkit.index.rows import MemberColumn, Rows
from shardkit.order.hashing import make_key
from shardkit.order.permutation import Permutation

__all__ = ["rows_in_order", "rows_shuffled"]

_ROWS_AT_ONCE = 4_096  # rows whose URLs and metadata are Python objects at a time: a few MB
_SHUFFLED_AT_ONCE = 16_384  # each look at a group costs as much as about ten rows of it


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
    permutation = Permutation(index.num_rows, make_key("pack", index.num_rows, seed))
    ends = np.cumsum(index.counts)
    for first in range(start, stop, _SHUFFLED_AT_ONCE):
        places = np.arange(first, min(stop, first + _SHUFFLED_AT_ONCE), dtype=np.int64)
        ids = permutation(places)
        groups = np.searchsorted(ends, ids, side="right")
        yield _gathered(index, groups, ids - (ends - index.counts)[groups])


def _gathered(index: Index, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Rows:
    """The rows at (group, row), in this order; each group is looked at once."""
    by_group = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[by_group])) + 1
    pieces = [index.take(int(groups[piece[0]]), rows[piece]) for piece in np.split(by_group, cuts)]
    back = np.argsort(by_group)  # where the row of each place stands in the pieces
    return _concatenated(pieces, back.tolist())


def _concatenated(pieces: Sequence[Rows], order: Sequence[int]) -> Rows:
    keys = [key for piece in pieces for key in piece.keys]
    names = list(dict.fromkeys(member.name for piece in pieces for member in piece.members))
    return Rows(
        [keys[i] for i in order],
        tuple(_column(name, pieces, order) for name in names),
        pa.concat_tables([piece.metadata for piece in pieces]).take(pa.array(order)),
    )


def _column(name: str, pieces: Sequence[Rows], order: Sequence[int]) -> MemberColumn:
    """A member column over all pieces; a piece without it (a shorter list) has no such members."""
    found = [next((m for m in piece.members if m.name == name), None) for piece in pieces]
    some = next(member for member in found if member is not None)

    def joined(field: str, absent: Any) -> Any:
        values: list[Any] = []
        known = False
        for piece, member in zip(pieces, found, strict=True):
            column = None if member is None else getattr(member, field)
            known = known or column is not None
            values.extend([absent] * len(piece) if column is None else column)
        return [values[i] for i in order] if known else None

    return MemberColumn(
        name,
        joined("exts", ""),
        joined("urls", None),
        starts=joined("starts", 0),
        sizes=joined("sizes", -1),
        checksums=joined("checksums", None),
        values=joined("values", None),
        qualified=some.qualified,
    )
