"""A reshard needs little memory and few open files, whatever the data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, pack
from tests.pack.data import contents
from tests.pack.reshards import WAYS, make_source, reshard_files

MEASURE = """
import json, resource, sys
from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, reshard
source, out, way, files = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
options = PackOptions(samples_per_shard=100, shuffle="global", seed=1)
summary = reshard(source, out, options=options, way=way, executor=LocalExecutor(1))
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"kb": int(peak), "samples": summary.num_samples}))
"""  # not by getrusage, which counts what the parent had before it became this program


def measured(source: Path, out: Path, way: str, *, files: int = 1_024) -> dict[str, int]:
    """What a whole reshard in one process needed."""
    command = [sys.executable, "-c", MEASURE, str(source), str(out), way, str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members of 150 MB among 300 of 300 KB, in two shards."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "src").mkdir()
    block = os.urandom(1 << 20)
    for row in range(303):
        data = block * 150 if row % 101 == 0 else block[row : row + 300_000]
        (folder / f"src/{row:04d}.bin").write_bytes(data)
    options = PackOptions(samples_per_shard=152)
    pack(str(folder / "src"), str(folder / "packed"), options=options, executor=LocalExecutor(1))
    return folder / "packed"


@pytest.mark.parametrize("way", WAYS)
def test_memory_stays_below_half_a_gigabyte(tmp_path: Path, large: Path, way: str) -> None:
    """The data are 540 MB, and no part of them is held: that is less than they are."""
    found = measured(large, tmp_path / "out", way)
    assert found["samples"] == 303
    assert found["kb"] < 300 << 10


@pytest.mark.parametrize("way", WAYS)
def test_open_files_are_bounded(tmp_path: Path, way: str) -> None:
    source = make_source(tmp_path, 400, mean_bytes=50, samples_per_shard=1, files=["data"])
    measured(source, tmp_path / "out", way, files=300)
    reshard_files(source, tmp_path / "whole", samples_per_shard=100)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
