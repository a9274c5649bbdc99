"""Buffer mixing that can seek: what a shuffle buffer does, as a pure function of the place.

Row x of a lane of n rows gets the integer key (x + u) mod n, where u is a hash of x, uniform in
[-w/2, w/2). Rows leave by key; rows of one key leave by ten more bits of the hash. So a row moves
by about w/2 places at most, the end of a lane is mixed into its start just as its middle is mixed,
and to know which rows leave at a place one looks only at the rows about w/2 around it.

Inside, u runs from 0 to w and the rows of the lane are numbered from its row w/2 on, so that keys
never fall below their row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardkit.order.hashing import Int64Array, below, hash_range

__all__ = ["MAX_BLOCK", "BufferMixing"]

# Rows hashed at once: 512 KB per array stays in the L2 cache, and numpy's cost per call is gone.
MAX_BLOCK = 65_536

# One sortable uint64 is [21 bits key | 10 bits tie-break | 33 bits row], each from its own origin.
_ROW_BITS = 33
_TIE_BITS = 10
MAX_KEYS = 1 << (64 - _ROW_BITS - _TIE_BITS)


@dataclass(frozen=True, slots=True)
class BufferMixing:
    """The mixing of one lane: stateless but for ``head``, which is computed once.

    Args:
        start: where the lane starts on the line; hashes count from the line's start, so that
            lanes are mixed independently of each other.
        size: n, the rows of the lane, at least 1.
        width: w, at least 1 and at most n and 2³².
        key: 64 bits, a hash of seed and epoch.
        head: how many rows wrap around to the start of the lane.
    """

    start: int
    size: int
    width: int
    key: int
    head: int

    @classmethod
    def over(cls, start: int, size: int, width: int, key: int) -> BufferMixing:
        """Build the mixing of a lane; looks at its last ``width`` rows once."""
        mixing = cls(start, size, width, key, 0)
        head = 0
        for first, shifts, _ in mixing._pieces(-width, 0):
            head += int(np.count_nonzero(shifts >= np.arange(-first, -first - shifts.size, -1)))
        return cls(start, size, width, key, head)

    def rows(self, start: int, stop: int) -> Int64Array:
        """Return the rows (from 0, in the lane) that leave at places [start, stop): int64.

        Memory is O(stop - start); time is O(stop - start + width). At most 2²⁰ places at once.
        """
        slack = 8 + 3 * math.isqrt(self.width) // 2  # places stray from keys by 0.58 √width
        while True:
            first_key, stop_key = max(0, start - slack), min(self.size, stop + slack)
            before, packed = self._between(first_key, stop_key)
            if before <= start and stop <= before + packed.size:
                break
            slack *= 2
        packed.sort()
        packed &= np.uint64((1 << _ROW_BITS) - 1)
        rows = packed[start - before : stop - before].view(np.int64)
        rows += first_key - self.width + self.width // 2
        rows[rows < 0] += self.size
        rows[rows >= self.size] -= self.size
        return rows

    def _between(self, first_key: int, stop_key: int) -> tuple[int, npt.NDArray[np.uint64]]:
        """Return how many rows leave before ``first_key``, and those until ``stop_key``, packed."""
        late = 0  # rows before first_key that leave at it or after it
        origin = first_key - self.width
        found: list[npt.NDArray[np.uint64]] = []
        for first, shifts, ties in self._pieces(origin, stop_key):
            rows = np.arange(first - origin, first - origin + shifts.size)
            keys = shifts + (rows - self.width)  # from first_key on
            if first < first_key:
                late += int(np.count_nonzero(keys[: first_key - first] >= 0))
            inside = np.flatnonzero((keys >= 0) & (keys < stop_key - first_key))
            packed = keys[inside].view(np.uint64) << np.uint64(_ROW_BITS + _TIE_BITS)
            packed |= ties[inside] << np.uint64(_ROW_BITS)
            packed |= rows[inside].view(np.uint64)
            found.append(packed)
        return first_key + self.head - late, np.concatenate(found)

    def _pieces(
        self, start: int, stop: int
    ) -> Iterator[tuple[int, Int64Array, npt.NDArray[np.uint64]]]:
        """Hash rows [start, stop) in blocks: first row, shifts u, tie-breaks.

        Rows below 0 are those of the lane's end, which come around.
        """
        while start < stop:
            block_stop = min(start + MAX_BLOCK, 0 if start < 0 else stop, stop)
            offset = self.start + (self.size if start < 0 else 0)
            hashes = hash_range(offset + start, offset + block_stop, self.key)
            ties = hashes & np.uint64((1 << _TIE_BITS) - 1)
            yield start, below(hashes, self.width), ties
            start = block_stop
