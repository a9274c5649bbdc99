"""``shardkit unpack``: what an index lists, as files of a folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.cli.main import main
from tests.s3 import S3Endpoint, serve_s3
from tests.streaming.build import Photos, source_of


def arguments(src: str, out: Path, s3: S3Endpoint, *more: str) -> list[str]:
    named = ["--columns", "data_url", "--index-col", "data_id", "--workers", "10"]
    options = ["--storage-options", json.dumps(s3.storage_options), "--quiet"]
    return ["unpack", src, str(out), *named, *options, *more]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_file_that_the_index_lists_arrives_and_only_once(
    far: Photos, s3: S3Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, out = source_of("parquet", far), tmp_path / "out"
    assert main(arguments(src, out, s3)) == 0
    expected = {f"{key}.jpg": data for key, data in far.data.items()}
    assert files_in(out) == expected
    (out / "0003.jpg").unlink()
    before = s3.count("GET", "*/img/*.jpg")
    assert main(arguments(src, out, s3)) == 0
    assert s3.count("GET", "*/img/*.jpg") == before + 1
    assert files_in(out) == expected
    assert "1 files" in (said := capsys.readouterr().out) and "22 were there" in said


def test_what_is_missing_ends_it_or_is_listed(
    far: Photos, s3: S3Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = far.records()
    rows[4]["data_url"] = "s3://bucket/img/gone.jpg"
    src = str(tmp_path / "i.parquet")
    pq.write_table(pa.Table.from_pylist(rows), src)
    assert main(arguments(src, tmp_path / "out", s3)) == 2
    assert "row 4" in capsys.readouterr().err
    assert main(arguments(src, tmp_path / "out", s3, "--on-error", "skip")) == 1
    assert len(files_in(tmp_path / "out")) == 22
    assert "row 4" in capsys.readouterr().err


def test_a_killed_unpack_leaves_whole_files_and_goes_on(far: Photos, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serve_s3(far.folder.parent, latency_s=0.2) as s3:
        command = [sys.executable, "-m", "shardkit.cli.main"]
        command += arguments(source_of("parquet", far), out, s3)
        command[command.index("10")] = "2"
        process = subprocess.Popen(command)
        while not (out.exists() and len(list(out.glob("[0-9]*"))) >= 4):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = {name: data for name, data in files_in(out).items() if not name.startswith(".")}
        assert 4 <= len(there) < 23
        assert all(far.data[name[:4]] == data for name, data in there.items())
        assert main(arguments(source_of("parquet", far), out, s3)) == 0
    found = {name for name in files_in(out) if not name.startswith(".")}
    assert found == {f"{key}.jpg" for key in far.data}


def test_members_go_by_the_names_that_pack_gives_them(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"\xff\xd8\xff no ext")
    (tmp_path / "b.png").write_bytes(b"png")
    rows = [{"id": "a/1", "left": str(tmp_path / "plain"), "right": str(tmp_path / "b.png")}]
    src = str(tmp_path / "i.parquet")
    pq.write_table(pa.Table.from_pylist(rows), src)
    for _ in range(2):
        assert main(["unpack", src, str(tmp_path / "out"), "--columns", "left", "right"]) == 0
    names = sorted(files_in(tmp_path / "out"))
    assert [name.split(".", 1)[1] for name in names] == ["jpg", "png"]
    assert all(name.startswith("a_1-") for name in names)
