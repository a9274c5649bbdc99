"""Metadata rows as strict JSON (RFC 8259), for the ``<key>.json`` member that stock readers see."""

from __future__ import annotations

import base64
import datetime
import decimal
import itertools
import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.format.arrays import texts

__all__ = ["json_rows", "jsonable"]

_MAX_EXACT = 2**53  # beyond it a double, which is what most JSON readers make of a number, is lossy

_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(", ", ": ")
).encode


def json_rows(table: pa.Table) -> Iterator[bytes]:
    """Each row of ``table`` as one UTF-8 JSON object, columns in the table's order."""
    names = table.column_names
    columns = [
        [value for chunk in column.chunks for value in _values(chunk)] for column in table.columns
    ]
    for values in zip(*columns, strict=True):
        yield _encode(dict(zip(names, values, strict=True))).encode("utf-8", "surrogatepass")


def jsonable(value: Any) -> Any:
    """A value as strict JSON holds it.

    NaN and infinities become null; decimals and integers beyond 2^53 strings; dates, times and
    timestamps ISO 8601; durations seconds; bytes base64; a map an object.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if -_MAX_EXACT <= value <= _MAX_EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):  # datetime is a date
        return value.isoformat()
    if isinstance(value, np.generic):  # half floats of an older pyarrow
        return jsonable(value.item())
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    return str(value)


def _values(array: pa.Array) -> list[Any]:
    """The values as JSON holds them, by their type: Python's own types lose nanoseconds."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if _is_plain(kind):
        if pa.types.is_string(kind):
            values: list[Any] = texts(array).tolist()
            return values
        return array.to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_temporal(kind):
        return _temporal(array)
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_map(kind):
        entries = _values(
            array.cast(pa.list_(pa.struct([("k", kind.key_type), ("v", kind.item_type)])))
        )
        return [
            None if pairs is None else {str(pair["k"]): pair["v"] for pair in pairs}
            for pairs in entries
        ]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        items = iter(_values(array.flatten()))
        lengths = pc.list_value_length(array).to_pylist()
        return [None if n is None else list(itertools.islice(items, n)) for n in lengths]
    return [jsonable(value) for value in array.to_pylist()]


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Python's values of the type are JSON's."""
    small_int = pa.types.is_integer(kind) and kind.bit_width <= 32
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(small_int or text or pa.types.is_boolean(kind))


def _structs(array: pa.StructArray) -> list[Any]:
    names = [child.name for child in array.type]
    columns = [_values(child) for child in array.flatten()]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    if not names:
        rows = [{} for _ in range(len(array))]
    valid = array.is_valid().to_pylist()
    return [row if there else None for row, there in zip(rows, valid, strict=True)]


def _temporal(array: pa.Array) -> list[Any]:
    kind = array.type
    if pa.types.is_duration(kind):
        seconds = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        counts = array.cast(pa.int64()).to_pylist()
        return [None if n is None else n / seconds for n in counts]
    if pa.types.is_interval(kind):
        return [jsonable(value) for value in array.to_pylist()]
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    written = texts(array.cast(pa.string())).tolist()
    return [None if text is None else text.replace(" ", "T", 1) for text in written]
