"""A data set that got more shards takes the states of what it was before, between epochs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import DataLoader, Mix, ShardDataset
from shardkit.errors import StateError
from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, pack

Open = Callable[[int], ShardDataset]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed folders "8", "12" and "other": shards of 4; "12" begins with the shards of "8"."""
    folder = tmp_path_factory.mktemp("extended")
    for name, first, count in (("8", 0, 8), ("12", 0, 12), ("other", 50, 8)):
        rows = []
        for number in range(first, first + count):
            path = folder / f"{number:03d}.txt"
            path.write_text(str(number))
            rows.append({"key": f"{number:03d}", "text_path": path.name})
        index = folder / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), index)
        options = PackOptions(samples_per_shard=4)
        pack(str(index), str(folder / name), options=options, executor=LocalExecutor(1))
    return folder


@pytest.fixture(params=["packed", "tars"])
def opened(request: pytest.FixtureRequest, folder: Path) -> Open:
    """Opens 8 or 12 samples, with their manifest or as tars alone."""

    def open_it(num_samples: int) -> ShardDataset:
        if request.param == "packed":
            return ShardDataset(str(folder / str(num_samples)))
        last = num_samples // 4 - 1
        return ShardDataset(f"{folder}/12/shard-{{000000..{last:06d}}}.tar")

    return open_it


def state_after(dataset: Any, num_batches: int) -> Any:
    loader = DataLoader(dataset, 2, num_workers=0)
    for _ in zip(range(num_batches), loader, strict=False):
        pass
    return json.loads(json.dumps(loader.state_dict()))


@pytest.mark.parametrize(("num_batches", "epoch"), [(0, 0), (4, 1)])
def test_between_epochs_the_longer_data_set_goes_on_with_all_its_samples(
    opened: Open, num_batches: int, epoch: int
) -> None:
    loader = DataLoader(opened(12), 2, num_workers=0)
    loader.load_state_dict(state_after(opened(8), num_batches))
    assert loader.state_dict()["epoch"] == epoch
    keys = [key for batch in loader for key in batch["__key__"]]
    assert sorted(keys) == [f"{number:03d}" for number in range(12)]


def test_within_an_epoch_the_longer_one_refuses_and_says_when_it_would_not(opened: Open) -> None:
    with pytest.raises(StateError, match="only a state between epochs can move to the longer"):
        opened(12).load_state_dict(state_after(opened(8), 2))


def test_the_shorter_one_and_another_one_refuse(opened: Open, folder: Path) -> None:
    with pytest.raises(StateError, match="open the data set that it was saved on"):
        opened(8).load_state_dict(state_after(opened(12), 0))
    with pytest.raises(StateError, match="open the data set that it was saved on"):
        opened(12).load_state_dict(state_after(ShardDataset(str(folder / "other")), 0))


def test_a_stream_of_a_mixture_may_have_been_extended(folder: Path) -> None:
    def mixed(name: str) -> Mix:
        return Mix(
            {"a": ShardDataset(str(folder / name)), "b": ShardDataset(str(folder / "other"))}
        )

    longer = mixed("12")
    longer.load_state_dict(state_after(mixed("8"), 8))
    keys = [sample["__key__"] for sample in longer if sample["__stream__"] == "a"]
    assert set(keys) <= {f"{number:03d}" for number in range(12)}
    assert longer.state_dict()["streams"]["a"]["num_samples"] == 12
