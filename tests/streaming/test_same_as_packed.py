"""A packed index and the same index streamed are the same samples, and do for one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import DataLoader, Mix, ShardDataset, StreamingDataset
from shardkit.errors import ConfigError
from shardkit.index import Index, open_index
from shardkit.pack import LocalExecutor, PackOptions, pack
from tests.dataset.photos import make_files


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """31 samples of jpg, cls, npy and json; one of them lacks its array."""
    folder = tmp_path_factory.mktemp("same")
    path, _ = make_files(folder, 31)
    rows = pq.read_table(path).to_pylist()
    rows[4]["npy_path"] = None
    rows[5]["id"] = "a key, with blanks"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return path


def packed(index: str, out: Path, **options: Any) -> str:
    pack(
        index,
        str(out),
        inline=["caption=txt"],
        options=PackOptions(samples_per_shard=7),
        executor=LocalExecutor(1),
        **options,
    )
    return str(out)


def with_captions(index: str, **options: Any) -> Index:
    return open_index(index, inline=["caption=txt"], **options)


def without_url(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "__url__"}


def test_keys_metadata_and_bytes_are_equal(index: str, tmp_path: Path) -> None:
    shards = ShardDataset(packed(index, tmp_path / "out"), shuffle="none", decode=None)
    files = StreamingDataset(with_captions(index), shuffle="none", decode=None)
    assert shards.num_samples == files.num_samples == 31
    for packed_one, raw_one in zip(shards, files, strict=True):
        assert without_url(packed_one) == without_url(raw_one)
    assert without_url(shards[5]) == without_url(files[5])  # type: ignore[arg-type]


def test_decoded_samples_are_equal(index: str, tmp_path: Path) -> None:
    shards = ShardDataset(packed(index, tmp_path / "out"), shuffle="none")
    files = StreamingDataset(with_captions(index), shuffle="none")
    for a, b in zip(shards, files, strict=True):
        assert a.keys() == b.keys()
        assert a["cls"] == b["cls"]
        assert a["json"] == b["json"]
        assert np.array_equal(a["jpg"], b["jpg"])


def test_an_open_index_is_told_nothing_more(index: str) -> None:
    with pytest.raises(ConfigError, match=r"columns_to_load, where and .* say it to open_index"):
        StreamingDataset(with_captions(index), columns_to_load=["jpg_path"], where="aspect > 1")


def test_a_filter_leaves_the_same_samples(index: str, tmp_path: Path) -> None:
    where = "aspect > 0.2 AND label = 'cat'"
    shards = ShardDataset(packed(index, tmp_path / "out"), where=where, shuffle="none")
    files = StreamingDataset(with_captions(index, where=where), shuffle="none")
    assert len(shards) == len(files) > 0
    assert [s["__key__"] for s in shards] == [s["__key__"] for s in files]


def test_members_named_by_column_hold_the_same_bytes(index: str, tmp_path: Path) -> None:
    columns = ["jpg_path", "cls_path"]
    out = packed(index, tmp_path / "out", files=columns)
    shards = ShardDataset(out, shuffle="none", decode=None)
    files = StreamingDataset(index, columns_to_load=columns, shuffle="none", decode=None)
    for packed_one, raw_one in zip(shards, files, strict=True):
        assert raw_one["__key__"] == packed_one["__key__"]
        assert raw_one["jpg_path"] == packed_one["jpg"]
        assert raw_one["cls_path"] == packed_one["cls"]


def test_a_packed_dataset_is_an_index_too(index: str, tmp_path: Path) -> None:
    out = packed(index, tmp_path / "out")
    shards = ShardDataset(out, shuffle="none", decode=None)
    files = StreamingDataset(out, shuffle="none", decode=None)
    assert list(map(without_url, files)) == list(map(without_url, shards))


def keys_and_classes(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"], "cls": sample["cls"]}


def test_one_does_for_the_other_in_loaders_and_mixtures(index: str, tmp_path: Path) -> None:
    out = packed(index, tmp_path / "out")
    transforms = [keys_and_classes]
    both = [
        ShardDataset(out, shuffle="none", transforms=transforms),
        StreamingDataset(index, shuffle="none", transforms=transforms),
    ]
    epochs = []
    for dataset in both:
        with DataLoader(dataset, batch_size=4, num_workers=2) as loader:
            epochs.append([(batch["__key__"], batch["cls"].tolist()) for batch in loader])
    assert epochs[0] == epochs[1]
    mixed = Mix({"shards": both[0], "files": both[1]}, weights=[0.5, 0.5], seed=1)
    with DataLoader(mixed, batch_size=4, num_workers=2) as loader:
        batches = [batch for _, batch in zip(range(10), loader, strict=False)]
    streams = [name for batch in batches for name in batch["__stream__"]]
    assert abs(streams.count("shards") - streams.count("files")) <= 1
