"""Which samples take part, members as paths, metadata alone, and indexes of any size."""

from __future__ import annotations

import gc
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shardkit import DataLoader, StreamingDataset
from shardkit.errors import CacheError, ConfigError, NotFoundError
from shardkit.index import open_index
from shardkit.storage.cache import Cache
from tests.index.test_lazy import bytes_asked, column_bytes, wide_table
from tests.s3 import S3Endpoint, serve_s3
from tests.streaming.build import Photos, source_of

# -- which samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "wildcard", "csv", "table"])
def test_a_filter_means_what_it_means_to_duckdb(photos: Photos, kind: str) -> None:
    table = pa.Table.from_pylist(photos.records())
    condition = "aspect > (SELECT avg(aspect) FROM dataframe) AND label LIKE 'c%'"
    database = duckdb.connect()
    database.register("dataframe", table)
    wanted = database.sql(f"SELECT data_id FROM dataframe WHERE {condition}").fetchall()
    dataset = StreamingDataset(
        source_of(kind, photos), columns_to_load=[], where=condition, shuffle="none"
    )
    assert [sample["data_id"] for sample in dataset] == [key for (key,) in wanted]
    assert len(dataset) == len(wanted)
    with pytest.raises(ConfigError, match="no_such_column"):
        StreamingDataset(source_of(kind, photos), where="no_such_column > 1")


def test_one_name_does_as_a_list_of_it(photos: Photos) -> None:
    source = source_of("parquet", photos)
    one = StreamingDataset(source, columns_to_load="data_url", metadata="label", decode=None)[0]
    several = StreamingDataset(
        source, columns_to_load=["data_url"], metadata=["label"], decode=None
    )[0]
    assert one == several
    ranged = StreamingDataset(source, ranged="jpg", decode=None)[0]
    assert not isinstance(ranged["jpg"], bytes)


def test_a_metadata_column_that_a_member_would_hide_is_refused(photos: Photos) -> None:
    rows = [{"jpg": 1, **record} for record in photos.records()]
    with pytest.raises(ConfigError, match=r"metadata column 'jpg' would hide the member.*rename"):
        StreamingDataset(rows)
    dataset = StreamingDataset(rows, columns_to_load=["data_url"], shuffle="none", decode=None)
    assert dataset[0]["jpg"] == 1
    assert "jpg" in StreamingDataset(rows, metadata=["label"], decode=None)[0]


@pytest.mark.parametrize("most", [0, -1])
def test_fewer_than_one_sample_is_refused(photos: Photos, most: int) -> None:
    with pytest.raises(ConfigError, match=f"max_samples={most} must be at least 1"):
        StreamingDataset(source_of("parquet", photos), max_samples=most)


def test_the_first_samples_of_the_filtered_ones(photos: Photos) -> None:
    dataset = StreamingDataset(
        source_of("parquet", photos),
        columns_to_load=[],
        where="label = 'cat'",
        max_samples=5,
        shuffle="none",
    )
    assert [s["data_id"] for s in dataset] == ["0001", "0002", "0004", "0005", "0007"]
    assert len(dataset) == 5
    with pytest.raises(IndexError):
        dataset[5]


def by_label(rows: pa.Table) -> list[float]:
    return [0.0 if label == "dog" else 3.0 for label in rows["label"].to_pylist()]


def test_weights_repeat_and_leave_out(photos: Photos) -> None:
    dataset = StreamingDataset(source_of("parquet", photos), columns_to_load=[], weights=by_label)
    counts = Counter(sample["data_id"] for sample in dataset)
    cats = [row["data_id"] for row in photos.records() if row["label"] == "cat"]
    assert counts == Counter(cats * 3)
    column = StreamingDataset(source_of("parquet", photos), columns_to_load=[], weights="aspect")
    total = sum(row["aspect"] for row in photos.records())
    assert abs(len(column) - total) < 8


