"""Permutations that can be asked for one element: no table of the size of the domain."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shardkit.order.hashing import Int64Array, below, hash_counters, hash_range, make_key

__all__ = ["Permutation", "permute_groups"]

# A Feistel network over a handful of values is far from a random permutation, and a table of them
# costs nothing: below this size values are simply sorted by hash (32 KB).
_TABLE_SIZE = 4096
# Four rounds of random functions are indistinguishable from a random permutation (Luby and
# Rackoff, 1988); two more for a round function that is a hash and not a random function.
_NUM_ROUNDS = 6


def permute_groups(num_groups: int, key: int) -> Int64Array:
    """Return the numbers 0 … num_groups-1 in the order of their hashes: int64[num_groups]."""
    hashes = hash_range(0, num_groups, key)
    order = np.argsort(hashes)  # 4 times as fast as a stable one at 10^6; the same without ties
    in_order = hashes[order]
    if (in_order[1:] == in_order[:-1]).any():
        return np.argsort(hashes, kind="stable")
    return order


class Permutation:
    """A pseudo-random permutation of 0 … size-1 in O(1) memory.

    A generalised Feistel network (Black and Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002) over pairs (left, right) of Z_a and Z_b with a·b just above ``size``; a result that
    falls outside is encrypted again until it falls inside, which hits about one value in √size.

    Args:
        size: number of values, 1 to 2⁶².
        key: 64 bits that choose the permutation.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self._table = permute_groups(size, key) if size <= _TABLE_SIZE else None
        self._num_left = math.isqrt(max(size - 1, 0)) + 1
        self._num_right = -(-size // self._num_left)
        self._keys = [make_key("feistel", key, number) for number in range(_NUM_ROUNDS)]

    def __call__(self, values: npt.NDArray[np.int64]) -> Int64Array:
        """Map values in [0, size): int64, the shape of ``values``."""
        if self._table is not None:
            return self._table[values]
        return self._walk(values, self._encrypt)

    def inverse(self, values: npt.NDArray[np.int64]) -> Int64Array:
        """Map back: ``inverse(permutation(values))`` is ``values``."""
        if self._table is not None:
            return np.argsort(self._table, kind="stable")[values]
        return self._walk(values, self._decrypt)

    def _walk(self, values: Int64Array, step: Callable[[Int64Array], Int64Array]) -> Int64Array:
        """Take steps until every value is inside."""
        mapped = step(values)
        outside = np.flatnonzero(mapped >= self.size)
        while outside.size:
            walked = step(mapped[outside])
            mapped[outside] = walked
            outside = outside[walked >= self.size]
        return mapped

    def _encrypt(self, values: Int64Array) -> Int64Array:
        right, left = np.divmod(values, self._num_left)
        for number, key in enumerate(self._keys):
            if number % 2:
                _add_hash(right, left, key, self._num_right)
            else:
                _add_hash(left, right, key, self._num_left)
        right *= self._num_left
        right += left
        return right

    def _decrypt(self, values: Int64Array) -> Int64Array:
        right, left = np.divmod(values, self._num_left)
        for number in reversed(range(_NUM_ROUNDS)):
            if number % 2:
                _subtract_hash(right, left, self._keys[number], self._num_right)
            else:
                _subtract_hash(left, right, self._keys[number], self._num_left)
        right *= self._num_left
        right += left
        return right


def _add_hash(values: Int64Array, others: Int64Array, key: int, modulus: int) -> None:
    """Add a hash of the others to the values, modulo ``modulus``, in place."""
    values += below(hash_counters(others, key), modulus)
    values -= modulus * (values >= modulus)


def _subtract_hash(values: Int64Array, others: Int64Array, key: int, modulus: int) -> None:
    """Undo ``_add_hash``."""
    values -= below(hash_counters(others, key), modulus)
    values += modulus * (values < 0)
