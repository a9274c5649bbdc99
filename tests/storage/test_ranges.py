from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.errors import ConfigError
from shardkit.storage.ranges import coalesce, fetch_ranges

RANGES = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 300)).map(lambda p: (p[0], p[0] + p[1]))
)


@given(ranges=RANGES, gap=st.integers(0, 500), max_span=st.integers(1, 2000))
def test_each_range_lies_in_one_span_and_far_spans_stay_apart(
    ranges: list[tuple[int, int]], gap: int, max_span: int
) -> None:
    spans = coalesce(ranges, gap=gap, max_span=max_span)
    members = sorted(i for span in spans for i in span.members)
    assert members == [i for i, (start, stop) in enumerate(ranges) if start < stop]
    for span in spans:
        assert span.start == min(ranges[i][0] for i in span.members)
        assert span.stop == max(ranges[i][1] for i in span.members)
        assert span.stop - span.start <= max(max_span, *(b - a for a, b in ranges))
    for left, right in itertools.pairwise(spans):
        joined = max(left.stop, right.stop) - left.start
        assert right.start - left.stop > gap or joined > max_span


@given(ranges=RANGES, gap=st.integers(0, 500))
def test_what_is_cut_out_is_what_was_asked_for(ranges: list[tuple[int, int]], gap: int) -> None:
    data = bytes(i % 251 for i in range(6000))
    found = fetch_ranges(ranges, lambda a, b: data[a:b], gap=gap)
    assert found == [data[a:b] for a, b in ranges]


def test_ranges_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"range \(5, 4\)"):
        coalesce([(0, 1), (5, 4)])


def test_an_error_of_one_span_is_raised() -> None:
    def read(start: int, stop: int) -> bytes:
        raise ConnectionError(f"{start}-{stop}")

    with pytest.raises(ConnectionError):
        fetch_ranges([(0, 1), (10**9, 10**9 + 1)], read)
