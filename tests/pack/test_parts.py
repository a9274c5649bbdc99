"""Packing in parts that know nothing of each other: whatever happens, the bytes of one run."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from shardkit.cli.main import main
from shardkit.errors import ConfigError, IndexDataError
from shardkit.executors import LocalExecutor, Part, Report, Task, nothing
from shardkit.format.manifest import MANIFEST_NAME
from shardkit.index.open import open_index
from shardkit.pack import PackOptions, pack_index, verify
from shardkit.pack.output import PLAN_NAME, Output
from shardkit.pack.plan import make_plan
from shardkit.pack.run import prepared
from shardkit.pack.write import shard_task
from shardkit.storage.store import open_store
from tests.pack.data import contents, make_files, pack_files
from tests.s3 import serve_s3

ROOT = Path(__file__).parents[2]

PACK = """
import sys
from shardkit.pack import LocalExecutor, PackOptions, pack
index, out, shuffle, *part = sys.argv[1:]
pack(index, out, files=["data", "note=note"], inline=["caption=txt"],
     options=PackOptions(samples_per_shard=6, shuffle=shuffle, on_error="skip"),
     executor=LocalExecutor(1), part=tuple(map(int, part)) or None)
"""


def start(index: Path, out: Path, shuffle: str, *part: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PACK, str(index), str(out), shuffle, *map(str, part)]
    return subprocess.Popen(command)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_parts_in_any_order_make_the_bytes_of_one_run(tmp_path: Path, count: int) -> None:
    index = make_files(tmp_path / "src", 50)
    whole = pack_files(index, tmp_path / "whole", shuffle="global")
    order = random.Random(count).sample(range(count), count)
    summaries = [
        pack_files(index, tmp_path / "out", shuffle="global", part=(i, count)) for i in order
    ]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    done = 0
    for i, summary in zip(order[:-1], summaries, strict=False):
        done += len(Part(i, count).items(whole.num_shards))
        assert summary.num_missing == max(0, whole.num_shards - done)
    assert summaries[-1].fingerprint == whole.fingerprint
    assert summaries[-1].num_samples == whole.num_samples


def test_a_part_that_is_not_the_last_counts_its_own_and_publishes_nothing(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 50)
    summary = pack_files(index, tmp_path / "out", part=(1, 3))
    assert (summary.num_shards, summary.num_samples, summary.num_missing) == (3, 18, 6)
    assert not summary.fingerprint
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


@pytest.mark.parametrize("seed", range(2))
def test_parts_at_once_some_killed_and_a_closing_run_make_the_bytes_of_one_run(
    tmp_path: Path, seed: int
) -> None:
    """Four parts start in an empty folder at the same instant; two are killed on the way."""
    rng = random.Random(seed)
    shuffle = ["none", "global"][seed]
    index = make_files(tmp_path / "src", 120, mean_bytes=600_000, seed=seed)
    (tmp_path / "src/files/00017.bin").unlink()
    pack_files(index, tmp_path / "whole", shuffle=shuffle, on_error="skip")
    out = tmp_path / "out"
    parts = [start(index, out, shuffle, i, 4) for i in range(4)]
    for victim in rng.sample(parts, 2):
        while victim.poll() is None and not list(out.glob("shard-*")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        victim.send_signal(signal.SIGKILL)
    endings = {part.wait() for part in parts}
    assert -signal.SIGKILL in endings <= {0, -signal.SIGKILL}
    assert start(index, out, shuffle).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_closing_runs_at_once_are_harmless(tmp_path: Path) -> None:
    """Every part has been done but for its last shard, which two runs do and publish."""
    index = make_files(tmp_path / "src", 60)
    pack_files(index, tmp_path / "whole", on_error="skip")
    out = tmp_path / "out"
    pack_files(index, out, on_error="skip", part=(0, 2))
    runs = [start(index, out, "none"), start(index, out, "none", 1, 2), start(index, out, "none")]
    assert [run.wait() for run in runs] == [0, 0, 0]
    found = contents(out)
    assert found == contents(tmp_path / "whole")


def test_a_lost_part_is_run_again_and_publishes(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 50)
    pack_files(index, tmp_path / "whole")
    out = tmp_path / "out"
    for i in (0, 1):
        pack_files(index, out, part=(i, 2))
        for name in (MANIFEST_NAME, "shards.parquet") if i else ():
            (out / name).unlink()  # as if it had been killed before
    lost = sorted(out.glob("shard-*.parquet"))[3]
    lost.unlink()
    (out / PLAN_NAME).parent.mkdir()
    options = PackOptions(samples_per_shard=6)
    source = open_index(str(index), files=["data", "note=note"], inline=["caption=txt"])
    (out / PLAN_NAME).write_bytes(make_plan(source, options, open_store()).encode())
    again = pack_files(index, out, part=(1, 2))
    assert again.num_missing == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_parts_of_another_pack_are_refused(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 50)
    pack_files(index, tmp_path / "out", part=(0, 3))
    with pytest.raises(ConfigError, match=r"unfinished pack with other options \(seed was 0"):
        pack_files(index, tmp_path / "out", part=(1, 3), seed=1)
    other = make_files(tmp_path / "other", 49)
    with pytest.raises(ConfigError, match="unfinished pack of another index"):
        pack_files(other, tmp_path / "out", part=(1, 3))
    with pytest.raises(ConfigError, match="no part 3/3"):
        pack_files(index, tmp_path / "out", part=(3, 3))


class AnotherBeganMeanwhile(LocalExecutor):
    """Between a run's look at the folder and its own plan, a part of the same pack is done."""

    def __init__(self, index: Path, out: Path) -> None:
        super().__init__(1)
        self.index, self.out = index, out

    def ready(self, task: type[object] | None = None) -> Any:
        pack_files(self.index, self.out, part=(0, 2))
        return super().ready(task)


