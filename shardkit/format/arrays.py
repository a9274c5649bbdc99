"""Columns of Arrow as arrays of numpy and back, by their buffers.

``to_numpy``, ``fill_null`` and ``pa.array`` import pandas where it is installed, which takes 0.3 s:
as long as the first shards take to arrive, a seventh of packing 200,000 small files, and once in
every process.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["flags", "from_flags", "from_numbers", "from_texts", "numbers", "texts"]


def numbers(column: pa.ChunkedArray | pa.Array, absent: int = 0) -> npt.NDArray[Any]:
    """Integers or floats as they are, not to be written to; nulls become ``absent``."""
    kind = column.type
    letter = "f" if pa.types.is_floating(kind) else "u" if _is_unsigned(kind) else "i"
    dtype = np.dtype(f"<{letter}{kind.bit_width // 8}")

    def plain(chunk: pa.Array) -> npt.NDArray[Any]:
        start = dtype.itemsize * chunk.offset
        values = np.frombuffer(chunk.buffers()[1], dtype, count=len(chunk), offset=start)
        if chunk.null_count:
            return np.where(flags(chunk.is_valid()), values, dtype.type(absent))
        return values

    return _joined([plain(chunk) for chunk in _chunks(column)], dtype)


def flags(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    """Booleans without nulls."""

    def plain(chunk: pa.Array) -> npt.NDArray[Any]:
        packed = np.frombuffer(chunk.buffers()[1], np.uint8)
        stop = chunk.offset + len(chunk)
        return np.unpackbits(packed, count=stop, bitorder="little")[chunk.offset :].astype(np.bool_)

    return _joined([plain(chunk) for chunk in _chunks(column)], np.dtype(np.bool_))


def texts(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.object_]:
    """Strings as an array of ``str``, None for nulls."""
    large = pa.types.is_large_string(column.type)
    found: list[str | None] = []
    for chunk in _chunks(column):
        before = len(found)
        _, places, data = chunk.buffers()
        all_bounds = np.frombuffer(places, "<i8" if large else "<i4")
        bounds = all_bounds[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        content = b"" if data is None else data[bounds[0] : bounds[-1]].to_pybytes()
        pieces = itertools.pairwise(bounds)
        first = bounds[0]
        if content.isascii():  # a place is a character then
            text = content.decode("ascii")
            found += [text[start - first : stop - first] for start, stop in pieces]
        else:
            found += [content[start - first : stop - first].decode() for start, stop in pieces]
        if chunk.null_count:
            for row in np.flatnonzero(~flags(chunk.is_valid())).tolist():
                found[before + row] = None
    out = np.empty(len(found), dtype=object)
    out[:] = found
    return out


def from_numbers(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Integers or floats as Arrow holds them, without a copy; null where not ``valid``."""
    values = np.ascontiguousarray(values)
    mask = None if valid is None or valid.all() else _packed(valid)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [mask, pa.py_buffer(values)])


def from_flags(values: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """Booleans as Arrow holds them."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, _packed(values)])


def from_texts(values: Sequence[str]) -> pa.StringArray:
    """Strings as Arrow holds them."""
    data = "".join(values).encode()
    lengths = list(map(len, values))
    if sum(lengths) != len(data):  # beyond ASCII
        lengths = [len(value.encode()) for value in values]
    bounds = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.array(lengths, np.int64), out=bounds[1:])
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(values), buffers).cast(pa.string())


def _packed(values: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def _chunks(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [chunk for chunk in chunks if len(chunk)]  # an empty one may have no buffers


def _joined(pieces: list[npt.NDArray[Any]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype)


def _is_unsigned(kind: pa.DataType) -> bool:
    return bool(pa.types.is_unsigned_integer(kind))
