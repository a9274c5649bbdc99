"""``where=``, ``exclude=``, ``weights=``: exact lengths, matching samples alone, exact resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import ShardDataset
from shardkit.errors import ConfigError, IndexDataError, StateError
from shardkit.world import World
from tests.dataset.photos import NUM_SAMPLES, Packed

MODES = ("none", "shard", "buffer", "global")


def keys_of(dataset: Any) -> list[str]:
    return [sample["__key__"] for sample in dataset]


@pytest.mark.parametrize("shuffle", MODES)
def test_where_keeps_exactly_the_matching_samples(packed: Packed, shuffle: Any) -> None:
    wanted = [key for key in packed.keys if int(key) / 50 > 0.9 and int(key) % 3]
    dataset = ShardDataset(
        packed.url, shuffle=shuffle, decode=None, where="aspect > 0.9 AND label = 'cat'"
    )
    assert len(dataset) == dataset.num_samples == len(wanted)
    assert sorted(keys_of(dataset)) == wanted
    assert dataset[1]["__key__"] == wanted[1]


def test_where_can_ask_for_members_sizes_and_other_tables(packed: Packed, tmp_path: Path) -> None:
    scores = str(tmp_path / "scores.parquet")
    pq.write_table(pa.table({"id": ["0003", "0050"], "score": [9.0, 1.0]}), scores)
    where = f"id IN (SELECT id FROM '{scores}' WHERE score > 5) AND jpg.size > 10"
    assert keys_of(ShardDataset(packed.url, decode=None, where=where)) == ["0003"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_selection_exactly_and_resume_within_it(
    packed: Packed, world_size: int
) -> None:
    def dataset(rank: int, size: int) -> ShardDataset:
        return ShardDataset(packed.url, decode=None, where="label = 'cat'", world=World(rank, size))

    seen: list[str] = []
    state: dict[str, Any] = {}
    for rank in range(world_size):
        part = dataset(rank, world_size)
        running = iter(part)
        seen += [next(running)["__key__"] for _ in range(9)]
        state = part.state_dict()
    seen += keys_of_all(dataset, state)
    assert sorted(seen) == [key for key in packed.keys if int(key) % 3]


def keys_of_all(make: Any, state: dict[str, Any]) -> list[str]:
    rest = make(0, 1)
    rest.load_state_dict(state)
    return keys_of(rest)


def test_a_bad_condition_raises_with_the_columns_there_are(packed: Packed) -> None:
    with pytest.raises(ConfigError, match=r"(?s)nothing.*aspect"):
        ShardDataset(packed.url, where="nothing > 3")


def test_a_condition_that_leaves_nothing_is_refused(packed: Packed) -> None:
    with pytest.raises(IndexDataError, match="no sample is left of 101"):
        ShardDataset(packed.url, where="aspect > 1e9")


def test_excluded_keys_never_come(packed: Packed, caplog: pytest.LogCaptureFixture) -> None:
    dataset = ShardDataset(packed.url, decode=None, exclude=["0000", "0077", "nobody"])
    assert sorted(keys_of(dataset)) == [k for k in packed.keys if k not in ("0000", "0077")]
    assert "1 of 3 keys to exclude are keys of no sample" in caplog.text


def test_exclude_is_no_single_text(packed: Packed) -> None:
    with pytest.raises(ConfigError, match="give a list of keys"):
        ShardDataset(packed.url, exclude="0000")


def test_weights_repeat_and_thin_the_same_way_every_time(packed: Packed) -> None:
    def weigh(table: pa.Table) -> Any:
        numbers = np.array([int(key) for key in table.column("id").to_pylist()])
        return np.where(numbers < 50, 2.0, 0.5)

    first, again = (ShardDataset(packed.url, decode=None, weights=weigh) for _ in range(2))
    counts = Counter(keys_of(first))
    assert counts == Counter(keys_of(again))
    assert all(counts[f"{number:04d}"] == 2 for number in range(50))
    thinned = [counts[f"{number:04d}"] for number in range(50, NUM_SAMPLES)]
    assert set(thinned) == {0, 1}
    assert 15 < sum(thinned) < 36


def test_a_weight_column_is_named(packed: Packed) -> None:
    dataset = ShardDataset(packed.url, decode=None, weights="aspect")
    assert 80 < len(dataset) < 120  # aspects run from 0 to 2
    with pytest.raises(ConfigError, match="weights='nothing' is no column"):
        ShardDataset(packed.url, weights="nothing")


def test_a_state_of_another_selection_is_refused(packed: Packed) -> None:
    state = ShardDataset(packed.url, where="aspect > 1").state_dict()
    with pytest.raises(StateError, match="same where="):
        ShardDataset(packed.url, where="aspect > 1.1").load_state_dict(state)