def test_metadata_alone_fetches_nothing(far: Photos, tmp_path: Path) -> None:
    with serve_s3(far.folder.parent) as s3:
        dataset = StreamingDataset(
            source_of("parquet", far),
            str(tmp_path / "cache"),
            columns_to_load=[],
            storage_options=s3.storage_options,
        )
        samples = list(dataset)
        assert s3.count("GET", "*.jpg") == 0
    assert sorted(sample["data_id"] for sample in samples) == far.keys
    assert samples[0].keys() == {"__key__", "__url__", "data_id", "data_url", "aspect", "label"}


# -- paths -------------------------------------------------------------------------------------


def test_a_path_is_good_for_as_long_as_it_is_held(far: Photos, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    dataset = StreamingDataset(
        source_of("parquet", far),
        folder,
        cache_limit=4_000,
        decode="path",
        storage_options=far.options,
    )
    held = [sample for sample in dataset if sample["__key__"] < "0004"]
    for _ in range(2):
        for sample in dataset:
            assert Path(sample["jpg"]).read_bytes() == far.data[sample["__key__"]]
    for sample in held:
        assert Path(sample["jpg"]).read_bytes() == far.data[sample["__key__"]]
        assert pickle.loads(pickle.dumps(sample["jpg"])) is not None
    entries = [sample["jpg"].entry for sample in held]
    del held, sample
    gc.collect()
    for entry in entries:
        with pytest.raises(ValueError, match="closed"):
            entry.fileno()
    assert Cache(folder, 4_000).check() == []


def test_a_path_ends_in_the_ext_of_its_url_and_stays_while_it_is_held(
    photos: Photos, http: S3Endpoint, tmp_path: Path
) -> None:
    there = Photos(photos.folder, f"{http.url}/bucket", {}, photos.data)
    records = [{**r, "data_url": f"{r['data_url']}?size=1.5"} for r in there.records()]
    dataset = StreamingDataset(records, str(tmp_path), cache_limit=4_000, decode="path")
    held = [dataset[index] for index in range(3)]
    for _ in dataset:
        pass
    for sample in held:
        path = Path(sample["jpg"])
        assert path.suffix == ".jpg"
        assert path.read_bytes() == photos.data[sample["__key__"]]


def test_a_local_path_is_the_file_itself(photos: Photos, tmp_path: Path) -> None:
    dataset = StreamingDataset(source_of("parquet", photos), decode="path", shuffle="none")
    assert dataset[2]["jpg"] == str(photos.folder / "img" / "0002.jpg")  # type: ignore[index]
    rows = [{"id": "a", "file": str(tmp_path / "gone.bin")}]
    gone = StreamingDataset(pa.Table.from_pylist(rows), columns_to_load=["file"], decode="path")
    with pytest.raises(NotFoundError, match=r"row 0 .*gone\.bin"):
        gone[0]


def test_bytes_of_the_index_have_a_path_too(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "data": [b"\xff\xd8\xff some bytes"]})
    dataset = StreamingDataset(table, columns_to_load=["data"], decode="path")
    sample = dataset[0]
    assert sample is not None
    assert Path(sample["data"]).read_bytes() == b"\xff\xd8\xff some bytes"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_paths_cross_to_the_consumer_and_stay_good(far: Photos, tmp_path: Path) -> None:
    dataset = StreamingDataset(
        source_of("parquet", far),
        str(tmp_path / "cache"),
        cache_limit=6_000,
        decode="path",
        storage_options=far.options,
    )
    torchs = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="forkserver"
    )
    ours = DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=list, workers="processes", remainder="keep"
    )
    for loader in (torchs, ours):
        found = {s["__key__"]: Path(s["jpg"]).read_bytes() for batch in loader for s in batch}
        assert found == far.data
    ours.close()


