"""Every kind of source gives the same rows; each row once."""

from __future__ import annotations

import gzip
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shardkit.errors import ConfigError, CorruptError, IndexDataError, NotFoundError
from shardkit.index import open_index
from tests.index.build import all_keys, make_files, same_rows, summary, write_source
from tests.s3 import S3Endpoint, serve_http, serve_s3

NAMES = ["i.parquet", "i.csv", "i.tsv", "i.json", "i.jsonl", "i.feather", "i.arrow"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten files, an index of them in every format, and parts of it."""
    folder = tmp_path_factory.mktemp("served") / "bucket"
    records = make_files(folder)
    for name in NAMES:
        write_source(folder / name, records)
        write_source(folder / "parts" / f"b{name}", [_up(r) for r in records[5:]])
        write_source(folder / "parts" / f"a{name}", [_up(r) for r in records[:5]])
    (folder / "files.txt").write_text("# all\n\n" + "\n".join(r["image"] for r in records) + "\n")
    return folder


def _up(record: dict[str, object]) -> dict[str, object]:
    return {**record, "image": f"../{record['image']}"}


@pytest.fixture(scope="module")
def s3(bucket: Path) -> Iterator[S3Endpoint]:
    with serve_s3(bucket.parent) as endpoint:
        yield endpoint


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_gives_the_same_rows(name: str, bucket: Path, tmp_path: Path) -> None:
    index = open_index(bucket / name, scratch=str(tmp_path))
    expected = open_index(bucket / "i.parquet", scratch=str(tmp_path))
    assert same_rows(index, expected)
    assert all_keys(index) == [f"{i:04d}" for i in range(10)]
    first = summary(index)[0]
    assert first["members"] == {"jpg": (str(bucket / "img/0000.jpg"), None, None, None)}
    assert first["metadata"] == {
        "id": "0000",
        "caption": "a photo of thing 0, quite nice",
        "width": 100,
        "score": 0.0,
    }


@pytest.mark.parametrize("name", [*NAMES, "files.txt", "img/", "img", "img/*.jpg"])
def test_s3_gives_the_same_rows_as_the_local_folder(
    name: str, bucket: Path, s3: S3Endpoint, tmp_path: Path
) -> None:
    far = open_index(
        f"s3://bucket/{name}", storage_options=s3.storage_options, scratch=str(tmp_path)
    )
    near = open_index(f"{bucket}/{name}", scratch=str(tmp_path))
    assert far.num_rows == near.num_rows == 10
    for a, b in zip(summary(far), summary(near), strict=True):
        assert a["metadata"] | {"key": ""} == b["metadata"] | {"key": ""}
        if "files.txt" not in name:  # keys of a list's lines are whole paths
            assert a["key"] == b["key"]
        assert [url.replace("s3://bucket", str(bucket)) for url, *_ in a["members"].values()] == [
            url for url, *_ in b["members"].values()
        ]


@pytest.mark.parametrize("name", ["i.parquet", "i.csv", "files.txt"])
def test_an_index_may_lie_on_a_web_server(name: str, bucket: Path, tmp_path: Path) -> None:
    with serve_http(bucket) as http:
        index = open_index(f"{http.url}/{name}", scratch=str(tmp_path))
        assert index.num_rows == 10
        assert summary(index)[3]["members"]["jpg"][0] == f"{http.url}/img/0003.jpg"


@pytest.mark.parametrize("name", NAMES)
def test_a_wildcard_gives_each_row_of_many_files_once(
    name: str, bucket: Path, s3: S3Endpoint, tmp_path: Path
) -> None:
    """Relative paths start in the folder of each file."""
    near = open_index(f"{bucket}/parts/*{name}", scratch=str(tmp_path))
    far = open_index(
        f"s3://bucket/**/*{name.replace('i.', 'i*.')}",
        storage_options=s3.storage_options,
        scratch=str(tmp_path),
    )
    assert all_keys(near) == [f"{i:04d}" for i in range(10)]
    assert sorted(all_keys(far)) == sorted([f"{i:04d}" for i in range(10)] * 2)
    assert [row["members"]["jpg"][0] for row in summary(near)] == [
        str(bucket / f"img/{i:04d}.jpg") for i in range(10)
    ]


def test_braces_and_double_colons_name_several_files(bucket: Path, tmp_path: Path) -> None:
    index = open_index(f"{bucket}/parts/{{a,b}}i.csv", scratch=str(tmp_path))
    assert all_keys(index) == [f"{i:04d}" for i in range(10)]
    index = open_index(f"{bucket}/parts/bi.csv::{bucket}/parts/ai.parquet", scratch=str(tmp_path))
    assert all_keys(index) == [f"{i:04d}" for i in [*range(5, 10), *range(5)]]


def test_a_list_of_names_is_one_index(bucket: Path, tmp_path: Path) -> None:
    wanted = open_index(f"{bucket}/parts/*i.parquet", scratch=str(tmp_path))
    with serve_http(bucket.parent) as http:
        parts = f"{http.url}/bucket/parts"
        for names in (
            [bucket / "parts" / "ai.parquet", f"{bucket}/parts/bi.parquet"],
            (f"{bucket}/parts/*i.parquet",),
            [f"{bucket}/parts/{{a,b}}i.parquet"],
            [f"{parts}/ai.parquet", f"{parts}/bi.parquet"],
        ):
            index = open_index(names, scratch=str(tmp_path))
            assert all_keys(index) == all_keys(wanted)
        with pytest.raises(NotFoundError, match=r"\*i\.parquet is no file, and a web server lists"):
            open_index(f"{parts}/*i.parquet", scratch=str(tmp_path))
    assert index.source == f"{parts}/ai.parquet and 1 more"
    with pytest.raises(NotFoundError, match=r"nothing\.csv"):
        open_index([f"{bucket}/i.csv", f"{bucket}/nothing.csv"], scratch=str(tmp_path))


@pytest.mark.parametrize("name", ["split_file_texts.txt", "split_file_paths.txt", "any.txt"])
def test_a_list_of_index_files_is_read_relative_to_its_own_folder(
    name: str, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = bucket / name
    path.write_text(f"# parts\n\n  parts/bi.parquet  \n{bucket}/parts/ai.csv\nparts/b*.jsonl\n")
    index = open_index(path, scratch=str(tmp_path))
    expected = [*range(5, 10), *range(5), *range(5, 10)]
    assert all_keys(index) == [f"{i:04d}" for i in expected]
    assert open_index(path, max_files=2, scratch=str(tmp_path)).num_rows == 10


def test_a_list_of_media_files_is_a_row_a_line_and_neighbours_of_one_name_are_one(
    tmp_path: Path,
) -> None:
    lines = ["cat/1.jpg", "cat/1.json", "dog/1.jpg", "s3://b/x/2.mp4", "https://h/y/3.wav?sig=1"]
    path = tmp_path / "media.txt"
    path.write_text("\n".join(lines))
    found = summary(open_index(path, scratch=str(tmp_path / "s")))
    assert [list(row["members"]) for row in found] == [["jpg", "json"], ["jpg"], ["mp4"], ["wav"]]
    assert found[3]["members"]["wav"][0] == lines[4]
    assert found[0]["key"].endswith("cat/1")
    assert found[2]["key"] == "b/x/2"


def test_tables_and_frames_in_memory_are_indexes(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their relative paths start in the working directory."""
    monkeypatch.chdir(bucket)
    records = make_files(bucket)
    table = pa.Table.from_pylist(records)
    expected = open_index(bucket / "i.parquet", scratch=str(tmp_path))
    for source in (table, table.to_batches()[0], table.to_pandas(), records, Capsule(table)):
        index = open_index(source, scratch=str(tmp_path))
        assert same_rows(index, expected)
        assert same_rows(pickle.loads(pickle.dumps(index)), expected)
    frame = table.to_pandas().set_index("id")
    assert all_keys(open_index(frame, scratch=str(tmp_path))) == all_keys(expected)


class Capsule:
    """What polars and others offer: an Arrow stream."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def test_big_tables_are_put_on_disk_and_travel_as_a_path(tmp_path: Path) -> None:
    table = pa.table({"id": np.arange(200_000), "text": ["x" * 400] * 200_000})
    index = open_index(table, scratch=str(tmp_path))
    assert len(pickle.dumps(index)) < 100_000
    assert pickle.loads(pickle.dumps(index)).read(2, 5, 6).keys == [str(2 * 65_536 + 5)]


@pytest.mark.parametrize("name", ["i.csv", "i.json", "i.jsonl", "i.tsv"])
def test_compressed_files_are_read_by_content(name: str, bucket: Path, tmp_path: Path) -> None:
    path = bucket / f"z{name}.gz"
    path.write_bytes(gzip.compress((bucket / name).read_bytes()))
    expected = open_index(bucket / name, scratch=str(tmp_path))
    assert same_rows(open_index(path, scratch=str(tmp_path)), expected)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises((CorruptError, IndexDataError)):
        open_index(path, scratch=str(tmp_path))


def test_a_folder_of_parquet_files_is_read_as_one_table(bucket: Path, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    records = make_files(tmp_path)
    for k in (1, 0):
        write_source(folder / f"part-{k}.parquet", [_up(r) for r in records[k * 5 : k * 5 + 5]])
    (folder / "_SUCCESS").write_text("")
    assert all_keys(open_index(folder, scratch=str(tmp_path / "s"))) == [r["id"] for r in records]


def test_a_converted_file_is_converted_again_when_it_changes(bucket: Path, tmp_path: Path) -> None:
    records = make_files(tmp_path)
    path = write_source(tmp_path / "i.csv", records)
    scratch = str(tmp_path / "s")
    assert open_index(path, scratch=scratch).num_rows == 10
    before = {p.name for p in (tmp_path / "s").iterdir()}
    assert open_index(path, scratch=scratch).num_rows == 10
    assert {p.name for p in (tmp_path / "s").iterdir()} == before
    write_source(path, records[:4])
    assert open_index(path, scratch=scratch).num_rows == 4


def test_what_is_not_there_or_no_index_is_refused(tmp_path: Path) -> None:
    scratch = str(tmp_path / "s")
    with pytest.raises(NotFoundError, match=r"nothing\.parquet"):
        open_index(tmp_path / "nothing.parquet", scratch=scratch)
    with pytest.raises(NotFoundError, match="no file matches"):
        open_index(f"{tmp_path}/*.csv", scratch=scratch)
    (tmp_path / "x.exe").write_bytes(b"")
    with pytest.raises(IndexDataError, match=r"x\.exe is no index: one ends in parquet"):
        open_index(tmp_path / "x.exe", scratch=scratch)
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(CorruptError, match=r"x\.parquet is no Parquet file"):
        open_index(tmp_path / "x.parquet", scratch=scratch)
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(IndexDataError, match="lists nothing"):
        open_index(tmp_path / "list.txt", scratch=scratch)
    (tmp_path / "mixed.txt").write_text("a.jpg\nb.parquet\n")
    (tmp_path / "b.parquet").write_bytes(b"x")
    with pytest.raises(IndexDataError, match="beside media files"):
        open_index(tmp_path / "mixed.txt", scratch=scratch)
    with pytest.raises(ConfigError, match="a int is no index"):
        open_index(5, scratch=scratch)


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    scratch = str(tmp_path / "s")
    (tmp_path / "a.csv").write_text("id,image\n")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(IndexDataError, match="has no rows"):
        open_index(tmp_path / "a.csv", scratch=scratch)
    with pytest.raises(IndexDataError, match="is empty"):
        open_index(tmp_path / "b.jsonl", scratch=scratch)
    with pytest.raises(IndexDataError, match="has no rows"):
        open_index(pd.DataFrame({"id": []}), scratch=scratch)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no files"):
        open_index(tmp_path / "empty", scratch=scratch)


class _Silent(BaseHTTPRequestHandler):
    """A web server that tells neither etag nor date of what it serves."""

    content = b""

    def do_GET(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_a_file_whose_server_tells_no_version_is_read_anew_each_time(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/i.csv"
        for name in ("a", "b"):
            _Silent.content = f"id,url\n{name},s3://b/1.jpg\n".encode()
            assert all_keys(open_index(url, scratch=str(tmp_path))) == [name]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
