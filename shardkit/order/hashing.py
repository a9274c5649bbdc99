"""Our own random numbers: a hash of a counter, so that the n-th number needs no number before it.

Library generators promise no stable streams over versions, and can't be asked for their n-th
value. Here a value depends on a key (a hash of seed, epoch and purpose) and on a counter (a row
or a position) alone. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014, with Stafford's constants 13).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["below", "hash_counters", "hash_range", "make_key", "sample_seeds"]

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def make_key(*parts: int | str) -> int:
    """Hash a tuple of integers and strings into one 64-bit key.

    The parts are kept apart (1, 23 and 12, 3 differ), so a seed plus an epoch is never another
    seed's epoch.
    """
    text = "\n".join(f"{type(part).__name__} {part!r}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_counters(counters: npt.NDArray[np.integer], key: int) -> UInt64Array:
    """Hash each counter (int64 or uint64, any shape) under ``key`` to 64 uniform bits."""
    return _finish(counters.astype(np.uint64), key)


def hash_range(start: int, stop: int, key: int) -> UInt64Array:
    """Hash the counters ``start`` up to ``stop`` under ``key``: uint64[stop - start]."""
    return _finish(np.arange(start, stop, dtype=np.uint64), key)


def _finish(values: UInt64Array, key: int) -> UInt64Array:
    """Turn counters into hashes in place: one temporary, whatever the length."""
    values *= _GAMMA
    values += np.uint64(key)
    scratch = values >> np.uint64(30)
    values ^= scratch
    values *= _MULTIPLIER_1
    np.right_shift(values, np.uint64(27), out=scratch)
    values ^= scratch
    values *= _MULTIPLIER_2
    np.right_shift(values, np.uint64(31), out=scratch)
    values ^= scratch
    return values


def below(hashes: UInt64Array, bound: int) -> Int64Array:
    """Scale hashes to integers in [0, bound): int64; ``bound`` ≤ 2³², bias < ``bound`` / 2³²."""
    scaled = hashes >> np.uint64(32)
    scaled *= np.uint64(bound)
    scaled >>= np.uint64(32)
    return scaled.view(np.int64)


def sample_seeds(seed: int, epoch: int, positions: npt.NDArray[np.integer]) -> UInt64Array:
    """Return the random seed of each position of an epoch: uint64, the shape of ``positions``.

    Every augmentation draws from it, so augmentations do not depend on ranks, workers or timing.
    """
    return hash_counters(positions, make_key("sample", seed, epoch))
