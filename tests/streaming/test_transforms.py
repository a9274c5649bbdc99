"""Callbacks: before anything is fetched, in place of fetching, and on samples."""

from __future__ import annotations

import functools
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec import AbstractFileSystem

from shardkit import DataLoader, StreamingDataset
from shardkit.errors import ConfigError
from shardkit.storage.cache import Cache
from shardkit.transforms.cached import CacheTransform
from shardkit.world import World
from tests.s3 import serve_s3
from tests.streaming.build import Photos, source_of

Sample = dict[str, Any]


def keys_of(samples: Any) -> list[str]:
    return [sample["__key__"] for sample in samples]


def marked(sample: Sample) -> Sample:
    return {**sample, "marked": True}


def twice(sample: Sample) -> Iterator[Sample]:
    yield {**sample, "copy": 0}
    yield {**sample, "copy": 1}


def thrice(sample: Sample) -> list[Sample]:
    return [{**sample, "part": part} for part in range(3)]


def only_cats(sample: Sample) -> Sample | None:
    return sample if sample["label"] == "cat" else None


def without_two(sample: Sample) -> Sample | None:
    """Too few to leave a batch empty, whatever the order."""
    return None if sample["__key__"] in ("0003", "0010") else sample


def light(sample: Sample, rng: np.random.Generator) -> Sample:
    return {"__key__": sample["__key__"], "draw": float(rng.random())}


def bare(sample: Sample) -> Sample:
    return {"__key__": sample["__key__"]}


def test_transforms_give_a_sample_several_or_none(photos: Photos) -> None:
    dataset = StreamingDataset(
        source_of("table", photos),
        shuffle="none",
        transforms=[marked, only_cats, twice, [thrice]],
    )
    samples = list(dataset)
    cats = [row["data_id"] for row in photos.records() if row["label"] == "cat"]
    assert keys_of(samples) == [key for key in cats for _ in range(6)]
    assert [(s["copy"], s["part"]) for s in samples[:6]] == [
        (c, p) for c in (0, 1) for p in (0, 1, 2)
    ]
    assert dataset[0] is None
    assert len(dataset) == 23


def test_all_ranks_have_as_many_batches_whatever_transforms_drop(photos: Photos) -> None:
    counts = []
    for rank in range(3):
        dataset = StreamingDataset(
            source_of("table", photos),
            transforms=[without_two, bare, twice],
            world=World(rank=rank, world_size=3),
        )
        with DataLoader(dataset, batch_size=3, num_workers=0) as loader:
            counts.append(len(list(loader)))
    assert len(set(counts)) == 1


def test_a_state_is_exact_where_transforms_drop_and_multiply(photos: Photos) -> None:
    def loader() -> DataLoader:
        transforms = [without_two, light, twice]
        dataset = StreamingDataset(source_of("table", photos), transforms=transforms)
        return DataLoader(dataset, batch_size=4, num_workers=0, remainder="keep")

    with loader() as whole:
        batches = [(batch["__key__"], list(batch["draw"])) for batch in whole]
    for position in range(1, len(batches)):
        with loader() as first:
            taken = iter(first)
            for _ in range(position):
                next(taken)
            state = first.state_dict()
        with loader() as second:
            second.load_state_dict(state)
            assert [(b["__key__"], list(b["draw"])) for b in second] == batches[position:]


def small_version(row: Sample) -> Sample:
    return {**row, "data_url": row["data_url"].replace("/img/", "/small/")}


def none_of_dogs(row: Sample) -> Sample | None:
    return None if row["label"] == "dog" else row


def both_crops(row: Sample) -> list[Sample]:
    return [{**row, "crop": crop} for crop in ("left", "right")]


def metadata_alone(row: Sample) -> Sample:
    return {name: value for name, value in row.items() if name != "data_url"}


def test_rows_are_rewritten_before_anything_is_fetched(photos: Photos, tmp_path: Path) -> None:
    (photos.folder / "small").mkdir(exist_ok=True)
    for key in photos.keys:
        (photos.folder / "small" / f"{key}.jpg").write_bytes(b"\xff\xd8\xff" + key.encode())
    with serve_s3(photos.folder.parent) as s3:
        far = Photos(photos.folder, "s3://bucket", s3.storage_options, photos.data)
        dataset = StreamingDataset(
            source_of("table", far),
            str(tmp_path / "cache"),
            shuffle="none",
            decode=None,
            pre_download_transforms=[none_of_dogs, small_version, both_crops],
            storage_options=s3.storage_options,
        )
        samples = list(dataset)
        assert dataset[0] is None
        assert s3.count("GET", "*/img/*.jpg") == 0
        cats = [row["data_id"] for row in far.records() if row["label"] == "cat"]
        assert s3.count("GET", "*/small/*.jpg") == len(cats)
    assert keys_of(samples) == [key for key in cats for _ in range(2)]
    assert [s["crop"] for s in samples[:2]] == ["left", "right"]
    assert samples[0]["jpg"] == b"\xff\xd8\xff0001"
    assert samples[0]["__url__"] == "s3://bucket/small/0001.jpg"


