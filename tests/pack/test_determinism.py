"""The same index and options make the same bytes: any workers, any kills, any restarts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shardkit.pack import LocalExecutor, verify
from tests.pack.data import (
    contents,
    kill_at,
    make_files,
    num_files_below,
    pack_files,
    workers_alive,
)

PACK = """
import sys
from shardkit.pack import LocalExecutor, PackOptions, pack
index, out, workers, shuffle = sys.argv[1:]
pack(index, out, files=["data", "note=note"], inline=["caption=txt"],
     options=PackOptions(samples_per_shard=6, shuffle=shuffle, on_error="skip"),
     executor=LocalExecutor(int(workers)))
"""  # no `if __name__ == "__main__"`: a script must not need one


def start_pack(index: Path, out: Path, workers: int, shuffle: str) -> subprocess.Popen[bytes]:
    script = out.parent / "script.py"
    script.write_text(PACK)
    return subprocess.Popen([sys.executable, script, index, out, str(workers), shuffle])


@pytest.mark.parametrize(("shuffle", "more"), [("none", 4), ("global", 2)])
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, shuffle: str, more: int
) -> None:
    index = make_files(tmp_path / "src", 50)
    pack_files(index, tmp_path / "one", workers=1, shuffle=shuffle)
    pack_files(index, tmp_path / "more", workers=more, shuffle=shuffle)
    assert len(contents(tmp_path / "one")) == 2 + 3 * 9
    assert contents(tmp_path / "one") == contents(tmp_path / "more")


def test_bytes_do_not_depend_on_where_the_dataset_lies(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 20)
    pack_files(index, tmp_path / "a")
    pack_files(index, f"file://{tmp_path}/b%20c/d")
    assert contents(tmp_path / "a") == contents(tmp_path / "b c/d")


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(tmp_path: Path, seed: int) -> None:
    """The packer is killed as it starts, and at random places of what it makes."""
    rng = random.Random(seed)
    shuffle = rng.choice(["none", "global"])
    index = make_files(tmp_path / "src", 80, mean_bytes=60_000, seed=seed)
    (tmp_path / "src/files/00017.bin").unlink()
    pack_files(index, tmp_path / "whole", shuffle=shuffle, on_error="skip")
    out = tmp_path / "out"
    num_files = num_files_below(tmp_path / "whole")
    num_kills = 0
    for num_there in [0, *sorted(rng.sample(range(1, num_files), 6))]:
        num_kills += kill_at(start_pack(index, out, rng.choice([1, 2]), shuffle), out, num_there)
        if (out / "manifest.json").exists():
            assert verify(str(out), executor=LocalExecutor(1)).ok
    assert num_kills
    assert start_pack(index, out, 2, shuffle).wait(timeout=60) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_worker_is_replaced_and_its_shard_made_anew(tmp_path: Path) -> None:
    rng = random.Random(0)
    index = make_files(tmp_path / "src", 60, mean_bytes=300_000)
    pack_files(index, tmp_path / "whole", samples_per_shard=2, shuffle="none")
    victims: set[int] = set()

    def kill_one(samples: int, num_bytes: int) -> None:
        del samples, num_bytes
        workers = workers_alive()
        if workers and len(victims) < 5 and rng.random() < 0.3:
            victims.add(rng.choice(workers))
            for victim in victims:
                if victim in workers:
                    os.kill(victim, signal.SIGKILL)

    pack_files(index, tmp_path / "out", samples_per_shard=2, workers=2, report=kill_one)
    assert len(victims) >= 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_ctrl_c_stops_at_once_and_leaves_what_can_be_continued(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 200, mean_bytes=400_000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "shardkit.cli.main", "pack", str(index), str(out)]
    command += ["--files", "data", "note=note", "--inline", "caption=txt", "--workers", "2"]
    command += ["--samples-per-shard", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not list(out.glob("shard-*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.decode().strip() == "interrupted"
    assert not psutil.wait_procs(workers, timeout=5)[1]
    assert os.listdir(out / ".pack") == ["plan.json"]
    assert not (out / "manifest.json").exists()
    json.loads((out / ".pack/plan.json").read_text())
    assert pack_files(index, out, samples_per_shard=4).num_resumed > 0
    assert verify(str(out), executor=LocalExecutor(1)).ok
