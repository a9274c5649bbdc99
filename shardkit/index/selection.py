"""Which rows a filter left: counts per group, and a bitmap that is mapped into memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.errors import IndexDataError

__all__ = ["Selection"]


class Selection:
    """Selected rows of every group. Thread-safe; picklable by its path.

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

    def __reduce__(self) -> tuple[type[Selection], tuple[Any, ...]]:
        return Selection, (self._path, self._raw_counts, self.counts, self.identity)

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