def test_what_another_part_has_begun_is_taken_up(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 50)
    pack_files(index, tmp_path / "whole")
    source = open_index(str(index), files=["data", "note=note"], inline=["caption=txt"])
    output = Output(str(tmp_path / "out"), open_store())
    executor = AnotherBeganMeanwhile(index, tmp_path / "out")
    summary = pack_index(source, output, PackOptions(samples_per_shard=6), executor=executor)
    assert summary.num_resumed == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_of_many_that_plan_at_once_one_is_first(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), open_store())
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda n: output.write_first("plan", b"%d" % n), range(64)))
    assert len(found) == 1
    assert (tmp_path / "out/plan").read_bytes() in found
    assert os.listdir(tmp_path / "out/.pack") == []


def test_temporaries_of_another_machine_are_left_alone_for_an_hour(tmp_path: Path) -> None:
    """Its locks may not be seen here; when the manifest is there, nobody needs them."""
    index = make_files(tmp_path / "src", 20)
    pack_files(index, tmp_path / "out", part=(0, 2))
    theirs, old = (tmp_path / f"out/.pack/another-machine-{n}.tmp" for n in range(2))
    for path in (theirs, old):
        path.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 4_000,) * 2)
    pack_files(index, tmp_path / "out", part=(0, 2))
    assert theirs.exists()
    assert not old.exists()
    pack_files(index, tmp_path / "out", part=(1, 2))
    assert not (tmp_path / "out/.pack").exists()


def test_a_machine_that_sees_another_folder_writes_nothing(tmp_path: Path) -> None:
    """As if the path of ``out`` led to a disk of its own there."""
    index = make_files(tmp_path / "src", 20)
    options = PackOptions(samples_per_shard=6)
    source = open_index(str(index), files=["data", "note=note"], inline=["caption=txt"])
    plan, _ = prepared(source, Output(str(tmp_path / "out"), open_store()), options)
    elsewhere = Output(str(tmp_path / "elsewhere"), open_store())
    with pytest.raises(ConfigError, match=r"is another folder than .* all machines must see"):
        shard_task(source, plan, elsewhere)(0, nothing)
    assert not (tmp_path / "elsewhere").exists()


def test_a_mapped_index_is_made_again_where_it_is_not_there(tmp_path: Path) -> None:
    index = open_index(str(make_files(tmp_path / "src", 20)), scratch=str(tmp_path / "here"))
    sent = pickle.dumps(index.mapped())
    shutil.rmtree(tmp_path / "here")
    arrived = pickle.loads(sent)
    assert arrived.read(0).keys == index.read(0).keys
    assert len(list((tmp_path / "here").glob("*.mapped"))) == 1


