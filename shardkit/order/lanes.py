"""Lanes: the line of all rows, cut into stretches that canonical positions visit in turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardkit.order.hashing import Int64Array

__all__ = ["Lanes", "cut", "starts_of"]


def cut(size: int, num_parts: int, part: int) -> tuple[int, int]:
    """Cut 0 … size into ``num_parts`` runs, the longer ones first; return [start, stop) of one."""
    quotient, extra = divmod(size, num_parts)
    start = part * quotient + min(part, extra)
    return start, start + quotient + (part < extra)


@dataclass(frozen=True, slots=True)
class Lanes:
    """``num_lanes`` lanes over ``num_samples`` rows: position p is row p div L of lane p mod L."""

    num_samples: int
    num_lanes: int

    def bounds(self, lane: int) -> tuple[int, int]:
        """Return where a lane starts and stops on the line; it has ⌈(N - lane) / L⌉ rows."""
        return cut(self.num_samples, self.num_lanes, lane)

    def line(self, positions: npt.NDArray[np.int64]) -> Int64Array:
        """Map canonical positions to places on the line, before any mixing inside a lane."""
        rows, lanes = np.divmod(positions, self.num_lanes)
        quotient, extra = divmod(self.num_samples, self.num_lanes)
        rows += lanes * quotient
        rows += np.minimum(lanes, extra)
        return rows

    def rows_before(self, lane: int, position: int) -> int:
        """Return how many rows of a lane come at positions before ``position``."""
        return (position - lane + self.num_lanes - 1) // self.num_lanes


def starts_of(counts: Int64Array) -> Int64Array:
    """Return where each group starts when groups of ``counts`` rows are laid in a row."""
    starts = np.zeros(len(counts), np.int64)
    np.cumsum(counts[:-1], out=starts[1:])
    return starts