# -- size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["shard", "buffer"])
def test_an_epoch_reads_the_projected_bytes_once(tmp_path: Path, shuffle: Any) -> None:
    """At most 1.2 times the columns that are wanted, whatever the mode."""
    (tmp_path / "bucket").mkdir()
    path = tmp_path / "bucket" / "i.parquet"
    pq.write_table(wide_table(200_000), path, row_group_size=66_000)
    projected = column_bytes(path, {"id", "score"})
    with serve_s3(tmp_path) as s3:
        dataset = StreamingDataset(
            "s3://bucket/i.parquet",
            str(tmp_path / "cache"),
            columns_to_load=[],
            index_col_name="id",
            metadata=["score"],
            shuffle=shuffle,
            storage_options=s3.storage_options,
        )
        opening = bytes_asked(s3)
        assert len({sample["__key__"] for sample in dataset}) == 200_000
        assert bytes_asked(s3) - opening <= 1.2 * projected


def test_global_reads_a_copy_that_is_kept_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    pq.write_table(wide_table(60_000), path, row_group_size=1_000)
    index = open_index(str(path), files=[], scratch=str(tmp_path / "s"))
    dst = str(tmp_path / "dst")
    dataset = StreamingDataset(index, dst, shuffle="global", cache_limit="40mb")
    keys = [int(sample["__key__"]) for sample in dataset]
    assert sorted(keys) == list(range(60_000))
    assert np.abs(np.diff(keys)).mean() > 15_000
    assert not list((tmp_path / "s").glob("*.mapped"))
    with Cache(dst, "40mb") as cache:
        (entry,) = cache.entries()
        assert 1 << 20 < entry.size < 40_000_000
        cache.clear()
        assert cache.entries() == [entry]  # in use, so it stays
        samples = [pickle.loads(pickle.dumps(dataset))[17], dataset[17]]
        assert samples[0] == samples[1]
        assert cache.entries() == [entry]
        del dataset
        gc.collect()
        cache.clear()
        assert cache.entries() == []
        assert cache.check() == []


def test_a_copy_for_global_that_does_not_fit_is_an_error_and_a_small_one_takes_no_room(
    tmp_path: Path,
) -> None:
    path = tmp_path / "i.parquet"
    pq.write_table(wide_table(60_000), path, row_group_size=10_000)
    with pytest.raises(CacheError, match=r"the copy of .*i\.parquet for shuffle='global'.*raise"):
        StreamingDataset(
            path, str(tmp_path / "dst"), columns_to_load=[], shuffle="global", cache_limit="1mb"
        )
    pq.write_table(wide_table(1_000), path)
    small = StreamingDataset(
        path, str(tmp_path / "dst"), columns_to_load=[], shuffle="global", cache_limit="10kb"
    )
    assert len({sample["__key__"] for sample in pickle.loads(pickle.dumps(small))}) == 1_000
    with Cache(str(tmp_path / "dst"), "10kb") as cache:
        assert cache.entries() == []


HUGE = r"""
import re, sys, time
import shardkit.dataset  # and torch, which is not what is measured
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024
before, start = peak(), time.perf_counter()
from shardkit import StreamingDataset
dataset = StreamingDataset(sys.argv[1] + "/*.parquet", sys.argv[1] + "/c", columns_to_load=[])
sample = next(iter(dataset))
assert len(dataset) == 100_000_000 and sample["__key__"]
print(time.perf_counter() - start, peak() - before)
"""


def test_a_hundred_million_rows_start_in_seconds_and_little_memory(tmp_path: Path) -> None:
    part = pa.table({"id": np.arange(100_000), "url": ["s3://bucket/some/folder/x.jpg"] * 100_000})
    first = tmp_path / "000.parquet"
    with pq.ParquetWriter(first, part.schema) as writer:
        for _ in range(10):
            writer.write_table(part)
    for number in range(1, 100):
        (tmp_path / f"{number:03d}.parquet").hardlink_to(first)
    command = [sys.executable, "-c", HUGE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.fullmatch(r"([\d.]+) (\d+)\s*", run.stdout)
    assert found is not None
    assert float(found[1]) < 20  # 5 on an idle machine; a guard, not a measurement
    assert int(found[2]) < 300
