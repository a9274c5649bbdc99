"""Full disks and members larger than memory should be."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from shardkit.errors import StoreError
from shardkit.pack import LocalExecutor, pack, verify
from tests.pack.data import contents, make_files, pack_files
from tests.small_disk import small_disk as mounted

MEBIBYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 6 MB."""
    with mounted(tmp_path / "disk", "6m") as folder:
        yield folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_clear_error_and_the_pack_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, workers: int
) -> None:
    index = make_files(tmp_path / "src", 40, mean_bytes=MEBIBYTE // 4)
    out = small_disk / "out"
    with pytest.raises(StoreError, match=r"the disk is full; make room and run again"):
        pack_files(index, out, workers=workers)
    assert not (out / "manifest.json").exists()
    assert all(not name.endswith(".tmp") for name in contents(out))
    for path in out.glob("*.tar"):
        assert path.read_bytes().endswith(bytes(1024)), "what has its name is whole"
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    assert pack_files(index, out, workers=workers).num_resumed > 0
    pack_files(index, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_disk_that_fills_up_is_never_taken_for_a_bad_row(
    tmp_path: Path, small_disk: Path, on_error: str
) -> None:
    """Also while a large member is streamed, where reading and writing alternate."""
    index = make_files(tmp_path / "src", 2)
    with open(tmp_path / "src/files/00001.bin", "wb") as file:
        file.truncate(40 * MEBIBYTE)
    with pytest.raises(StoreError, match=r"cannot write .*the disk is full"):
        pack_files(index, small_disk / "out", on_error=on_error)


def test_a_member_of_gigabytes_passes_through_little_memory(tmp_path: Path) -> None:
    """1.5 GB here; `docs/packing.md` has the command for 5 GB."""
    size = 1_500 * MEBIBYTE
    big = tmp_path / "big.bin"
    with open(big, "wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"in the middle")
    index = tmp_path / "index.csv"
    index.write_text(f"key,file\na,{big}\n")
    script = (
        "import re, sys\n"
        "from shardkit.pack import LocalExecutor, pack\n"
        "pack(sys.argv[1], sys.argv[2], executor=LocalExecutor(1))\n"
        "status = open('/proc/self/status').read()\n"  # ru_maxrss would count its parent's
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
    )
    command = [sys.executable, "-c", script, str(index), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True)
    assert int(done.stdout) * 1024 < 300 * MEBIBYTE
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.size) == ("a.bin", size)
        file = tar.extractfile(member)
        assert file is not None
        file.seek(size // 2)
        assert file.read(13) == b"in the middle"
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok


def test_large_members_and_small_ones_mix(tmp_path: Path) -> None:
    rows = []
    for row, size in enumerate([10, 40 * MEBIBYTE, 0, 33 * MEBIBYTE, 7]):
        path = tmp_path / f"{row}.bin"
        path.write_bytes(os.urandom(min(size, 999)))
        os.truncate(path, size)
        rows.append({"key": str(row), "file": str(path)})
    rows[2] = {"key": "2", "file": rows[0]["file"]}
    pack(pa.Table.from_pylist(rows), str(tmp_path / "out"), executor=LocalExecutor(1))
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        for row, member in zip(rows, tar, strict=True):
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == Path(row["file"]).read_bytes()
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok


def test_bytes_in_the_index_may_be_large_too(tmp_path: Path) -> None:
    data = bytes(35 * MEBIBYTE)
    table = pa.table({"key": ["a"], "blob": [data], "note": ["x" * 34 * MEBIBYTE]})
    pack(table, str(tmp_path / "out"), files=["blob=bin"], executor=LocalExecutor(1))
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok
