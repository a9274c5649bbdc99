"""Kept memory for decoded pixels.

A decoded picture is a few hundred kilobytes. The C allocator maps and unmaps such pieces, so
every picture pays a page fault per 4 KB: measured (``benchmarks/decode_memory.py``), 1.15 ms per
500x375 JPEG in fresh memory against 0.88 ms in memory that was touched before. So blocks are
kept and handed out again once nothing refers to them, which makes them as safe as fresh ones.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BlockPool", "copy", "empty"]

_SMALLEST = 64 * 1024  # below it the allocator keeps memory by itself
_NUM_FIRST = 4


class BlockPool:
    """Blocks of memory that are handed out as arrays and come back by themselves.

    A block is free when no array made of it is alive, which its reference count says: numpy
    keeps the owner of memory as the base of every view, and torch keeps the array. Thread-safe.

    Args:
        max_bytes: blocks beyond this are not kept. 256 MiB: a batch of 256 pictures of 640x480
            and a second one in flight fit.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self.max_bytes = max_bytes
        # Shared by threads, changed only under the lock: blocks by size, and their total.
        self._blocks: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._hints: dict[int, int] = {}  # by size: where to look for an idle block first
        self._lock = threading.Lock()
        self._kept_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return an uninitialised C-contiguous array, like ``numpy.empty``."""
        dtype = np.dtype(dtype)
        num_bytes = dtype.itemsize
        for extent in shape:
            num_bytes *= extent
        if num_bytes < _SMALLEST:
            return np.empty(shape, dtype)
        return self._take(num_bytes).view(dtype).reshape(shape)

    def _take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        size = _rounded(num_bytes)
        with self._lock:
            blocks = self._blocks.setdefault(size, [])
            place = _idle(blocks, self._hints.get(size, 0))
            if place is not None:
                self._hints[size] = place
                return blocks[place][:num_bytes]
            block = np.empty(size, np.uint8)
            if self._make_room(size):
                self._kept_bytes += size
                blocks.append(block)
            return block[:num_bytes]

    def _make_room(self, size: int) -> bool:
        """Forget idle blocks until ``size`` more bytes may be kept; False if that is not enough."""
        for length, blocks in self._blocks.items():
            while self._kept_bytes + size > self.max_bytes:
                place = _idle(blocks)
                if place is None:
                    break
                self._kept_bytes -= length
                del blocks[place]
                self._hints.pop(length, None)
        return self._kept_bytes + size <= self.max_bytes

    def unlock(self) -> None:
        """Take a new lock: a child forked while another thread held the old one would hang."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BlockPool], tuple[int]]:
        return BlockPool, (self.max_bytes,)


def _rounded(num_bytes: int) -> int:
    """Round up to one of four sizes per power of two, so that similar pictures share blocks."""
    step = 1 << max(num_bytes.bit_length() - 3, 12)
    return -(-num_bytes // step) * step


def _idle(blocks: list[npt.NDArray[np.uint8]], hint: int = 0) -> int | None:
    """Find a block that nothing else refers to: one of the first few, or the next from ``hint`` on.

    The first few, so that where little is held, few blocks go round and stay in the processor's
    cache; the hint, so that where whole batches are held, they need not all be looked at.
    """
    for place in range(min(len(blocks), _NUM_FIRST)):
        if _references(blocks, place) <= _IDLE_REFERENCES:
            return place
    for place in itertools.chain(range(hint, len(blocks)), range(min(hint, len(blocks)))):
        if _references(blocks, place) <= _IDLE_REFERENCES:
            return place
    return None


def _references(blocks: list[npt.NDArray[np.uint8]], place: int) -> int:
    return sys.getrefcount(blocks[place])


def copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a C-contiguous copy."""
    copied = empty(array.shape, array.dtype)
    copied[...] = array
    return copied


_IDLE_REFERENCES = _references([np.empty(1, np.uint8)], 0)  # differs between versions of Python
_pool = BlockPool()
os.register_at_fork(after_in_child=_pool.unlock)
empty = _pool.empty
