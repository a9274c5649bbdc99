"""Each kind of index, in each way of using it: the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardkit import DataLoader, StreamingDataset
from shardkit.storage.cache import Cache
from tests.streaming.build import Photos, source_of

NEAR = ("csv", "json", "jsonl", "parquet", "feather", "wildcard", "list", "folder", "table")
KINDS = [*((kind, "local") for kind in (*NEAR, "frame", "dicts"))]
KINDS += [(kind, "s3") for kind in ("csv", "parquet", "wildcard", "list", "folder", "table")]
KINDS += [(kind, "http") for kind in ("jsonl", "parquet", "list")]


class Case:
    """A dataset to be made, again and again, over one cache."""

    def __init__(self, kind: str, photos: Photos, folder: Path) -> None:
        self.photos = photos
        self.source = source_of(kind, photos)
        self.folder = folder

    def open(self, **options: Any) -> StreamingDataset:
        return StreamingDataset(
            self.source,
            str(self.folder / "cache"),
            **{
                "decode": None,
                "storage_options": self.photos.options,
                **options,
            },
        )

    def is_right(self, samples: Any) -> bool:
        found = {
            sample["data_id" if "data_id" in sample else "__key__"]: sample for sample in samples
        }
        return {key: sample["jpg"] for key, sample in found.items()} == self.photos.data


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind))
def case(request: pytest.FixtureRequest, photos: Photos, tmp_path: Path) -> Case:
    kind, place = request.param
    if place == "local":
        return Case(kind, photos, tmp_path)
    endpoint = request.getfixturevalue(place)
    root = "s3://bucket" if place == "s3" else f"{endpoint.url}/bucket"
    return Case(kind, Photos(photos.folder, root, endpoint.storage_options, photos.data), tmp_path)


def test_random_access_gives_each_sample(case: Case) -> None:
    dataset = case.open()
    assert dataset.num_samples == 23
    assert case.is_right(dataset[number] for number in range(-1, 22))


def test_iteration_gives_each_sample_once(case: Case) -> None:
    samples = list(case.open())
    assert len(samples) == 23
    assert case.is_right(samples)


def test_a_loader_with_workers_gives_each_sample_once(case: Case) -> None:
    with DataLoader(
        case.open(), batch_size=4, num_workers=2, remainder="keep", collate_fn=list
    ) as loader:
        samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 23
    assert case.is_right(samples)


def test_a_state_goes_on_where_it_was_taken(case: Case) -> None:
    whole = [sample["__key__"] for sample in case.open(seed=3)]
    dataset = case.open(seed=3)
    samples = iter(dataset)
    first = [next(samples)["__key__"] for _ in range(9)]
    resumed = case.open(seed=3)
    resumed.load_state_dict(dataset.state_dict())
    assert first + [sample["__key__"] for sample in resumed] == whole


def test_a_small_cache_gives_the_same_samples(case: Case) -> None:
    dataset = case.open(cache_limit=4_000)
    for _ in range(2):
        assert case.is_right(dataset)
    assert case.is_right(dataset[number] for number in range(23))
    assert Cache(str(case.folder / "cache"), 4_000).check() == []
