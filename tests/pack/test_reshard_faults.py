"""Reshards that are killed, cut off, short of room, or far away end in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit.errors import CorruptError, StoreError
from shardkit.executors import LocalExecutor
from shardkit.pack import pack, spill, verify
from shardkit.pack.plan import PackOptions
from tests.pack.data import contents, kill_at, num_files_below, tar_samples, workers_alive
from tests.pack.reshards import WAYS, make_source, reshard_files
from tests.s3 import Fault, S3Endpoint, serve_s3

RESHARD = """
import sys
from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, reshard, spill
spill._BATCH_BYTES = 1 << 20
source, out, workers, way = sys.argv[1:]
reshard(source, out, options=PackOptions(samples_per_shard=9, shuffle="global", seed=1),
        parts={"train": 0.7, "val": 0.3}, way=way, executor=LocalExecutor(int(workers)))
"""


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_run_again_either_way_it_ends_in_the_same_bytes(
    tmp_path: Path, seed: int
) -> None:
    """The driver is killed as it starts, and at random places of its work; either way goes on."""
    rng = random.Random(seed)
    source = make_source(tmp_path, 120, mean_bytes=60_000)
    parts = {"train": 0.7, "val": 0.3}
    reshard_files(source, tmp_path / "whole", parts=parts)
    out = tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(RESHARD)

    def start() -> subprocess.Popen[bytes]:
        way = rng.choice(WAYS) if seed else "spill"
        return subprocess.Popen([sys.executable, script, source, out, rng.choice("12"), way])

    num_files = num_files_below(tmp_path / "whole")
    places = [0, *sorted(rng.sample(range(1, num_files), 6))]
    kills = [kill_at(start(), out, num_there) for num_there in places]
    assert any(kills)
    assert start().wait(timeout=60) == 0
    assert contents(out) == contents(tmp_path / "whole"), "no spill and no temporary is left"


@pytest.mark.parametrize("way", WAYS)
def test_killed_workers_are_replaced_in_either_pass(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_BATCH_BYTES", 2 << 20)
    rng = random.Random(0)
    source = make_source(tmp_path, 120, mean_bytes=200_000, samples_per_shard=4)
    reshard_files(source, tmp_path / "whole", samples_per_shard=3)
    victims: list[int] = []

    def kill_one(samples: int, num_bytes: int) -> None:
        workers = [pid for pid in workers_alive() if pid not in victims]
        if workers and len(victims) < 3 and rng.random() < 0.4:
            victims.append(rng.choice(workers))
            os.kill(victims[-1], signal.SIGKILL)

    reshard_files(
        source, tmp_path / "out", samples_per_shard=3, workers=2, way=way, report=kill_one
    )
    assert victims
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_was_spilled_is_not_spilled_again_and_a_damaged_spill_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that crashed may have lost what it had not written; a spill proves itself."""
    source = make_source(tmp_path, 60)
    reshard_files(source, tmp_path / "whole")
    scratch, out = tmp_path / "scratch", tmp_path / "out"

    def stop(samples: int, num_bytes: int) -> None:
        if samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reshard_files(source, out, way="spill", scratch=str(scratch), report=stop)
    (spilled,) = scratch.glob("spill-*/*.spill")
    data = bytearray(spilled.read_bytes())
    before = spilled.stat().st_mtime_ns
    data[1_000] ^= 1
    spilled.write_bytes(data)
    with pytest.raises(CorruptError, match=r"00000.spill is damaged \(key 'sample_"):
        reshard_files(source, out, way="spill", scratch=str(scratch))
    spilled.write_bytes(data[:-100])
    with pytest.raises(CorruptError, match="is no spill of this reshard; remove the folder"):
        reshard_files(source, out, way="spill", scratch=str(scratch))
    data[1_000] ^= 1
    spilled.write_bytes(data)
    os.utime(spilled, ns=(before, before))
    seen: list[int] = []

    def watch(samples: int, num_bytes: int) -> None:
        seen.append(spilled.stat().st_mtime_ns)

    reshard_files(source, out, way="spill", scratch=str(scratch), report=watch)
    assert set(seen) == {before}
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(scratch.glob("spill-*"))


def test_too_little_room_for_a_spill_is_said_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path, 60)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 999, 999))
    message = r"the spill needs \d+ KB in .*spill-.*, where 999 B are free; name another"
    with pytest.raises(StoreError, match=message):
        reshard_files(source, tmp_path / "out", way="spill")
    assert reshard_files(source, tmp_path / "out", way="ranges").num_samples == 60


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Endpoint]:
    (tmp_path / "root/bucket").mkdir(parents=True)
    with serve_s3(tmp_path / "root") as endpoint:
        yield endpoint


