"""Folders of media files: grouped by relative path up to the first dot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError, IndexDataError
from shardkit.index import open_index
from shardkit.index.listing import Grouping, listing_tables
from shardkit.index.spool import Spool
from shardkit.storage.protocol import ObjectInfo
from tests.index.build import all_keys, summary
from tests.s3 import serve_s3


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


@contextmanager
def served(folder: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
    if where == "local":
        yield str(folder), {}
    else:
        with serve_s3(folder.parent) as s3:
            yield f"s3://{folder.name}", s3.storage_options


@pytest.mark.parametrize("where", ["local", "s3"])
def test_files_group_by_relative_path_up_to_the_first_dot(where: str, tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "served" / "bucket",
        "cat/000.jpg",
        "dog/000.jpg",
        "x.mp4",
        "x.summary_text.json",
        "x.vidinfo.json",
    )
    with served(folder, where) as (url, options):
        index = open_index(url, storage_options=options, scratch=str(tmp_path / "s"))
        found = {row["key"]: row["members"] for row in summary(index)}
        assert {key: sorted(members) for key, members in found.items()} == {
            "cat/000": ["jpg"],
            "dog/000": ["jpg"],
            "x": ["mp4", "summary_text.json", "vidinfo.json"],
        }
        assert found["cat/000"]["jpg"][:3] == (f"{url}/cat/000.jpg", None, len("cat/000.jpg"))


def test_hidden_files_and_meta_folders_are_left_out(tmp_path: Path) -> None:
    names = [".x.jpg", ".git/a.jpg", "a/.b/c.jpg", "__meta__/a.json", "__pycache__/x.py"]
    folder = fill(tmp_path / "d", *names, "README", "b.jpg")
    assert all_keys(open_index(folder, scratch=str(tmp_path / "s"))) == ["b"]


def test_the_folder_of_a_sample_can_be_its_class(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", "train/cat/1.jpg", "train/dog/1.jpg", "2.jpg")
    index = open_index(folder, folder_as="label", scratch=str(tmp_path / "s"))
    found = {row["key"]: row["metadata"]["label"] for row in summary(index)}
    assert found == {"train/cat/1": "cat", "train/dog/1": "dog", "2": None}


def test_data_type_keeps_samples_that_have_such_a_file(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", "1.jpg", "1.json", "2.json", "3.PNG", "labels.csv", "4.mp4")
    scratch = str(tmp_path / "s")
    assert all_keys(open_index(folder, data_type="image", scratch=scratch)) == ["1", "3"]
    assert all_keys(open_index(folder, data_type="video", scratch=scratch)) == ["4"]
    with pytest.raises(IndexDataError, match=r"no samples .* member of type audio"):
        open_index(folder, data_type="audio", scratch=scratch)
    with pytest.raises(ConfigError, match=r"data_type='pictures': must be one of image"):
        open_index(folder, data_type="pictures", scratch=scratch)


def test_exts_of_any_name_are_members(tmp_path: Path) -> None:
    """Also those that look like our own columns."""
    folder = fill(tmp_path / "d", "a.jpg", "a.key", "a.foo", "a.weird_thing", "b.JPG")
    found = summary(open_index(folder, scratch=str(tmp_path / "s")))
    assert sorted(found[0]["members"]) == ["foo", "jpg", "key", "weird_thing"]
    assert [row["key"] for row in found] == ["a", "b"]
    assert found[1]["members"]["jpg"][0].endswith("b.JPG")


def test_a_wildcard_of_media_files_is_grouped_like_a_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", "cat/1.jpg", "cat/1.json", "dog/1.jpg", "dog/2.png")
    index = open_index(f"{folder}/**/*.jpg", scratch=str(tmp_path / "s"))
    assert all_keys(index) == ["cat/1", "dog/1"]


def test_two_files_that_would_be_one_member_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", "a.jpg", "a.JPG")
    with pytest.raises(IndexDataError, match=r"a\.jpg.* both are the jpg of the sample 'a'"):
        open_index(folder, scratch=str(tmp_path / "s"))


def test_names_full_of_dots_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", *(f"frame.{i:05d}.jpg" for i in range(400)))
    with pytest.raises(IndexDataError, match="more than 256"):
        open_index(folder, scratch=str(tmp_path / "s"))


def test_links_that_loop_end(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", "a/1.jpg")
    os.symlink("..", folder / "a" / "up")
    index = open_index(folder, scratch=str(tmp_path / "s"))
    assert "a/1" in all_keys(index)
    assert index.num_rows < 5


def test_a_folder_is_the_same_index_wherever_it_lies(tmp_path: Path) -> None:
    scratch = str(tmp_path / "s")
    first = open_index(fill(tmp_path / "d", "a.jpg", "b.jpg"), scratch=scratch)
    second = open_index(fill(tmp_path / "e", "a.jpg", "b.jpg"), scratch=scratch)
    assert first.fingerprint == second.fingerprint
    assert summary(first)[0]["members"]["jpg"][0] == str(tmp_path / "d" / "a.jpg")
    assert summary(second)[0]["members"]["jpg"][0] == str(tmp_path / "e" / "a.jpg")
    more = open_index(fill(tmp_path / "e", "c.jpg"), scratch=scratch)
    assert more.fingerprint != first.fingerprint


_paths = st.lists(
    st.lists(
        st.sampled_from(["a", "b", "a.b", "a-b", "a.jpg", "a.b.png", "B.txt", ".h"]),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(_paths)
def test_any_sorted_listing_groups_as_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]]
) -> None:
    """Streaming and in bounded memory, yet every file is in the one sample of its key."""
    paths = sorted({"/".join(path) for path in parts})
    expected: dict[str, set[str]] = {}
    for path in paths:
        folder, _, base = path.rpartition("/")
        stem, dot, _ = base.partition(".")
        if any(part.startswith(".") for part in path.split("/")) or not dot:
            continue
        expected.setdefault(f"{folder}/{stem}".lstrip("/"), set()).add(path)
    if not expected:
        return
    infos = [ObjectInfo(f"/r/{path}", 1, "") for path in paths]
    with Spool(str(tmp_path_factory.mktemp("spool") / "x")) as spool:
        schema, tables = listing_tables(infos, Grouping("/r/"), spool)
        rows = [row for table in tables for row in table.to_pylist()]
    found = {
        row["__key__"]: {row[n] for n in schema.names[1:] if not n.startswith("size.") and row[n]}
        for row in rows
    }
    assert found == expected
    assert len(rows) == len(expected)


def test_the_name_of_a_folder_is_not_asked_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("id,file\n1,s3://b/1.jpg\n")
    with pytest.raises(ConfigError, match=r"folder_as='label' is for folders of files.*i\.csv"):
        open_index(tmp_path / "i.csv", folder_as="label", scratch=str(tmp_path / "s"))
