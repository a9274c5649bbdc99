"""``ShardDataset`` over a real S3 endpoint: the cache of the node, ahead of use, its limit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from shardkit import DataLoader, ShardDataset
from shardkit.errors import CorruptError, NotFoundError, TransientError
from shardkit.storage.cache import Cache
from shardkit.world import World
from tests.dataset.photos import NUM_SAMPLES, Packed
from tests.s3 import Fault, S3Endpoint, serve_s3

MODES = ("none", "shard", "buffer", "global")


@dataclass(frozen=True)
class Far:
    """The packed photos in a bucket, and a cache folder."""

    s3: S3Endpoint
    folder: Path
    cache_dir: str

    def dataset(self, **options: Any) -> ShardDataset:
        given = {"decode": None, "cache_dir": self.cache_dir, "cache_limit": "10mb", **options}
        return ShardDataset("s3://bucket/photos", storage_options=self.s3.storage_options, **given)

    def check(self) -> None:
        with Cache(self.cache_dir, "10mb") as cache:
            assert cache.check() == []


@pytest.fixture
def far(packed: Packed, tmp_path: Path) -> Iterator[Far]:
    shutil.copytree(packed.url, tmp_path / "s3" / "bucket" / "photos")
    with serve_s3(tmp_path / "s3") as s3:
        found = Far(s3, tmp_path / "s3" / "bucket" / "photos", str(tmp_path / "cache"))
        yield found
        found.check()


def keys_of(dataset: Any) -> list[str]:
    return [sample["__key__"] for sample in dataset]


@pytest.mark.parametrize("shuffle", MODES)
def test_far_samples_are_the_local_ones_in_the_same_order(
    far: Far, packed: Packed, shuffle: Any
) -> None:
    local = list(ShardDataset(packed.url, shuffle=shuffle, decode=None))
    for sample, other in zip(far.dataset(shuffle=shuffle), local, strict=True):
        assert {**sample, "__url__": ""} == {**other, "__url__": ""}


def test_reading_samples_does_not_import_pandas(packed: Packed, tmp_path: Path) -> None:
    code = (
        "import sys; from shardkit import ShardDataset\n"
        f"read = list(ShardDataset({packed.url!r}, decode=None, cache_dir={str(tmp_path)!r}))\n"
        f"assert len(read) == {NUM_SAMPLES} and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_each_shard_is_fetched_once_whatever_the_epochs_workers_and_data_sets(far: Far) -> None:
    for _ in range(2):
        dataset = far.dataset()
        assert len(keys_of(dataset)) == NUM_SAMPLES
        assert len(keys_of(dataset)) == NUM_SAMPLES
    assert far.s3.count("GET", "*.tar") == 15
    assert far.s3.count("HEAD", "*.tar") == 0


def test_by_number_fetches_the_one_shard(far: Far) -> None:
    dataset = far.dataset()
    assert dataset[50]["__key__"] == "0050"
    assert far.s3.count("GET", "*.tar") == 1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: dataset[i]["__key__"], range(NUM_SAMPLES)))
    assert found == [f"{i:04d}" for i in range(NUM_SAMPLES)]
    assert far.s3.count("GET", "*.tar") == 15


@pytest.mark.parametrize("shuffle", MODES)
def test_a_cache_of_three_shards_serves_epochs_of_fifteen(far: Far, shuffle: Any) -> None:
    size = max(path.stat().st_size for path in far.folder.glob("*.tar"))
    dataset = far.dataset(shuffle=shuffle, cache_limit=3 * size + 4096, buffer_size=10)
    for _ in range(2):
        assert len(set(keys_of(dataset))) == NUM_SAMPLES
    with Cache(far.cache_dir, 3 * size + 4096) as cache:
        assert sum(entry.size for entry in cache.entries()) <= 3 * size + 4096


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_loader_workers_share_the_cache(far: Far, packed: Packed, num_workers: int) -> None:
    def key_only(sample: dict[str, Any]) -> dict[str, Any]:
        return {"key": sample["__key__"]}

    dataset = far.dataset(transforms=[key_only])
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=num_workers)
    keys = [key for batch in loader for key in batch["key"]]
    assert sorted(keys) == packed.keys
    assert far.s3.count("GET", "*.tar") == 15


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_our_loader_fetches_each_shard_once_for_two_ranks(
    far: Far, packed: Packed, workers: Any
) -> None:
    keys: list[str] = []
    for rank in range(2):
        dataset = far.dataset(world=World(rank, 2))
        with DataLoader(
            dataset, batch_size=4, num_workers=2, workers=workers, remainder="keep"
        ) as loader:
            keys += [key for batch in loader for key in batch["__key__"]]
    assert sorted(keys) == packed.keys
    assert far.s3.count("GET", "*.tar") == 15


def test_samples_of_shards_that_have_come_do_not_wait_for_one_that_stalls(
    far: Far, packed: Packed
) -> None:
    far.s3.faults.append(Fault("stall", path="*000003.tar", at=5_000, times=1))
    options = {**far.s3.storage_options, "stall_s": 2}
    dataset = ShardDataset(
        "s3://bucket/photos",
        shuffle="none",
        decode=None,
        cache_dir=far.cache_dir,
        cache_limit="10mb",
        storage_options=options,
    )
    samples = iter(dataset)
    first = [next(samples)["__key__"] for _ in range(21)]  # 7 a shard
    with Cache(far.cache_dir, "10mb") as cache:
        assert not any("000003.tar" in entry.key for entry in cache.entries())
    assert first + keys_of(samples) == packed.keys


def test_a_flipped_bit_on_the_way_is_fetched_again(far: Far, packed: Packed) -> None:
    far.s3.faults.append(Fault("flip", path="*000003.tar", at=5_000, times=1))
    assert sorted(keys_of(far.dataset())) == packed.keys


def test_a_far_shard_that_is_damaged_raises_and_is_not_kept(far: Far, packed: Packed) -> None:
    shard = far.folder / "shard-000003.tar"
    data = bytearray(shard.read_bytes())
    data[5_000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptError, match="shard-000003"):
        keys_of(far.dataset())
    dataset = far.dataset(on_error="skip")
    assert len(keys_of(dataset)) == NUM_SAMPLES - 7
    assert dataset.failures.count == 7


def test_a_far_shard_that_is_missing_is_named(far: Far) -> None:
    (far.folder / "shard-000003.tar").unlink()
    with pytest.raises(NotFoundError, match="shard-000003"):
        keys_of(far.dataset())


def test_a_far_end_that_keeps_failing_is_never_skipped(far: Far) -> None:
    far.s3.faults.append(Fault("status", path="*000003.tar", times=-1))
    options = {**far.s3.storage_options, "max_attempts": 2}
    dataset = ShardDataset(
        "s3://bucket/photos",
        decode=None,
        on_error="skip",
        cache_dir=far.cache_dir,
        cache_limit="10mb",
        storage_options=options,
    )
    with pytest.raises(TransientError, match="shard-000003"):
        keys_of(dataset)


def test_plain_tars_behind_a_url_are_scanned_and_read(far: Far, packed: Packed) -> None:
    dataset = ShardDataset(
        "s3://bucket/photos/shard-{000000..000014}.tar",
        shuffle="none",
        decode=None,
        cache_dir=far.cache_dir,
        cache_limit="10mb",
        storage_options=far.s3.storage_options,
    )
    assert keys_of(dataset) == packed.keys


def test_a_sparse_filter_fetches_the_matching_samples_alone(far: Far, packed: Packed) -> None:
    dataset = far.dataset(where="id IN ('0003', '0050', '0090')", decode="auto")
    before = far.s3.count("GET", "*.tar")
    for _ in range(2):
        assert sorted(keys_of(dataset)) == ["0003", "0050", "0090"]
    assert far.s3.count("GET", "*.tar") - before == 3  # the second epoch comes from the cache
    asked = [r for r in far.s3.requests if r.method == "GET" and r.path.endswith(".tar")]
    assert all(request.range for request in asked)


def test_global_order_reads_ranges_where_the_data_does_not_fit(far: Far, packed: Packed) -> None:
    size = sum(path.stat().st_size for path in far.folder.glob("*.tar"))
    local = ShardDataset(packed.url, shuffle="global", decode=None)
    dataset = far.dataset(shuffle="global", cache_limit=size // 2)
    for _ in range(2):
        for sample, other in zip(dataset, local, strict=True):
            assert {**sample, "__url__": ""} == {**other, "__url__": ""}


def test_a_flipped_bit_in_a_range_is_fetched_again_or_raises(far: Far) -> None:
    where = "id = '0050'"
    place = far.dataset(where=where)  # where the sample is, says its sidecar
    start = int(place.stream.source.dataset.layout(7, ["jpg"], []).starts["jpg"][1])
    far.s3.faults.append(Fault("flip", path="*000007.tar", at=start + 9, times=1))
    assert keys_of(place) == ["0050"]
    far.s3.faults.append(Fault("flip", path="*000007.tar", at=start + 9, times=-1))
    with pytest.raises(CorruptError, match=r"key '0050': .*'jpg'"):
        keys_of(far.dataset(where=where, members=["jpg"]))


def test_loader_threads_read_ranges_too(far: Far, packed: Packed) -> None:
    dataset = far.dataset(where="CAST(id AS INT) % 7 = 1", shuffle="buffer")
    with DataLoader(dataset, batch_size=4, num_workers=2, remainder="keep") as loader:
        keys = sorted(key for batch in loader for key in batch["__key__"])
    assert keys == [key for key in packed.keys if int(key) % 7 == 1]