@pytest.mark.parametrize("way", WAYS)
def test_from_a_bucket_to_a_bucket_it_is_the_same_tars_as_locally(
    tmp_path: Path, s3: S3Endpoint, way: str
) -> None:
    bucket = tmp_path / "root/bucket"
    make_source(bucket, 60)
    options = s3.storage_options
    reshard_files(bucket / "packed", tmp_path / "local")
    before = len(s3.requests)
    reshard_files("s3://bucket/packed", "s3://bucket/out", way=way, storage_options=options)
    there, here = contents(bucket / "out"), contents(tmp_path / "local")
    assert there.keys() == here.keys()
    same = [name for name in here if name.endswith((".tar", ".idx"))]
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    reads = [r for r in s3.requests[before:] if r.method == "GET" and "/packed/shard" in r.path]
    of_tars = [r for r in reads if r.path.split("?")[0].endswith(".tar")]
    if way == "ranges":
        assert 50 <= len(of_tars) <= 60, "one a sample, but for neighbours that stayed neighbours"
    else:
        assert len(of_tars) == 9, "one a shard"
    report = verify("s3://bucket/out", storage_options=options, executor=LocalExecutor(1))
    assert report.ok
    assert ".pack" not in os.listdir(bucket / "out")


def test_unshuffled_far_samples_share_requests(tmp_path: Path, s3: S3Endpoint) -> None:
    bucket = tmp_path / "root/bucket"
    make_source(bucket, 60, samples_per_shard=20)
    options = s3.storage_options
    reshard_files(
        "s3://bucket/packed",
        tmp_path / "out",
        shuffle="none",
        storage_options=options,
        way="ranges",
    )
    of_tars = [r for r in s3.requests if r.method == "GET" and ".tar" in r.path]
    assert len([r for r in of_tars if ".idx" not in r.path]) == 3 + 6, "three shards, six cuts"
    assert tar_samples(tmp_path / "out") == tar_samples(bucket / "packed")


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_breaks_off_and_flips_bits_does_no_harm(
    tmp_path: Path, s3: S3Endpoint, way: str
) -> None:
    bucket = tmp_path / "root/bucket"
    make_source(bucket, 40, mean_bytes=60_000)
    reshard_files(bucket / "packed", tmp_path / "whole")
    s3.faults.append(Fault("reset", path="*shard-000001.tar", at=20_000, times=2))
    s3.faults.append(Fault("flip", path="*shard-000002.tar", at=9_000, times=1))
    s3.faults.append(Fault("status", path="*shard-000003.tar", status=503, times=2))
    reshard_files(
        "s3://bucket/packed", tmp_path / "out", way=way, storage_options=s3.storage_options
    )
    assert tar_samples(tmp_path / "out") == tar_samples(tmp_path / "whole")


@pytest.mark.parametrize("way", WAYS)
def test_large_members_are_streamed_and_proved(tmp_path: Path, s3: S3Endpoint, way: str) -> None:
    bucket = tmp_path / "root/bucket"
    (bucket / "big").mkdir()
    for name, size in (("a", 33 << 20), ("b", 17 << 20), ("c", 10)):
        (bucket / f"big/{name}.bin").write_bytes(os.urandom(size))
    options = PackOptions(samples_per_shard=2)
    pack(str(bucket / "big"), str(bucket / "packed"), options=options, executor=LocalExecutor(1))
    far = {"storage_options": s3.storage_options}
    reshard_files(bucket / "packed", tmp_path / "near", way=way, samples_per_shard=2)
    reshard_files("s3://bucket/packed", tmp_path / "far", way=way, samples_per_shard=2, **far)
    assert dict(sorted(tar_samples(tmp_path / "far").items())) == tar_samples(bucket / "packed")
    assert tar_samples(tmp_path / "far") == tar_samples(tmp_path / "near")
    tar = bucket / "packed/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[20 << 20] ^= 1
    tar.write_bytes(data)
    for source, more in ((bucket / "packed", {}), ("s3://bucket/packed", far)):
        with pytest.raises(CorruptError, match=r"shard-000000.tar is damaged \(key 'a'\)"):
            reshard_files(
                source, tmp_path / f"bad-{len(more)}", way=way, samples_per_shard=2, **more
            )
