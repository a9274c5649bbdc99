"""Shards in an object store: fetched ahead across the ends of epochs and passes, without end."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardkit import DataLoader, Mix, ShardDataset
from tests.dataset.photos import NUM_SAMPLES, Packed
from tests.loader.numbers import numbers
from tests.s3 import Fault, S3Endpoint, serve_s3

NUM_SHARDS = 15


@pytest.fixture
def s3(packed: Packed, tmp_path: Path) -> Iterator[S3Endpoint]:
    shutil.copytree(packed.url, tmp_path / "s3" / "bucket" / "photos")
    with serve_s3(tmp_path / "s3") as endpoint:
        yield endpoint


@pytest.fixture
def far(s3: S3Endpoint, tmp_path: Path) -> Callable[..., ShardDataset]:
    """Opens the photos, with a cache of so many bytes."""

    def opened(cache_limit: Any, **options: Any) -> ShardDataset:
        return ShardDataset(
            "s3://bucket/photos",
            shuffle="shard",
            decode=None,
            members=["cls"],
            cache_dir=str(tmp_path / "cache"),
            cache_limit=cache_limit,
            storage_options=s3.storage_options,
            **options,
        )

    return opened


def key_only(samples: Any) -> list[str]:
    return [sample["__key__"] for sample in samples]


def few_shards(packed: Packed) -> int:
    """Bytes of a cache for four of the fifteen shards."""
    return 4 * max(path.stat().st_size for path in Path(packed.url).glob("*.tar")) + 4096


def wait_for(claim: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.01)


@pytest.mark.parametrize("is_mixture", [False, True])
def test_the_pipeline_stays_full_across_the_end_of_an_epoch(
    far: Callable[..., ShardDataset], s3: S3Endpoint, packed: Packed, is_mixture: bool
) -> None:
    """With the last batch taken, the next epoch's first ones are fetched and made from a slow
    store: they come even if it does not answer any more."""
    made: list[str] = []

    def note(sample: dict[str, Any]) -> dict[str, Any]:
        made.append(sample["__key__"])
        return sample

    s3.faults.append(Fault("slow", path="*.tar", times=-1, bytes_per_s=1 << 20))
    photos: Any = far(few_shards(packed), transforms=[note])
    dataset = Mix({"photos": photos}) if is_mixture else photos
    with DataLoader(dataset, 4, num_workers=2, collate_fn=key_only) as loader:
        batches = iter(loader)
        num_samples = sum(len(next(batches)) for _ in range(len(loader)))
        wait_for(lambda: len(made) == num_samples + 4 * 4)  # 2 batches a worker
        s3.faults[:] = [Fault("stall", path="*.tar", times=-1)]
        assert next(batches, None) is None
        again = list(itertools.islice(loader, 4))
    assert len(set(itertools.chain(*again))) == 4 * 4


def test_a_streams_second_pass_within_an_epoch_is_fetched_before_it_is_asked_for(
    far: Callable[..., ShardDataset], s3: S3Endpoint, packed: Packed
) -> None:
    photos = far(few_shards(packed))  # so that nothing of the first pass is left for the second
    mix = Mix({"photos": photos, "numbers": numbers(400)}, ends="numbers")
    with DataLoader(mix, 2, num_workers=0, collate_fn=key_only) as loader:
        batches = iter(loader)
        keys = [next(batches) for _ in range(NUM_SAMPLES)]  # a photo and a number in each
        assert {key for key in itertools.chain(*keys) if len(key) == 4} == set(packed.keys)
        wait_for(lambda: s3.count("GET", "*.tar") > NUM_SHARDS)


@pytest.mark.parametrize("ends", ["never", "numbers"])
def test_a_stream_that_is_all_near_does_not_hold_up_the_mixture(
    far: Callable[..., ShardDataset], s3: S3Endpoint, ends: str
) -> None:
    """Looking ahead for more of it has no end, or one that is a million batches away."""
    mix = Mix({"photos": far("10mb"), "numbers": numbers(1_000_000, per_group=1000)}, ends=ends)
    with DataLoader(mix, 2, num_workers=2, collate_fn=key_only) as loader:
        keys = list(itertools.chain(*itertools.islice(loader, 3 * NUM_SAMPLES)))
    photos = [key for key in keys if len(key) == 4]
    assert len(set(photos[:NUM_SAMPLES])) == len(set(photos[-NUM_SAMPLES:])) == NUM_SAMPLES
    assert s3.count("GET", "*.tar") == NUM_SHARDS
