"""Keys that repeat in an index: an error that names rows and value, whatever reads the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import DataLoader, StreamingDataset
from shardkit.cli.unpacking import unpack
from shardkit.errors import IndexDataError
from shardkit.index import open_index
from shardkit.order.epoch import Shuffle
from shardkit.storage.store import open_store
from tests.index.build import write_source
from tests.streaming.build import Photos

REPEATS = r"the key '0003' repeats: row 3 of .* and row 17 of .*index_col_name"


def records(photos: Photos) -> list[dict[str, Any]]:
    """Rows of which the one numbered 17 has the key of the one numbered 3."""
    found = photos.records()
    found[17]["data_id"] = found[3]["data_id"]
    return found


def near_source(kind: str, photos: Photos, tmp_path: Path) -> Any:
    if kind == "table":
        return pa.Table.from_pylist(records(photos))
    if kind == "frame":
        return pd.DataFrame(records(photos))
    write_source(tmp_path / f"index.{kind}", records(photos))
    return tmp_path / f"index.{kind}"


@pytest.mark.parametrize("shuffle", ["none", "buffer", "global"])
@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "feather", "table", "frame"])
def test_of_what_is_read_whole_as_it_is_opened(
    photos: Photos, tmp_path: Path, kind: str, shuffle: Shuffle
) -> None:
    with pytest.raises(IndexDataError, match=REPEATS):
        StreamingDataset(
            near_source(kind, photos, tmp_path),
            str(tmp_path / "dst"),
            index_col_name="data_id",
            shuffle=shuffle,
        )


def test_of_a_mapped_copy_as_it_is_made(photos: Photos, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records(photos)), tmp_path / "i.parquet", row_group_size=5)
    with pytest.raises(IndexDataError, match=REPEATS):
        StreamingDataset(
            tmp_path / "i.parquet",
            str(tmp_path / "dst"),
            index_col_name="data_id",
            shuffle="global",
        )


@pytest.mark.parametrize("shuffle", ["none", "shard", "buffer"])
@pytest.mark.parametrize("columns", [["data_url"], []])
def test_of_a_row_group_where_the_later_row_is_read_and_the_others_come(
    photos: Photos, tmp_path: Path, shuffle: Shuffle, columns: list[str]
) -> None:
    rows = records(photos)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")

    def dataset(**said: Any) -> StreamingDataset:
        return StreamingDataset(
            tmp_path / "i.parquet",
            str(tmp_path / "dst"),
            columns_to_load=columns,
            index_col_name="data_id",
            shuffle=shuffle,
            **said,
        )

    with pytest.raises(IndexDataError, match=REPEATS):
        list(dataset())
    assert dataset()[3]["data_id"] == "0003"
    with pytest.raises(IndexDataError, match=REPEATS):
        dataset()[17]
    wanted = sorted(row["aspect"] for number, row in enumerate(rows) if number != 17)
    skipping = dataset(on_error="skip")
    assert sorted(sample["aspect"] for sample in skipping) == wanted
    assert skipping.failures.count == 1
    with DataLoader(dataset(on_error="skip"), batch_size=4, remainder="keep") as loader:
        assert sorted(aspect for batch in loader for aspect in batch["aspect"].tolist()) == wanted


def test_a_filter_that_leaves_one_of_each_does(photos: Photos, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records(photos)), tmp_path / "i.parquet")
    for source in (tmp_path / "i.parquet", pa.Table.from_pylist(records(photos))):
        dataset = StreamingDataset(
            source,
            columns_to_load=[],
            index_col_name="data_id",
            where="aspect < 1.0",
            shuffle="none",
        )
        assert [sample["__key__"] for sample in dataset] == photos.keys[:10]


def test_nothing_is_unpacked_over_another_file(photos: Photos, tmp_path: Path) -> None:
    index = open_index(near_source("csv", photos, tmp_path), key="data_id")
    with pytest.raises(IndexDataError, match=REPEATS):
        unpack(index, open_store(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
