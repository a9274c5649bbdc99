"""A reshard is a random permutation of all samples, as far as statistics can tell; and its cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, pack
from shardkit.pack.reshard_cost import Measures, costs
from shardkit.pack.rows import pack_order
from tests.pack.reshards import keys_of, reshard_files


def chi_square(
    sources: npt.NDArray[np.int64], num_bins: int, num_shards: int
) -> tuple[float, float]:
    """How far counts by (bin of the output, source shard) are from even, in standard deviations.

    Args:
        sources: [N] the source shard of each sample, in the order of the output.
        num_bins: equal stretches of the output.
        num_shards: of the source, all of one size.
    """
    bins = np.arange(len(sources)) * num_bins // len(sources)
    counts = np.bincount(bins * num_shards + sources, minlength=num_bins * num_shards)
    expected = len(sources) / (num_bins * num_shards)
    value = float(((counts - expected) ** 2 / expected).sum())
    freedom = (num_bins - 1) * (num_shards - 1)  # rows and columns have fixed sums
    return (value - freedom) / (2 * freedom) ** 0.5, expected


def rank_correlation(order: npt.NDArray[np.int64]) -> float:
    """Spearman's between place in the output and in the source, in standard deviations."""
    found = float(np.corrcoef(np.arange(len(order)), order)[0, 1])
    return found * (len(order) - 1) ** 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_million_samples_are_spread_evenly_over_all_shards(seed: int) -> None:
    """Each of 100 source shards gives each of 100 output shards as many as chance would."""
    order = pack_order(1_000_000, seed)(np.arange(1_000_000))
    deviation, expected = chi_square(order // 10_000, 100, 100)
    assert expected == 100
    assert abs(deviation) < 4
    assert abs(rank_correlation(order)) < 4
    neighbours = np.abs(np.diff(order))
    mean = 1_000_000 / 3  # of the distance of two random places
    assert abs(neighbours.mean() / mean - 1) < 0.005


def test_the_order_of_a_real_reshard_is_even_too(tmp_path: Path) -> None:
    rows = 20_000
    table = pa.table({"id": [f"{row:06d}" for row in range(rows)], "text": ["x"] * rows})
    pq.write_table(table, tmp_path / "index.parquet", row_group_size=2_000)
    pack(
        str(tmp_path / "index.parquet"),
        str(tmp_path / "packed"),
        inline=["text=txt"],
        options=PackOptions(samples_per_shard=1_000),
        executor=LocalExecutor(1),
    )
    reshard_files(tmp_path / "packed", tmp_path / "out", samples_per_shard=1_000, way="spill")
    order = np.array([int(key) for key in keys_of(tmp_path / "out")])
    assert np.array_equal(np.sort(order), np.arange(rows))
    assert abs(chi_square(order // 1_000, 20, 20)[0]) < 4
    assert abs(rank_correlation(order)) < 4


LAION = Measures(
    num_samples=10_000_000,
    num_bytes=10**12,
    source_shards=4_000,
    source_bytes=10**12,
    output_shards=4_000,
    piece_bytes=32 << 20,
    num_spills=4_000,
    is_far=True,
    is_shuffled=True,
    memory_bytes=64 << 30,
)


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, "spill"),  # 100 KB behind a URL: a request costs more than the disk twice
        ({"num_samples": 200_000}, "ranges"),  # 5 MB: a request costs little
        ({"num_samples": 100_000, "num_bytes": 10**10}, "ranges"),  # a hundredth is wanted
        ({"is_shuffled": False}, "ranges"),
        ({"is_far": False}, "ranges"),  # 100 KB on a disk: seeks cost little
        ({"is_far": False, "num_samples": 10**9}, "spill"),  # 1 KB on a disk
        ({"is_far": False, "num_samples": 10**9, "memory_bytes": 3 * 10**12}, "ranges"),
    ],
)
def test_the_cheaper_way_is_taken(changes: dict[str, int], way: str) -> None:
    found = costs(replace(LAION, **changes))
    assert found[0].way == way
    assert found[0].seconds <= found[1].seconds
    assert {cost.way for cost in found} == {"ranges", "spill"}
