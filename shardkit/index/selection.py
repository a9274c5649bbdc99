"""Which rows a filter left: counts per group, and a bitmap that is mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128

from shardkit.errors import IndexDataError
from shardkit.index.scratch import Carried, Scratch

__all__ = ["Selection", "keep_selection"]

_READ_BYTES = 8 << 20


class Selection:
    """Selected rows of every group. Thread-safe; picklable, with its file if that is small.

    The file holds one bit a row, groups padded to whole bytes, low bit first: at most N/8 bytes
    and one byte a group. Memory is O(groups).

    Attributes:
        counts: int64 [num_groups]; selected rows per group.
        identity: hash of the expression and of which rows it left.
    """

    def __init__(
        self,
        path: str,
        raw_counts: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        identity: str,
    ) -> None:
        self.counts = counts
        self.identity = identity
        self._path = path
        self._raw_counts = raw_counts
        self._stops = np.cumsum((raw_counts + 7) // 8)
        self._bits: npt.NDArray[np.uint8] | None = None  # opened on first use
        self._last: tuple[int, npt.NDArray[np.int64]] | None = None  # replaced whole

    def __reduce__(self) -> tuple[Any, ...]:
        file = Carried.of(self._path)
        return _arrived, (file, self._raw_counts, self.counts, self.identity)

    def rows(self, group: int) -> npt.NDArray[np.int64]:
        """Return the selected rows of a group, ascending, as numbers within the whole group."""
        last = self._last
        if last is not None and last[0] == group:
            return last[1]
        start = int(self._stops[group - 1]) if group else 0
        packed = self._map()[start : int(self._stops[group])]
        found = np.flatnonzero(np.unpackbits(packed, bitorder="little")).astype(np.int64)
        self._last = (group, found)
        return found

    def _map(self) -> npt.NDArray[np.uint8]:
        if self._bits is None:
            if not len(self._stops) or not self._stops[-1]:
                return np.zeros(0, dtype=np.uint8)
            try:
                self._bits = np.memmap(self._path, dtype=np.uint8, mode="r")
            except FileNotFoundError as error:
                raise IndexDataError(
                    f"{self._path}, where the filtered rows were noted, is gone; open the index "
                    "again (and give scratch= a folder that stays and that every node sees)"
                ) from error
        return self._bits


def keep_selection(
    scratch: Scratch,
    name: str,
    raw_counts: npt.NDArray[np.int64],
    make: Callable[[], Iterator[npt.NDArray[np.bool_]]],
) -> Selection:
    """The selection that is kept in ``scratch`` under a name, which says all that decides it.

    If it is not there yet, ``make`` yields whether each row takes part, group by group.
    """

    def fill(part: str) -> None:
        with open(part, "wb") as file:
            file.writelines(np.packbits(taken, bitorder="little").tobytes() for taken in make())

    path = scratch.keep(f"{name}.bits", fill)
    digest = xxh3_128()
    counts = np.zeros(len(raw_counts), dtype=np.int64)
    with open(path, "rb") as file:
        for first, stop in _runs((raw_counts + 7) // 8):
            widths = (raw_counts[first:stop] + 7) // 8
            data = file.read(int(widths.sum()))
            digest.update(data)
            ones = np.bitwise_count(np.frombuffer(data, dtype=np.uint8))
            before = np.concatenate([[0], np.cumsum(ones, dtype=np.int64)])
            ends = np.cumsum(widths)
            counts[first:stop] = before[ends] - before[ends - widths]
    return Selection(path, raw_counts, counts, digest.hexdigest())


def _arrived(file: Carried, *known: Any) -> Selection:
    return Selection(file.arrive(), *known)


def _runs(widths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of groups of some MB, at least one group each."""
    ends = np.cumsum(widths)
    first = 0
    while first < len(widths):
        before = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, before + _READ_BYTES, side="right"))
        stop = max(stop, first + 1)
        yield first, stop
        first = stop