@pytest.mark.parametrize("kind", ["csv", "where"])
def test_what_was_made_of_a_small_index_comes_along(tmp_path: Path, kind: str) -> None:
    """A conversion and the rows of a filter, pickled to a machine with another scratch folder."""
    source = make_files(tmp_path / "src", 20)
    if kind == "csv":
        table = pq.read_table(source, columns=["id", "data", "score"])
        source = tmp_path / "src/index.csv"
        csv.write_csv(table, source)
    where = "score > 1" if kind == "where" else None
    index = open_index(str(source), where=where, scratch=str(tmp_path / "here"))
    expected = [index.read(group).keys for group in range(index.num_groups)]
    sent = pickle.dumps(index)
    shutil.rmtree(tmp_path / "here")
    arrived = pickle.loads(sent)
    assert [arrived.read(group).keys for group in range(arrived.num_groups)] == expected


def test_a_large_one_does_not_and_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_files(tmp_path / "src", 20)
    monkeypatch.setattr("shardkit.index.scratch._CARRIED_BYTES", 0)
    sent = pickle.dumps(open_index(str(source), where="score > 1", scratch=str(tmp_path / "here")))
    shutil.rmtree(tmp_path / "here")
    with pytest.raises(IndexDataError, match=r"give scratch= a folder .* every node sees"):
        pickle.loads(sent).read(0)


def test_to_a_bucket_in_parts(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 30)
    pack_files(index, tmp_path / "whole")
    (tmp_path / "root/bucket").mkdir(parents=True)
    with serve_s3(tmp_path / "root") as s3:
        for i in range(3):
            summary = pack_files(
                index, "s3://bucket/out", part=(i, 3), storage_options=s3.storage_options
            )
    assert summary.num_missing == 0
    assert contents(tmp_path / "root/bucket/out") == contents(tmp_path / "whole")


class Counting(LocalExecutor):
    """Notes which items were run."""

    def __init__(self) -> None:
        super().__init__(1)
        self.items: list[int] = []

    def run(self, task: Task[Any], items: Any, report: Report) -> Any:
        self.items = list(items)
        return super().run(task, self.items, report)


def test_verify_in_parts_sees_every_shard_once_and_names_what_is_wrong(tmp_path: Path) -> None:
    pack_files(make_files(tmp_path / "src", 50), tmp_path / "out")
    seen: list[int] = []
    for i in range(4):
        executor = Counting()
        report = verify(str(tmp_path / "out"), executor=executor, part=(i, 4))
        assert report.ok
        assert report.num_shards == len(executor.items)
        seen.extend(executor.items)
    assert sorted(seen) == list(range(9))
    tar = tmp_path / "out/shard-000005.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    wrong = [verify(str(tmp_path / "out"), part=(i, 4)).bad_shards for i in range(4)]
    assert wrong == [[], ["shard-000005.tar"], [], []]
    tars = f"{tmp_path}/out/shard-{{000000..000008}}.tar"
    assert [verify(tars, part=(i, 3)).ok for i in range(3)] == [True, True, False]


def test_the_commands_speak_of_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, out = make_files(tmp_path / "src", 30), tmp_path / "out"
    pack = ["pack", str(index), str(out), "--files", "data", "note=note", "--workers", "1"]
    pack += ["--samples-per-shard", "6"]
    assert main([*pack, "--part", "0/2"]) == 0
    assert "2 shards of other parts are missing" in capsys.readouterr().out
    assert main([*pack, "--part", "2/2"]) == 2
    assert "parts are counted from 0" in capsys.readouterr().err
    assert main([*pack, "--part", "1/2"]) == 0
    assert "30 samples in 5 shards" in capsys.readouterr().out
    for i in range(2):
        script = [sys.executable, "tools/verify_shards.py", str(out), "--part", f"{i}/2"]
        found = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "every byte is right" in found.stdout


def test_keys_of_a_filter_are_packed_in_parts_too(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 60)
    pack_files(index, tmp_path / "whole", where="score > 2")
    for i in range(2):
        pack_files(index, tmp_path / "out", where="score > 2", part=(i, 2))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    keys = [
        key
        for path in sorted((tmp_path / "out").glob("shard-*.parquet"))
        for key in pq.read_table(path, columns=["id"]).column("id").to_pylist()
    ]
    assert 0 < len(keys) < 60