def test_a_file_that_a_row_no_longer_names_is_not_fetched(photos: Photos) -> None:
    dataset = StreamingDataset(
        source_of("table", photos), shuffle="none", pre_download_transforms=[metadata_alone]
    )
    assert all("jpg" not in sample and "aspect" in sample for sample in dataset)


def broken(row: Sample) -> Sample:
    if row["data_id"] == "0004":
        raise ValueError("I don't like it")
    return row


def test_a_transform_that_fails_is_the_rows_own_failure(photos: Photos) -> None:
    for option in ("transforms", "pre_download_transforms"):
        options: dict[str, Any] = {option: [broken], "shuffle": "none"}
        dataset = StreamingDataset(source_of("table", photos), **options)
        with pytest.raises(ValueError, match="I don't like it") as caught:
            dataset[4]
        assert any("0004" in note for note in caught.value.__notes__)
        skipping = StreamingDataset(source_of("table", photos), on_error="skip", **options)
        assert keys_of(skipping) == [key for key in photos.keys if key != "0004"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_callbacks_cross_to_processes_of_every_kind(
    photos: Photos, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = StreamingDataset(
        source_of("table", photos),
        columns_to_load=[],
        transforms=[light],
        pre_download_transforms=[both_crops],
        data_providers={"txt": functools.partial(provide, prefix="of ")},
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context=method
    )
    assert Counter(keys_of(loader)) == Counter(photos.keys * 2)


def provide(row: Sample, prefix: str = "") -> bytes:
    return f"{prefix}{row['data_id']}".encode()


def provide_noise(row: Sample, rng: np.random.Generator) -> bytes:
    return rng.bytes(8)


def provide_nothing(row: Sample) -> bytes | None:
    return None


def test_a_data_provider_gives_a_member_and_draws_from_the_samples_own_generator(
    photos: Photos,
) -> None:
    def dataset(**options: Any) -> StreamingDataset:
        return StreamingDataset(source_of("table", photos), columns_to_load=[], **options)

    providers = {"txt": provide, "noise": provide_noise}
    samples = list(dataset(data_providers=providers))
    assert all(sample["txt"] == sample["data_id"] for sample in samples)
    assert len({sample["noise"] for sample in samples}) == 23
    again = list(dataset(data_providers=providers))
    assert [s["noise"] for s in again] == [s["noise"] for s in samples]
    with pytest.raises(FileNotFoundError, match=r"row 0 .*provider of 'txt' gave None"):
        dataset(data_providers={"txt": provide_nothing})[0]
    with pytest.raises(ConfigError, match="gave str; it must give bytes"):
        dataset(data_providers={"txt": str})[0]
    loose = dataset(data_providers={"txt": provide_nothing}, allow_missing=True)
    assert loose[0]["txt"] is None  # type: ignore[index]


class Upper(AbstractFileSystem):
    """Objects that hold their own path, in capitals."""

    protocol = "upper"

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        return self._strip_protocol(path).upper().encode()[start:end]


def test_a_registered_scheme_is_read_like_any_other(tmp_path: Path) -> None:
    fsspec.register_implementation("upper", Upper, clobber=True)
    table = pa.table({"id": ["a", "b"], "text": ["upper://a.txt", "upper://b.txt"]})
    dataset = StreamingDataset(
        table, str(tmp_path), columns_to_load=["text"], index_col_name="id", shuffle="none"
    )
    assert [sample["text"] for sample in dataset] == ["A.TXT", "B.TXT"]


calls: list[str] = []


def expensive(sample: Sample) -> Sample:
    calls.append(sample["__key__"])
    return {**sample, "latent": sample["jpg"].astype(np.float32).mean(axis=2)}


def test_an_expensive_transform_is_called_once_for_each_input(
    photos: Photos, tmp_path: Path
) -> None:
    calls.clear()
    cached = CacheTransform(expensive, str(tmp_path / "cache"), "1mb")
    for _ in range(3):
        copy = pickle.loads(pickle.dumps(cached))
        dataset = StreamingDataset(source_of("table", photos), transforms=[copy, light])
        samples = list(dataset)
        assert len(samples) == 23
    assert sorted(calls) == photos.keys
    other = CacheTransform(expensive, str(tmp_path / "cache"), "1mb", version="2")
    dataset = StreamingDataset(source_of("table", photos), transforms=[other])
    assert dataset[3]["latent"].shape == (6, 8)  # type: ignore[index]
    assert len(calls) == 24
    with pytest.raises(ConfigError, match="draws from rng"):
        CacheTransform(light, str(tmp_path), None)


def test_cached_results_and_files_obey_one_limit(far: Photos, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    dataset = StreamingDataset(
        source_of("table", far),
        folder,
        cache_limit=6_000,
        transforms=[CacheTransform(expensive, folder, 6_000, fields=["__key__", "jpg"])],
        storage_options=far.options,
    )
    for _ in range(2):
        assert all(sample["latent"].shape == (6, 8) and "label" in sample for sample in dataset)
    cache = Cache(folder, 6_000)
    assert cache.check() == []
    assert sum(entry.size for entry in cache.entries()) <= 6_000
