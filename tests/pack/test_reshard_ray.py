"""A reshard on Ray, on two nodes, with workers killed in either pass: the bytes of a local run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from shardkit.executors import RayExecutor
from shardkit.pack import PackOptions, reshard, spill
from tests.pack.data import contents
from tests.pack.reshards import WAYS, make_source, reshard_files
from tests.ray_cluster import ray_cluster, ray_processes


@pytest.fixture(scope="module")
def on_ray() -> Iterator[RayExecutor]:
    with ray_cluster(num_nodes=2) as cluster:
        ray.init(cluster.address, log_to_driver=False, configure_logging=False)
        yield RayExecutor()
        ray.shutdown()


def at_items() -> list[psutil.Process]:
    """Workers that are at an item."""
    found = []
    for process in ray_processes():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ray::_work" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_on_ray_with_killed_workers_it_is_the_bytes_of_a_local_run(
    tmp_path: Path, on_ray: RayExecutor, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_BATCH_BYTES", 2 << 20)
    rng = random.Random(0)
    source = make_source(tmp_path, 120, mean_bytes=200_000, samples_per_shard=4)
    parts = {"train": 0.7, "val": 0.3}
    reshard_files(source, tmp_path / "local", samples_per_shard=3, parts=parts)
    killed: list[int] = []

    def kill_one(samples: int, num_bytes: int) -> None:
        workers = [process for process in at_items() if process.pid not in killed]
        if workers and len(killed) < 2 and rng.random() < 0.3:
            victim = rng.choice(workers)
            killed.append(victim.pid)
            victim.kill()

    summary = reshard(
        str(source),
        str(tmp_path / "out"),
        options=PackOptions(samples_per_shard=3, shuffle="global", seed=1),
        parts=parts,
        way=way,
        executor=on_ray,
        report=kill_one,
    )
    assert summary.num_samples == 120
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
