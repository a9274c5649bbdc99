"""Rows of an index from anywhere in it, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardkit.index.index import Index
from shardkit.index.rows import MemberColumn, Rows

__all__ = ["gather_rows"]


def gather_rows(index: Index, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Rows:
    """The rows at (group, row), in this order; each group is looked at once."""
    if len(groups) and (groups[0] == groups).all():
        return index.take(int(groups[0]), rows)
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
