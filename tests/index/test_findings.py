"""Which column is the key, which hold files, which are metadata: found, printed, overridden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.errors import ConfigError, IndexDataError
from shardkit.index import Index, member_name, open_index
from tests.index.build import all_keys, make_files, summary, write_source

URLS = ["s3://b/1.jpg", "s3://b/2.jpg"]


def opened(columns: dict[str, Any], **options: Any) -> Index:
    return open_index(pa.table(columns), **options)


@pytest.mark.parametrize(
    "name",
    [
        "__key__",
        "key",
        "ID",
        "data_id",
        "sample_id",
        "uid",
        "uuid",
        "index",
        "my_own_id",
        "name",
        "image_id",
    ],
)
def test_a_unique_column_of_a_usual_name_is_the_key(name: str) -> None:
    index = opened({"url": URLS, name: ["x", "y"], "size": [1, 2]})
    assert index.findings.key == name
    assert all_keys(index) == ["x", "y"]
    assert index.key_column == ("key" if name == "__key__" else name)
    assert index.metadata_columns[0] == index.key_column


@pytest.mark.parametrize("values", [["x", "x"], ["x", None], [1.0, 2.0], [[1], [2]]])
def test_what_cannot_be_a_key_is_passed_over(values: list[Any]) -> None:
    index = opened({"id": values, "url": URLS})
    assert index.findings.key is None
    assert all_keys(index) == ["000000000", "000000001"]


def test_the_key_keeps_its_own_type_among_the_metadata() -> None:
    index = opened({"id": [7, 8], "url": URLS})
    assert all_keys(index) == ["7", "8"]
    assert index.read(0).metadata.column("id").to_pylist() == [7, 8]


def test_urls_and_paths_with_media_exts_are_files_and_pages_are_not() -> None:
    index = opened(
        {
            "image_url": ["https://h/a.jpg?w=1", "https://h/b.png"],
            "clip": ["s3://b/a", "gs://b/b.mp4"],
            "page_url": ["https://h/p1", "https://h/p2"],
            "license": ["https://h/by/4.0", "https://h/by/4.0"],
            "text": ["see a.jpg for more of this", "nothing at all"],
            "path": ["/data/a.wav", "/data/b.wav"],
        }
    )
    assert [column.name for column in index.findings.files] == ["image_url", "clip", "path"]
    assert [list(row["members"]) for row in summary(index)] == [
        ["jpg", None, "wav"],
        ["png", "mp4", "wav"],
    ]


def test_web_addresses_without_an_ext_are_files_if_nothing_else_is() -> None:
    index = opened({"url": ["https://h/1", "https://h/2"], "license": ["https://l", "https://l"]})
    assert [column.name for column in index.findings.files] == ["url"]
    rows = index.read(0)
    assert rows.members[0].exts == ["", ""]
    assert rows.members[0].names == [None, None]
    assert rows.members[0].name_for("png") == "png"


def test_two_columns_that_share_an_ext_are_named_by_column_in_all_rows() -> None:
    index = opened(
        {"Left Eye": ["a.jpg", "b.png"], "right": ["c.jpg", "d.webp"], "sound": ["e.wav", "f.wav"]},
        files=["Left Eye", "right", "sound"],
    )
    assert [list(row["members"]) for row in summary(index)] == [
        ["left_eye.jpg", "right.jpg", "wav"],
        ["left_eye.png", "right.webp", "wav"],
    ]
    assert member_name("Left Eye", "jpg", qualified=True) == "left_eye.jpg"


def test_a_clash_that_the_first_rows_do_not_show_is_an_error_that_names_the_row() -> None:
    count = 5_000
    a = [f"s3://b/{i}.jpg" for i in range(count)]
    b = [f"s3://b/{i}.png" for i in range(count - 1)] + ["s3://b/x.jpg"]
    index = opened({"a": a, "b": b})
    assert index.read(0, 0, 10).members[1].names[0] == "png"
    with pytest.raises(IndexDataError, match=r"'a' and 'b' both are jpg in row 4,999 .*--files"):
        index.read(0)


def test_bytes_and_hugging_face_structs_are_members_with_sniffed_exts() -> None:
    png = b"\x89PNG\r\n\x1a\n"
    struct = [{"bytes": png, "path": None}, {"bytes": None, "path": "s3://b/x.webp"}]
    index = opened({"image": struct, "audio": [b"fLaC1", b"RIFF....WAVE"], "id": [1, 2]})
    found = [row["members"] for row in summary(index)]
    assert found[0] == {"png": (None, None, None, png), "flac": (None, None, None, b"fLaC1")}
    assert found[1]["webp"][0] == "s3://b/x.webp"
    assert list(found[1]) == ["webp", "wav"]


def test_a_list_of_files_is_numbered() -> None:
    index = opened({"frames": [["s3://b/1.jpg", "s3://b/2.jpg"], [], None, ["s3://b/3.png"]]})
    assert [list(row["members"]) for row in summary(index)] == [
        ["frames.0.jpg", "frames.1.jpg"],
        [],
        [],
        ["frames.0.png"],
    ]


def test_every_finding_can_be_overridden() -> None:
    columns = {
        "id": ["a", "b"],
        "other": ["c", "d"],
        "url": URLS,
        "caption": ["one thing", "another thing"],
        "extra": [{"x": 1}, {"x": float("nan")}],
        "n": [1, None],
    }
    index = opened(
        columns,
        key="other",
        files=["url=img.JPG"],
        inline=["caption=txt", "extra=json", "n=cls"],
        metadata=["id"],
    )
    first, second = summary(index)
    assert first == {
        "key": "c",
        "members": {
            "img.jpg": ("s3://b/1.jpg", None, None, None),
            "txt": (None, None, None, b"one thing"),
            "json": (None, None, None, b'{"x": 1.0}'),
            "cls": (None, None, None, b"1"),
        },
        "metadata": {"id": "a"},
    }
    assert second["members"]["json"][3] == b'{"x": null}'
    assert "cls" not in second["members"]
    bare = opened(columns, files=[], metadata=[])
    assert summary(bare)[0] == {"key": "a", "members": {}, "metadata": {}}


@pytest.mark.parametrize(
    ("option", "value"),
    [("key", "nope"), ("files", ["nope"]), ("inline", "nope=txt"), ("metadata", ["nope"])],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(option: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"{option}: the index has no column 'nope'; it has id, url"
    ):
        opened({"id": [1, 2], "url": URLS}, **{option: value})


def test_a_column_that_can_hold_no_file_is_refused_as_one() -> None:
    with pytest.raises(ConfigError, match=r"'n' holds int64, which can't name a file"):
        opened({"n": [1]}, files=["n"])


def test_the_findings_are_printed_with_the_flags_that_override_them() -> None:
    text = opened(
        {"id": [1, 2], "url": URLS, "caption": ["a fine day", "and a good one"]}
    ).describe()
    assert "2 rows in a Table" in text
    for line in (
        "key       id   (--key)",
        "url: jpg",
        "(--files)",
        "metadata  id, caption   (--meta)",
    ):
        assert line in text
    assert "--inline caption=txt" in text


def test_relative_paths_start_in_the_folder_of_the_index_and_else_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="shardkit")
    records = make_files(tmp_path / "data")
    scratch = str(tmp_path / "s")
    beside = write_source(tmp_path / "data" / "i.parquet", records)
    away = write_source(tmp_path / "elsewhere" / "i.parquet", records)
    expected = str(tmp_path / "data" / "img" / "0000.jpg")
    assert summary(open_index(beside, scratch=scratch))[0]["members"]["jpg"][0] == expected
    monkeypatch.chdir(tmp_path / "data")
    index = open_index(away, scratch=scratch)
    assert summary(index)[0]["members"]["jpg"][0] == expected
    assert "start in the working directory" in index.describe()
    assert caplog.text.count("start in the working directory") == 1
    monkeypatch.chdir("/")
    assert summary(index)[0]["members"]["jpg"][0] == expected


def test_file_names_that_lead_nowhere_are_metadata_beside_urls(tmp_path: Path) -> None:
    """As COCO has them: a file name and the address."""
    path = tmp_path / "i.parquet"
    pq.write_table(pa.table({"file_name": ["1.jpg", "2.jpg"], "coco_url": URLS}), path)
    index = open_index(path, scratch=str(tmp_path / "s"))
    assert [column.name for column in index.findings.files] == ["coco_url"]
    assert "file_name" in index.metadata_columns
    assert any("file_name" in note for note in index.findings.notes)


def test_paths_with_dots_and_parents_are_worked_off(tmp_path: Path) -> None:
    make_files(tmp_path)
    path = tmp_path / "sub" / "i.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": ["../img/0000.jpg", "./../img/0001.jpg"]}), path)
    found = summary(open_index(path, scratch=str(tmp_path / "s")))
    assert [row["members"]["jpg"][0] for row in found] == [
        str(tmp_path / "img" / f"{i:04d}.jpg") for i in range(2)
    ]
    assert os.path.exists(found[0]["members"]["jpg"][0])


def test_missing_cells_are_missing_members() -> None:
    index = opened({"url": ["s3://b/1.jpg", None, ""], "id": [1, 2, 3]})
    assert [list(row["members"]) for row in summary(index)] == [["jpg"], [], []]


def test_take_and_read_agree_and_refuse_rows_that_are_not_there() -> None:
    import numpy as np

    index = opened({"id": list(range(100)), "url": [f"s3://b/{i}.jpg" for i in range(100)]})
    taken = index.take(0, np.array([5, 3, 99]))
    assert taken.keys == ["5", "3", "99"]
    assert taken.members[0].urls[2] == "s3://b/99.jpg"
    assert index.read(0, 10, 12).keys == ["10", "11"]
    with pytest.raises(ConfigError, match="group 0, which has 100"):
        index.read(0, 10, 101)
    with pytest.raises(ConfigError, match="it has 100"):
        index.take(0, np.array([100]))


def test_a_file_without_a_header_line_is_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("0000,img/0000.jpg\n0001,img/0001.jpg\n")
    (note,) = open_index(tmp_path / "i.csv", scratch=str(tmp_path / "s")).findings.notes
    assert note == "the column 'img/0000.jpg' is called like a file: is the header line missing?"


def test_one_row_is_one_row() -> None:
    assert opened({"id": ["a"], "url": ["s3://b/1.jpg"]}).describe().startswith("1 row in ")
    assert opened({"id": ["a", "b"], "url": URLS}).describe().startswith("2 rows in ")
