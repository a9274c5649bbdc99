"""Sources and shards in a bucket: a real S3 endpoint on loopback, with faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.errors import NotFoundError, TransientError
from shardkit.format.manifest import MANIFEST_NAME
from shardkit.pack import LocalExecutor, pack, verify
from tests.pack.data import contents, make_files, pack_files, tar_samples
from tests.s3 import Fault, S3Endpoint, serve_s3


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Endpoint]:
    (tmp_path / "root/bucket").mkdir(parents=True)
    with serve_s3(tmp_path / "root") as endpoint:
        yield endpoint


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "root/bucket"


def urls_of(index: Path, base: str) -> pa.Table:
    """The index with its files named by URL."""
    table = pq.read_table(index)
    for name in ("data", "note"):
        urls = [
            None if path is None else f"{base}/{path}" for path in table.column(name).to_pylist()
        ]
        table = table.set_column(table.column_names.index(name), name, pa.array(urls))
    return table


def pack_there(source: Any, out: str, s3: S3Endpoint, **changes: Any) -> Any:
    return pack_files(source, out, storage_options=s3.storage_options, **changes)


@pytest.mark.parametrize("workers", [1, 2])
def test_from_a_bucket_to_a_bucket_it_is_the_same_bytes_as_locally(
    tmp_path: Path, s3: S3Endpoint, bucket: Path, workers: int
) -> None:
    index = make_files(bucket / "src", 20)
    pq.write_table(urls_of(index, "s3://bucket/src"), bucket / "src/urls.parquet")
    pack_there("s3://bucket/src/urls.parquet", "s3://bucket/out", s3, workers=workers)
    table = pq.read_table(bucket / "src/urls.parquet")
    pack_there(table, str(tmp_path / "local"), s3)
    there, here = contents(bucket / "out"), contents(tmp_path / "local")
    assert there.keys() == here.keys()
    same = [name for name in here if name.endswith((".tar", ".idx"))]
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert verify(
        "s3://bucket/out", storage_options=s3.storage_options, executor=LocalExecutor(1)
    ).ok


def test_relative_paths_start_from_the_index_in_the_bucket(s3: S3Endpoint, bucket: Path) -> None:
    make_files(bucket / "src", 8)
    pack_there("s3://bucket/src/index.parquet", "s3://bucket/out", s3)
    samples = tar_samples(bucket / "out")
    assert samples["sample_00003"]["bin"] == (bucket / "src/files/00003.bin").read_bytes()


def test_the_manifest_is_uploaded_last(s3: S3Endpoint, bucket: Path) -> None:
    make_files(bucket / "src", 20)
    pack_there("s3://bucket/src/index.parquet", "s3://bucket/out", s3)
    uploads = [r.path for r in s3.requests if r.method == "PUT" and "/out/" in r.path]
    assert uploads[-1].endswith(MANIFEST_NAME)
    assert uploads[0].endswith(".pack/plan.json")
    assert ".pack" not in os.listdir(bucket / "out")


def test_large_objects_are_streamed(tmp_path: Path, s3: S3Endpoint, bucket: Path) -> None:
    (bucket / "a.bin").write_bytes(os.urandom(5 << 20))
    (bucket / "b.bin").write_bytes(os.urandom(100))
    table = pa.table({"key": ["a", "b"], "file": ["s3://bucket/a.bin", "s3://bucket/b.bin"]})
    pack(
        table, str(tmp_path / "out"), storage_options=s3.storage_options, executor=LocalExecutor(1)
    )
    assert tar_samples(tmp_path / "out")["a"]["bin"] == (bucket / "a.bin").read_bytes()
    assert s3.count("GET", "*a.bin") == 1


def test_bad_objects_are_skipped_and_listed(tmp_path: Path, s3: S3Endpoint, bucket: Path) -> None:
    index = make_files(bucket / "src", 20)
    (bucket / "src/files/00004.bin").unlink()
    (bucket / "src/files/00005.bin").write_bytes(b"")
    table = urls_of(index, "s3://bucket/src")
    with pytest.raises(NotFoundError, match=r"00004.bin does not exist"):
        pack_there(table, str(tmp_path / "raised"), s3)
    summary = pack_there(table, str(tmp_path / "out"), s3, on_error="skip")
    failed = pq.read_table(tmp_path / "out/failed.parquet").to_pylist()
    assert [(row["url"], row["kind"]) for row in failed] == [
        ("s3://bucket/src/files/00004.bin", "missing"),
        ("s3://bucket/src/files/00005.bin", "empty"),
    ]
    assert summary.num_samples == 18


def test_answers_that_break_off_are_resumed(tmp_path: Path, s3: S3Endpoint, bucket: Path) -> None:
    index = make_files(bucket / "src", 12, mean_bytes=300_000)
    s3.faults.append(Fault("reset", path="*0000[36].bin", at=50_000, times=1))
    s3.faults.append(Fault("status", path="*00007.bin", status=503, times=2))
    pack_there(urls_of(index, "s3://bucket/src"), str(tmp_path / "out"), s3)
    samples = tar_samples(tmp_path / "out")
    for row in range(12):
        data = (bucket / f"src/files/{row:05d}.bin").read_bytes()
        assert samples[f"sample_{row:05d}"]["bin"] == data


def test_a_failing_network_is_never_skipped(tmp_path: Path, s3: S3Endpoint, bucket: Path) -> None:
    index = make_files(bucket / "src", 6)
    s3.faults.append(Fault("status", path="*00003.bin", times=-1))
    options = s3.storage_options | {"max_attempts": 2}
    with pytest.raises(TransientError):
        pack_files(
            urls_of(index, "s3://bucket/src"),
            tmp_path / "out",
            storage_options=options,
            on_error="skip",
        )
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_killed_while_packing_into_a_bucket_it_goes_on_and_leaves_no_temporaries(
    tmp_path: Path, s3: S3Endpoint, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    make_files(bucket / "src", 60, mean_bytes=200_000)
    script = (
        "import json, sys\n"
        "from tests.pack.data import pack_files\n"
        "pack_files(*sys.argv[1:3], storage_options=json.loads(sys.argv[3]), samples_per_shard=2)\n"
    )
    options = json.dumps(s3.storage_options)
    command = [
        sys.executable,
        "-c",
        script,
        "s3://bucket/src/index.parquet",
        "s3://bucket/out",
        options,
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    while not list((bucket / "out").glob("shard-000003.parquet")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = pack_there(
        "s3://bucket/src/index.parquet", "s3://bucket/out", s3, samples_per_shard=2
    )
    assert 0 < summary.num_resumed < 30
    pack_files(bucket / "src/index.parquet", tmp_path / "local", samples_per_shard=2)
    assert tar_samples(bucket / "out") == tar_samples(tmp_path / "local")
    assert not list(scratch.rglob("*.tmp"))
