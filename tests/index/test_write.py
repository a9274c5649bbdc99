"""``shardkit index``: any source written down reads back as the same rows; fingerprints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.cli.main import main
from shardkit.errors import ConfigError, CorruptError
from shardkit.index import Index, open_index, write_index
from shardkit.pack import LocalExecutor, PackOptions, pack
from tests.index.build import make_files, same_rows, summary, write_source
from tests.index.tar_zoo import FOREIGN
from tests.s3 import serve_s3


def _frames(folder: Path) -> tuple[Any, dict[str, Any]]:
    urls = [["s3://b/1.jpg", "s3://b/2.jpg"], [], ["s3://b/3.png"]]
    return pa.table({"id": [1, 2, 3], "frames": urls}), {}


def _embedded(folder: Path) -> tuple[Any, dict[str, Any]]:
    struct = [
        {"bytes": b"\x89PNG\r\n\x1a\n", "path": None},
        {"bytes": None, "path": "s3://b/x.gif"},
    ]
    table = pa.table(
        {
            "image": struct,
            "sound": [b"fLaC", None],
            "caption": ["a b c", None],
            "n": [{"x": 1}, None],
        }
    )
    return table, {"inline": ["caption=txt", "n=json"]}


def _folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    make_files(folder)
    (folder / "img" / "0003.seg.png").write_bytes(b"png")
    (folder / "img" / "0003.foo").write_bytes(b"")
    return str(folder / "img"), {"folder_as": "label"}


def _table(folder: Path) -> tuple[Any, dict[str, Any]]:
    return str(write_source(folder / "i.csv", make_files(folder))), {"inline": "caption=txt"}


def _filtered(folder: Path) -> tuple[Any, dict[str, Any]]:
    path = write_source(folder / "i.parquet", make_files(folder))
    return str(path), {"where": "width > 104", "metadata": ["score"]}


def _tars(folder: Path) -> tuple[Any, dict[str, Any]]:
    FOREIGN["uneven"](folder / "x-000.tar")
    FOREIGN["ustar"](folder / "x-001.tar")
    return f"{folder}/x-{{000..001}}.tar", {}


def _packed(folder: Path) -> tuple[Any, dict[str, Any]]:
    index = write_source(folder / "i.parquet", make_files(folder))
    options = PackOptions(samples_per_shard=4)
    pack(str(index), str(folder / "out"), options=options, executor=LocalExecutor(1))
    return str(folder / "out"), {}


def checksums(index: Index) -> list[Any]:
    return [
        (member.name, member.checksums[row] if member.checksums is not None else None)
        for rows in index.batches()
        for row in range(len(rows))
        for member in rows.members
    ]


SOURCES = [_frames, _embedded, _folder, _table, _filtered, _tars, _packed]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__.strip("_"))
def test_what_is_written_down_reads_back_as_the_same_rows(
    make: Callable[[Path], tuple[Any, dict[str, Any]]], tmp_path: Path
) -> None:
    """Keys, members with places, sizes and checksums, names, metadata and their types."""
    source, options = make(tmp_path)
    index = open_index(source, scratch=str(tmp_path / "s"), **options)
    write_index(index, str(tmp_path / "written.parquet"))
    again = open_index(tmp_path / "written.parquet", scratch=str(tmp_path / "s"))
    assert same_rows(index, again)
    assert index.metadata_schema == again.metadata_schema
    assert index.key_column == again.key_column
    assert checksums(index) == checksums(again)


def test_sizes_of_a_listing_are_columns(tmp_path: Path) -> None:
    make_files(tmp_path)
    index = open_index(tmp_path / "img", scratch=str(tmp_path / "s"))
    write_index(index, str(tmp_path / "i.parquet"))
    table = pq.read_table(tmp_path / "i.parquet")
    assert table.column_names == ["jpg", "size.jpg", "key"]
    assert table.column("size.jpg")[0].as_py() == os.path.getsize(tmp_path / "img/0000.jpg")


def test_sizes_and_offsets_of_anyones_table_are_used(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a"],
            "bin": ["s3://b/x.tar"],
            "offset.bin": [512],
            "size.bin": pa.array([7], pa.int32()),
        }
    )
    rows = open_index(table, files=["bin"]).read(0)
    assert (rows.members[0].starts, rows.members[0].sizes) == ([512], [7])
    assert rows.metadata.column_names == ["id"]


def test_an_index_is_written_to_s3_whole_or_not_at_all(tmp_path: Path) -> None:
    make_files(tmp_path / "bucket")
    with serve_s3(tmp_path) as s3:
        options = s3.storage_options
        assert (
            main(
                [
                    "index",
                    "s3://bucket/img/",
                    "s3://bucket/i.parquet",
                    "--scratch",
                    str(tmp_path / "s"),
                    "--storage-options",
                    str(options).replace("'", '"'),
                ]
            )
            == 0
        )
        index = open_index("s3://bucket/i.parquet", storage_options=options, scratch=str(tmp_path))
        assert summary(index)[3]["members"]["jpg"][0] == "s3://bucket/img/0003.jpg"


def test_the_command_says_what_it_found_and_checks_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_files(tmp_path)
    path = write_source(tmp_path / "i.csv", records)
    scratch = ["--scratch", str(tmp_path / "s")]
    assert main(["index", str(path), *scratch]) == 0
    assert "key       id   (--key)" in capsys.readouterr().out
    out = str(tmp_path / "o.parquet")
    assert main(["index", str(path), out, "--inline", "caption=txt", *scratch]) == 0
    assert "10 rows written to" in capsys.readouterr().out
    assert list(summary(open_index(out))[0]["members"]) == ["jpg", "txt"]
    assert main(["index", str(path), str(tmp_path / "o.csv"), *scratch]) == 2
    assert "let its name end in .parquet" in capsys.readouterr().err
    write_source(path, [*records, {**records[0], "id": "0009"}])
    assert main(["index", str(path), out, "--key", "id", *scratch]) == 2
    assert "the key '0009' repeats: row 9 of" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "nothing.csv"), out, *scratch]) == 2


def test_tars_are_scanned_on_all_cores_by_the_command(tmp_path: Path) -> None:
    for k in range(4):
        FOREIGN["GNU tar PAX"](tmp_path / f"{k}.tar")
    command = [sys.executable, "-m", "shardkit.cli.main", "index", f"{tmp_path}/{{0..3}}.tar"]
    command += ["--workers", "2", "--scratch", str(tmp_path / "s"), "--dry-run"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    index = open_index(f"{tmp_path}/{{0..3}}.tar", scratch=str(tmp_path / "s"))
    assert f"{index.num_rows:,} rows in" in run.stdout


def test_a_member_and_metadata_of_one_name_are_refused(tmp_path: Path) -> None:
    index = open_index(pa.table({"id": [1], "url": ["s3://b/1.jpg"]}), metadata=["url"])
    with pytest.raises(ConfigError, match=r"'url' is a file and metadata at once"):
        write_index(index, str(tmp_path / "x.parquet"))


def test_a_damaged_role_is_refused(tmp_path: Path) -> None:
    field = pa.field("url", pa.string(), metadata={"shardkit.role": "no json"})
    table = pa.table([pa.array(["s3://b/1.jpg"])], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "i.parquet")
    with pytest.raises(CorruptError, match="role of the column 'url' is damaged"):
        open_index(tmp_path / "i.parquet")


# --- fingerprints

PRINT = """
import sys
from shardkit.index import open_index
print(open_index(sys.argv[1], scratch=sys.argv[2]).fingerprint)
"""


@pytest.mark.parametrize("name", ["i.parquet", "i.csv", "i.jsonl", "i.feather", "img", "img/*.jpg"])
def test_a_fingerprint_is_of_contents_not_of_times_places_or_processes(
    name: str, tmp_path: Path
) -> None:
    found = set()
    for place in ("one", "two"):
        folder = tmp_path / place
        records = make_files(folder)
        if "img" not in name:
            write_source(folder / name, records)
        found.add(open_index(folder / name, scratch=str(tmp_path / "s")).fingerprint)
        for path in folder.rglob("*"):
            os.utime(path, (1, 1))
        found.add(open_index(folder / name, scratch=str(tmp_path / "t")).fingerprint)
    command = [sys.executable, "-c", PRINT, str(tmp_path / "one" / name), str(tmp_path / "u")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {run.stdout.strip()} == found


@pytest.mark.parametrize("name", ["i.parquet", "i.csv", "i.jsonl", "i.feather"])
def test_a_fingerprint_changes_with_any_value_and_with_the_findings(
    name: str, tmp_path: Path
) -> None:
    records = make_files(tmp_path)
    path = write_source(tmp_path / name, records)
    scratch = str(tmp_path / "s")
    found = {
        open_index(path, scratch=scratch).fingerprint,
        open_index(path, scratch=scratch, metadata=["id"]).fingerprint,
        open_index(path, scratch=scratch, inline=["caption=txt"]).fingerprint,
        open_index(path, scratch=scratch, key="caption").fingerprint,
        open_index(path, scratch=scratch, where="width > 102").fingerprint,
    }
    records[7]["caption"] = "a photo of thing 8, quite nice"  # as many bytes as before
    write_source(path, records)
    found.add(open_index(path, scratch=scratch).fingerprint)
    assert len(found) == 6
