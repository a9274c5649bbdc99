"""Memory of an order: by the number of shards, never by the number of samples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from shardkit.order import EpochOrder, ShuffleOptions, Split, iterate_blocks


def peak_bytes(num_shards: int, rows: int, num_lanes: int, mode: str = "buffer") -> int:
    """The peak of making an order, seeking to its middle and reading on for 20 blocks."""
    counts = np.full(num_shards, rows)
    tracemalloc.start()
    options = ShuffleOptions(mode, num_lanes=num_lanes)  # type: ignore[arg-type]
    order = EpochOrder(counts, options)
    split = Split(order.num_samples, 4096, "pad", num_lanes=num_lanes)
    blocks = iterate_blocks(order, split, order.num_samples // 2)
    for _, block in zip(range(20), blocks, strict=False):
        assert block.ids.max() < order.num_samples
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("mode", ["none", "shard", "buffer", "global"])
@pytest.mark.parametrize("num_lanes", [1, 64])
def test_memory_at_a_billion_samples_is_bounded(mode: str, num_lanes: int) -> None:
    assert peak_bytes(100_000, 10_000, num_lanes, mode) < 30e6


@pytest.mark.parametrize("num_lanes", [1, 64])
def test_memory_is_flat_in_the_number_of_samples(num_lanes: int) -> None:
    small = peak_bytes(1000, 1000, num_lanes)
    large = peak_bytes(1000, 20_000_000, num_lanes)
    assert large < 1.3 * small + 1e6


def test_a_large_buffer_costs_no_memory() -> None:
    counts = np.full(1000, 10**6)
    tracemalloc.start()
    order = EpochOrder(counts, ShuffleOptions("buffer", 10**7))
    order.at(np.arange(10**8, 10**8 + 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize(("num_shards", "rows"), [(20_000, 50), (5, 20_000_000)])
def test_tiny_and_huge_shards_are_ordered_alike(num_shards: int, rows: int) -> None:
    order = EpochOrder(np.full(num_shards, rows), ShuffleOptions("buffer", num_lanes=4))
    middle = order.num_samples // 2
    ids = order.at(np.arange(middle, middle + 50_000))
    assert len(set(ids.tolist())) == 50_000
    assert 0 <= ids.min() <= ids.max() < order.num_samples
