"""Parts: which items are whose, and what is no part."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.errors import ConfigError
from shardkit.executors import WHOLE, Part


@given(st.integers(1, 50), st.integers(0, 300))
def test_every_item_is_in_exactly_one_part_and_parts_are_even(count: int, num_items: int) -> None:
    parts = [Part(index, count).items(num_items) for index in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(num_items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_whole_is_a_part() -> None:
    assert WHOLE.is_whole
    assert list(WHOLE.items(3)) == [0, 1, 2]
    assert not Part(0, 2).is_whole


def test_parts_are_written_as_they_are_read() -> None:
    assert Part.parse("3/8") == Part(3, 8)
    assert str(Part(3, 8)) == "3/8"


@pytest.mark.parametrize("text", ["", "3", "3/", "/8", "-1/8", "1-8", "a/b", "0/8/2", "1.0/8"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(repr(text))} is not of the form i/n"):
        Part.parse(text)


def test_counting_from_one_is_seen_at_the_last_part() -> None:
    message = r"no part 8/8: parts are counted from 0, so they are 0/8 to 7/8; .*--array=0-7"
    with pytest.raises(ConfigError, match=message):
        Part.parse("8/8")


@pytest.mark.parametrize(("index", "count"), [(0, 0), (0, -1), (-1, 3), (3, 3)])
def test_numbers_out_of_bounds_are_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigError, match="part"):
        Part(index, count)
