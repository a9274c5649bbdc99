"""Over a cache that holds half of the shards, ``ShardDataset`` says which to keep."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from shardkit import ShardDataset
from shardkit.pack import PackOptions, pack
from shardkit.samples.shards import ShardSource
from shardkit.storage.cache import Cache
from tests.s3 import serve_http

NUM_SHARDS, NUM_EPOCHS = 24, 5


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "source").mkdir()
    for number in range(NUM_SHARDS * 10):
        (folder / "source" / f"{number:04d}.bin").write_bytes(os.urandom(2_000))
    pack(str(folder / "source"), str(folder / "out"), options=PackOptions(samples_per_shard=10))
    return folder / "out"


def test_over_half_of_the_cache_shuffled_epochs_find_more_than_by_recency(
    packed: Path, tmp_path: Path
) -> None:
    fetched = {}
    for policy in ("next-use", "lru"):
        with serve_http(packed) as http:
            dataset = ShardDataset(f"{http.url}/", shuffle="shard", decode=None)
            source = dataset.stream.source
            assert isinstance(source, ShardSource)
            limit = sum(map(source.dataset.num_bytes, range(NUM_SHARDS))) // 2
            with Cache(str(tmp_path / policy), limit, policy=policy) as cache:  # type: ignore[arg-type]
                source.cache = cache
                for _ in range(NUM_EPOCHS):
                    assert sum(1 for _ in dataset) == NUM_SHARDS * 10
                assert cache.check() == []
            fetched[policy] = http.count("GET", "*.tar")
    assert fetched["next-use"] < fetched["lru"] < 1.1 * NUM_EPOCHS * NUM_SHARDS


def test_the_next_use_of_a_shard_counts_the_rest_of_this_epoch_and_its_place_in_the_next(
    packed: Path,
) -> None:
    with serve_http(packed) as http:
        dataset = ShardDataset(f"{http.url}/", shuffle="shard", decode=None)
        source = dataset.stream.source
        assert isinstance(source, ShardSource)
        now = dataset.order(0).groups(0, dataset.num_samples).tolist()
        following = dataset.order(1).groups(0, dataset.num_samples).tolist()
        places = iter([(np.array([shard]), np.array([0])) for shard in now])
        requests = list(source._requests(iter([places]), dataset.groups_after(0)))
    for number, (shard, request) in enumerate(zip(now, requests, strict=True), start=1):
        assert request is not None
        assert request.next_use == NUM_SHARDS - number + following.index(shard)
