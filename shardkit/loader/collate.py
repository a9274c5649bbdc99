"""Samples → a batch: arrays of one shape are stacked in one copy, everything else stays a list."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from shardkit.samples.source import Sample

__all__ = ["collate"]

_NUMBERS = (bool, int, float, np.number, np.bool_)


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A dict with one entry for each that any sample has.

    Arrays and tensors of equal shape and dtype become one of shape ``[batch, …]``; numbers become
    one of shape ``[batch]``; texts, bytes, keys, ``None`` and arrays of differing shapes become a
    list, with None for a sample that has no such entry. Dicts are collated entry by entry, tuples
    place by place. Stacks are torch tensors where torch is loaded, numpy arrays where it is not.
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: _column([sample.get(name) for sample in samples]) for name in names}


def _column(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return _stacked(values)
    if _is_tensor(first):
        return _stacked_tensors(values)
    if isinstance(first, _NUMBERS):
        return _numbers(values)
    if isinstance(first, dict) and all(isinstance(value, dict) for value in values):
        return collate(values)
    if (
        type(first) is tuple
        and _all_of(tuple, values)
        and len({len(value) for value in values}) == 1
    ):
        return tuple(_column(list(place)) for place in zip(*values, strict=True))
    return values


def _all_of(kind: type, values: list[Any]) -> bool:
    return all(type(value) is kind for value in values)


def _stacked(values: list[Any]) -> Any:
    first = values[0]
    for value in values:
        if not isinstance(value, np.ndarray):
            return values
        if value.shape != first.shape or value.dtype != first.dtype:
            return values
    if first.dtype.kind not in "biufc":
        return values
    return _as_tensor(np.stack(values))


def _stacked_tensors(values: list[Any]) -> Any:
    first = values[0]
    for value in values:
        if not _is_tensor(value) or value.shape != first.shape or value.dtype != first.dtype:
            return values
    return sys.modules["torch"].stack(values)


def _numbers(values: list[Any]) -> Any:
    if not all(isinstance(value, _NUMBERS) for value in values):
        return values
    try:
        array = np.array(values)
    except OverflowError:  # integers beyond 64 bits
        return values
    return values if array.dtype.kind not in "biuf" else _as_tensor(array)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_tensor(array: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or (
        array.dtype.kind == "u" and array.dtype.itemsize > 1 and not hasattr(torch, "uint16")
    ):
        return array
    return torch.from_numpy(array)
