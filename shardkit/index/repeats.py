"""Numbers that repeat among any number of numbers, in bounded memory: sorted in parts on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

__all__ = ["repeated"]

Hashes = npt.NDArray[np.uint64]

_IN_MEMORY = 1 << 23  # numbers that are sorted where they are: 64 MB
_PARTS = 256  # by the top byte: 4 million of 10^9 hashes in each, 32 MB
_BUFFER = 1 << 16  # bytes of each part that wait for their write


def repeated(batches: Iterable[Hashes], folder: str, most: int) -> Hashes:
    """Return the least ``most`` of the numbers that come more than once, in order.

    Args:
        batches: the numbers, evenly spread over all of uint64 (hashes are).
        folder: has room for 8 bytes a number, if there are more than fit in memory.
        most: how many to return.
    """
    held: list[Hashes] = []
    count = 0
    rest = iter(batches)
    for batch in rest:
        held.append(batch)
        count += len(batch)
        if count > _IN_MEMORY:
            break
    else:
        return _twice(np.concatenate(held))[:most] if held else np.zeros(0, np.uint64)
    found: list[Hashes] = []
    for path in _parts(_chain(held, rest), folder):
        found.append(_twice(np.fromfile(path, dtype=np.uint64)))
        os.unlink(path)
        if sum(map(len, found)) >= most:
            break
    return np.concatenate(found)[:most]


def _chain(held: list[Hashes], rest: Iterator[Hashes]) -> Iterator[Hashes]:
    while held:
        yield held.pop(0)
    yield from rest


def _parts(batches: Iterator[Hashes], folder: str) -> list[str]:
    """Files of numbers with one top byte each, in order of it."""
    paths = [os.path.join(folder, f"{part:02x}") for part in range(_PARTS)]
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb", buffering=_BUFFER)) for path in paths]
        for batch in batches:
            tops = (batch >> np.uint64(56)).astype(np.uint8)
            order = np.argsort(tops, kind="stable")  # of bytes: a radix sort
            cuts = np.searchsorted(tops[order], np.arange(_PARTS + 1))
            in_order = batch[order]
            for part, file in enumerate(files):
                file.write(in_order[cuts[part] : cuts[part + 1]].tobytes())
    return paths


def _twice(numbers: Hashes) -> Hashes:
    """Those that come more than once, each once, in order."""
    numbers.sort()
    again = numbers[1:][numbers[1:] == numbers[:-1]]
    return np.unique(again)
