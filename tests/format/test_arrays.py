"""Columns of Arrow become arrays of numpy, and arrays columns, by their buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.format.arrays import (
    flags,
    from_flags,
    from_numbers,
    from_texts,
    numbers,
    texts,
)

KINDS = (pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.int64(), pa.float32(), pa.float64())
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def in_pieces(values: list[Any], kind: pa.DataType, cut: int) -> pa.ChunkedArray:
    """The values in three chunks, the first and last of them views into a longer array."""
    whole = pa.array([*values, *values], kind)
    first, last = whole.slice(0, cut), whole.slice(cut, len(values) - cut)
    return pa.chunked_array([first, pa.array([], kind), last])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(values=st.lists(st.none() | st.integers(0, 100), max_size=20), data=st.data())
def test_numbers_are_those_of_the_column_and_nulls_what_is_said(
    kind: pa.DataType, values: list[int | None], data: st.DataObject
) -> None:
    column = in_pieces(values, kind, data.draw(st.integers(0, len(values))))
    expected = [7 if value is None else value for value in values]
    found = numbers(column, absent=7)
    assert found.tolist() == expected
    assert found.dtype == kind.to_pandas_dtype()


@given(values=st.lists(st.booleans(), max_size=40), data=st.data())
def test_flags_are_those_of_the_column(values: list[bool], data: st.DataObject) -> None:
    column = in_pieces(values, pa.bool_(), data.draw(st.integers(0, len(values))))
    assert flags(column).tolist() == values


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
@given(values=st.lists(TEXT, max_size=20) | st.lists(st.none() | TEXT, max_size=9), data=st.data())
def test_texts_are_those_of_the_column(
    kind: pa.DataType, values: list[str | None], data: st.DataObject
) -> None:
    column = in_pieces(values, kind, data.draw(st.integers(0, len(values))))
    assert texts(column).tolist() == values


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(values=st.lists(st.none() | st.integers(0, 100), max_size=20))
def test_a_column_of_numbers_is_the_one_that_arrow_makes(
    kind: pa.DataType, values: list[int | None]
) -> None:
    valid = np.array([value is not None for value in values], np.bool_)
    plain = np.array([value or 0 for value in values], kind.to_pandas_dtype())
    column = from_numbers(plain, valid)
    column.validate(full=True)
    assert column.equals(pa.array(values, kind))
    assert from_numbers(plain[::-1]).to_pylist() == plain[::-1].tolist()


@given(st.lists(st.booleans(), max_size=40))
def test_a_column_of_flags_is_the_one_that_arrow_makes(values: list[bool]) -> None:
    assert from_flags(np.array(values, np.bool_)).equals(pa.array(values, pa.bool_()))


@given(st.lists(TEXT, max_size=20))
def test_a_column_of_texts_is_the_one_that_arrow_makes(values: list[str]) -> None:
    column = from_texts(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.string()))
