"""Keys that repeat or are missing, found over all rows; named by row and value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.errors import ConfigError, IndexDataError
from shardkit.index import open_index


def url(count: int) -> list[str]:
    return [f"s3://b/{i}.jpg" for i in range(count)]


def test_a_key_that_repeats_in_another_group_names_both_rows(tmp_path: Path) -> None:
    keys = [f"k{i}" for i in range(200_000)]
    keys[190_000] = "k17"
    keys[190_001] = "k16"
    pq.write_table(
        pa.table({"id": keys, "n": np.arange(200_000)}),
        tmp_path / "i.parquet",
        row_group_size=70_000,
    )
    index = open_index(tmp_path / "i.parquet", files=[], scratch=str(tmp_path / "s"))
    with pytest.raises(
        IndexDataError,
        match=r"the key 'k16' repeats: row 16 of .*i\.parquet and row 190,001 of .*--key",
    ):
        index.check_keys()
    kept = open_index(tmp_path / "i.parquet", files=[], where="n < 190000", scratch=str(tmp_path))
    kept.check_keys()


def test_a_key_that_repeats_in_another_file_names_both_files(tmp_path: Path) -> None:
    for name, keys in (("a", ["x", "y"]), ("b", ["z", "y"])):
        pq.write_table(pa.table({"id": keys, "url": url(2)}), tmp_path / f"{name}.parquet")
    index = open_index(f"{tmp_path}/*.parquet", scratch=str(tmp_path / "s"))
    with pytest.raises(
        IndexDataError, match=r"'y' repeats: row 1 of .*a\.parquet and row 1 of .*b\.parq"
    ):
        index.check_keys()


def test_a_key_that_repeats_within_a_group_raises_as_the_group_is_read(tmp_path: Path) -> None:
    """The lazy check: nobody has to look at all rows first. The later row is at fault, no other."""
    keys = [f"k{i}" for i in range(6_000)]
    keys[5_999] = "k3"
    pq.write_table(pa.table({"id": keys}), tmp_path / "i.parquet")
    index = open_index(tmp_path / "i.parquet", files=[], scratch=str(tmp_path / "s"))
    for read in (
        lambda: index.read(0),
        lambda: index.read(0, 5_990),
        lambda: index.take(0, np.array([7, 5_999, 8])),
    ):
        with pytest.raises(IndexDataError, match=r"'k3' repeats: row 3 .* and row 5,999"):
            read()
    assert index.read(0, 0, 5_999).keys == keys[:-1]


def test_a_key_that_repeats_in_filtered_rows_does_not_matter(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b", "a", "b"], "split": ["x", "x", "y", "z"]})
    pq.write_table(table, tmp_path / "i.parquet")
    index = open_index(
        tmp_path / "i.parquet", key="id", files=[], where="split != 'x'", scratch=str(tmp_path)
    )
    assert index.read(0).keys == ["a", "b"]
    again = open_index(
        tmp_path / "i.parquet", key="id", files=[], where="split != 'z'", scratch=str(tmp_path)
    )
    assert again.read(0, 0, 2).keys == ["a", "b"]
    with pytest.raises(IndexDataError, match=r"'a' repeats: row 0 of .* and row 2 of"):
        again.read(0)


@pytest.mark.parametrize("num_rows", [10, 200_000])
def test_a_table_that_is_here_is_looked_at_whole_and_once(tmp_path: Path, num_rows: int) -> None:
    keys = [f"k{i}" for i in range(num_rows)]
    scratch = tmp_path / "s"
    well = open_index(pa.table({"id": keys}), files=[], scratch=str(scratch))
    well.check_near_keys()
    well.check_near_keys()
    noted = [path.name for path in scratch.glob("*.keys")] if scratch.exists() else []
    assert noted == ([f"{well.fingerprint}.keys"] if num_rows > 10 else [])
    keys[-1] = "k1"
    index = open_index(pa.table({"id": keys}), key="id", files=[], scratch=str(scratch))
    for _ in range(2):
        with pytest.raises(IndexDataError, match=rf"'k1' repeats: row 1 .* row {num_rows - 1:,} "):
            index.check_near_keys()


@pytest.mark.parametrize("missing", [None, ""])
def test_an_empty_key_names_its_row(missing: str | None) -> None:
    keys = ["a", "b", missing]
    index = open_index(pa.table({"name": keys, "url": url(3)}), key="name")
    with pytest.raises(IndexDataError, match=r"'name' is empty in row 2 of a Table.*--key"):
        index.check_keys()
    with pytest.raises(IndexDataError, match=r"'name' is empty in row 2"):
        index.read(0)
    assert index.read(0, 0, 2).keys == ["a", "b"]


def test_keys_that_differ_only_in_type_are_told_by_their_text() -> None:
    index = open_index(pa.table({"id": [1, 2, 12]}), files=[])
    index.check_keys()
    assert index.read(0).keys == ["1", "2", "12"]
    with pytest.raises(ConfigError, match="holds text or whole numbers, not double"):
        open_index(pa.table({"id": [1.5]}), files=[], key="id").check_keys()


def test_made_keys_are_row_numbers_whatever_is_filtered(tmp_path: Path) -> None:
    table = pa.table({"n": [5, 6, 7, 8]})
    assert open_index(table, files=[], scratch=str(tmp_path)).read(0).keys[3] == "000000003"
    assert open_index(table, files=[], where="n > 6", scratch=str(tmp_path)).read(0).keys == [
        "000000002",
        "000000003",
    ]


MILLIONS = r"""
import re, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from shardkit.index import open_index
folder = sys.argv[1]
with pq.ParquetWriter(f"{folder}/i.parquet", pa.schema([("id", pa.int64())])) as writer:
    for start in range(0, 8_000_000, 100_000):
        writer.write_table(pa.table({"id": np.arange(start, start + 100_000) * 7919}))
index = open_index(f"{folder}/i.parquet", files=[], scratch=f"{folder}/s")
index.check_keys()
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def test_eight_million_keys_are_checked_in_bounded_memory(tmp_path: Path) -> None:
    """DuckDB's limit and a few batches; the keys alone would be 1 GB of Python strings."""
    run = subprocess.run(
        [sys.executable, "-c", MILLIONS, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) < 900
