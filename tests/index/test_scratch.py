"""Where what is made of an index is kept: a disk that is full, a folder that can't be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit.errors import CacheError
from shardkit.index import open_index
from tests.small_disk import small_disk as mounted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mounted(tmp_path / "small", "1m") as folder:
        yield folder


@pytest.mark.parametrize("name", ["i.csv", "i.jsonl"])
def test_a_full_scratch_disk_is_a_clear_error_and_leaves_nothing(
    name: str, tmp_path: Path, small_disk: Path
) -> None:
    source = tmp_path / name
    if name.endswith("csv"):
        source.write_text("id,file\n" + "".join(f"{i},{'x' * 90}.jpg\n" for i in range(30_000)))
    else:
        rows = (f'{{"id": {i}, "file": "{"x" * 90}.jpg"}}\n' for i in range(30_000))
        source.write_text("".join(rows))
    with pytest.raises(CacheError, match=r"disk of .*small is full.*scratch=, --scratch, TMPDIR"):
        open_index(source, scratch=str(small_disk))
    assert [entry for entry in os.listdir(small_disk) if not entry.endswith(".lock")] == []
    assert open_index(source, scratch=str(tmp_path / "large")).num_rows == 30_000


def test_a_scratch_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("id,file\n1,s3://b/1.jpg\n")
    with pytest.raises(CacheError, match=r"scratch='/proc/nope' can't be made"):
        open_index(tmp_path / "i.csv", scratch="/proc/nope")
