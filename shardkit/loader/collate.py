"""Samples to a batch: arrays of one shape are stacked in one copy, all else stays a list.

Stacks lie in kept memory (``decode.memory``): a batch of pictures in fresh memory costs a page
fault for every 4 KB of it. Tensors are copied by numpy too: ``torch.stack`` has its own threads
help, which wait for cores that decode (``benchmarks/loader_collate.py``).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode import memory
from shardkit.samples.source import Sample

__all__ = ["collate"]

_NUMBERS = (bool, int, float, np.number, np.bool_)
_FRACTIONS = (float, np.inexact)


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A dict with one entry for each that any sample has.

    Arrays and tensors of equal shape and dtype become one of shape ``[batch, …]``; numbers become
    one of shape ``[batch]``; texts, bytes, keys, ``None`` and arrays of differing shapes become a
    list, with None for a sample that has no such entry. Dicts are collated entry by entry, tuples
    place by place. Stacks are torch tensors where torch is loaded and has their type, else numpy
    arrays.
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
    return _as_tensor(_stack(values))


def _stacked_tensors(values: list[Any]) -> Any:
    first = values[0]
    for value in values:
        if not _is_tensor(value) or value.shape != first.shape or value.dtype != first.dtype:
            return values
    if any(value.requires_grad for value in values) or not _numpy_knows(first):
        return sys.modules["torch"].stack(values)
    return sys.modules["torch"].from_numpy(_stack([value.numpy() for value in values]))


def _stack(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    first = arrays[0]
    dtype = first.dtype.newbyteorder("=")  # torch knows no other
    return np.stack(arrays, out=memory.empty((len(arrays), *first.shape), dtype))


def _numpy_knows(tensor: Any) -> bool:
    """Whether numpy can look at the tensor: on the CPU, in rows, of a type that it has."""
    torch = sys.modules["torch"]
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and type(tensor) is torch.Tensor
        and tensor.dtype in _numpy_types()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


@functools.cache
def _numpy_types() -> frozenset[Any]:
    torch = sys.modules["torch"]
    names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    return frozenset(getattr(torch, name) for name in names)


def _numbers(values: list[Any]) -> Any:
    if not all(isinstance(value, _NUMBERS) for value in values):
        return values
    try:
        array = np.array(values)
        if array.dtype.kind == "f" and not any(isinstance(value, _FRACTIONS) for value in values):
            array = np.array(list(map(int, values)), np.uint64)  # too large for int64: not rounded
    except OverflowError:  # integers beyond 64 bits
        return values
    return values if array.dtype.kind not in "biuf" else _as_tensor(array)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_tensor(array: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, array.dtype.name):
        return array
    return torch.from_numpy(array)
