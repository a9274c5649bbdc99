"""Metadata rows as JSON that every strict reader takes."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.format.metadata import json_rows, jsonable


def strict(text: bytes) -> Any:
    """Parse as RFC 8259 does: no NaN, no infinities."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text.decode("utf-8"), parse_constant=refuse)


def row(value: Any, kind: pa.DataType | None = None) -> Any:
    (text,) = json_rows(pa.table({"x": pa.array([value], kind)}))
    return strict(text)["x"]


UTC = dt.timezone.utc  # noqa: UP017
CASES: list[tuple[Any, pa.DataType, Any]] = [
    (True, pa.bool_(), True),
    (-5, pa.int8(), -5),
    (2**53, pa.int64(), 2**53),
    (2**53 + 1, pa.int64(), "9007199254740993"),
    (-(2**63), pa.int64(), "-9223372036854775808"),
    (2**64 - 1, pa.uint64(), "18446744073709551615"),
    (1.5, pa.float64(), 1.5),
    (float("nan"), pa.float64(), None),
    (float("inf"), pa.float32(), None),
    (np.float16(0.5), pa.float16(), 0.5),
    (decimal.Decimal("12.3400"), pa.decimal128(10, 4), "12.3400"),
    (decimal.Decimal(1), pa.decimal256(60, 2), "1.00"),
    ('ü \n" 猫', pa.string(), 'ü \n" 猫'),
    ("x", pa.large_string(), "x"),
    ("x", pa.string_view(), "x"),
    ("cat", pa.dictionary(pa.int8(), pa.string()), "cat"),
    (b"\x00\xff", pa.binary(), base64.b64encode(b"\x00\xff").decode()),
    (b"abcd", pa.binary(4), base64.b64encode(b"abcd").decode()),
    (b"\x01", pa.large_binary(), "AQ=="),
    (dt.date(2024, 2, 29), pa.date32(), "2024-02-29"),
    (dt.date(2024, 2, 29), pa.date64(), "2024-02-29"),
    (dt.time(1, 2, 3), pa.time32("s"), "01:02:03"),
    (dt.time(1, 2, 3, 4000), pa.time32("ms"), "01:02:03.004"),
    (3_723_000_000_001, pa.time64("ns"), "01:02:03.000000001"),
    (1_704_164_645, pa.timestamp("s"), "2024-01-02T03:04:05"),
    (1_704_164_645_006, pa.timestamp("ms", "UTC"), "2024-01-02T03:04:05.006Z"),
    (1_700_000_000_000_000_001, pa.timestamp("ns"), "2023-11-14T22:13:20.000000001"),
    (
        dt.datetime(2024, 7, 1, 10, tzinfo=UTC),
        pa.timestamp("us", "Europe/Berlin"),
        "2024-07-01T10:00:00.000000Z",
    ),
    (dt.timedelta(seconds=1.5), pa.duration("ms"), 1.5),
    (1, pa.duration("ns"), 1e-9),
    ([1, None, float("nan")], pa.list_(pa.float64()), [1.0, None, None]),
    ([[2**60], []], pa.large_list(pa.list_(pa.int64())), [[str(2**60)], []]),
    ([1, 2], pa.list_(pa.int32(), 2), [1, 2]),
    (
        {"a": 1, "b": {"c": b"x"}},
        pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.binary())]))]),
        {"a": 1, "b": {"c": "eA=="}},
    ),
    ([("k", 1), ("l", None)], pa.map_(pa.string(), pa.int32()), {"k": 1, "l": None}),
    ([(1, "x")], pa.map_(pa.int64(), pa.string()), {"1": "x"}),
    ({"m": [("k", 1)]}, pa.struct([("m", pa.map_(pa.string(), pa.int32()))]), {"m": {"k": 1}}),
    ([[("k", 1)]], pa.list_(pa.map_(pa.string(), pa.int32())), [{"k": 1}]),
    (
        {"t": dt.datetime(2024, 1, 2, tzinfo=UTC)},
        pa.struct([("t", pa.timestamp("ns", "UTC"))]),
        {"t": "2024-01-02T00:00:00.000000000Z"},
    ),
    ([1], pa.list_(pa.duration("us")), [1e-6]),
    ([3_723_000_000_001], pa.list_(pa.time64("ns")), ["01:02:03.000000001"]),
    (None, pa.null(), None),
]


@pytest.mark.parametrize(("value", "kind", "expected"), CASES, ids=lambda x: str(x)[:40])
def test_every_arrow_type_is_strict_json(value: Any, kind: pa.DataType, expected: Any) -> None:
    assert row(value, kind) == expected
    if not pa.types.is_null(kind):
        assert row(None, kind) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=200)
def test_any_value_is_made_strict(value: Any) -> None:
    text = json.dumps(jsonable(value), allow_nan=False)
    strict(text.encode())


def test_columns_keep_their_order_and_rows_theirs() -> None:
    table = pa.table({"b": [1, 2], "a": ["x", None], "c": [[1], None]})
    assert list(json_rows(table)) == [
        b'{"b": 1, "a": "x", "c": [1]}',
        b'{"b": 2, "a": null, "c": null}',
    ]


def test_an_empty_table_has_no_rows() -> None:
    assert list(json_rows(pa.table({"a": pa.array([], pa.string())}))) == []
