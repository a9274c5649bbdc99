"""Metadata rows as strict JSON (RFC 8259), for the ``<key>.json`` member that stock readers see."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

__all__ = ["json_rows", "jsonable"]

_MAX_EXACT = 2**53  # beyond it a double, which is what most JSON readers make of a number, is lossy

_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(", ", ": ")
).encode


def json_rows(table: pa.Table) -> Iterator[bytes]:
    """Each row of ``table`` as one UTF-8 JSON object, columns in the table's order."""
    names = table.column_names
    columns = [_column(table.column(i)) for i in range(len(names))]
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
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    return str(value)


def _column(column: pa.ChunkedArray) -> list[Any]:
    """The column as JSON values; the common types skip the look at each value."""
    kind = column.type
    if pa.types.is_map(kind):
        rows = column.to_pylist()
        return [None if row is None else {str(k): jsonable(v) for k, v in row} for row in rows]
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind):
        return _temporal(column)
    if _plain(kind):
        if column.null_count == 0 and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            values: list[Any] = column.to_numpy().tolist()
            return values
        return column.to_pylist()  # type: ignore[no-any-return]
    return [jsonable(value) for value in column.to_pylist()]


def _plain(kind: pa.DataType) -> bool:
    small_int = pa.types.is_integer(kind) and kind.bit_width <= 32
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(small_int or text or pa.types.is_boolean(kind))


def _temporal(column: pa.ChunkedArray) -> list[Any]:
    """Nanoseconds have no Python type without loss, so Arrow writes times and timestamps itself."""
    kind = column.type
    if pa.types.is_duration(kind):
        seconds = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        counts = column.cast(pa.int64()).to_pylist()
        return [None if n is None else n / seconds for n in counts]
    texts = column.cast(pa.string()).to_pylist()
    if pa.types.is_time(kind):
        return texts  # type: ignore[no-any-return]
    return [None if text is None else text.replace(" ", "T", 1) for text in texts]
