"""On Ray, on several real nodes: the bytes of a local run, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import ray

from shardkit.cli.main import main
from shardkit.errors import ConfigError, NotFoundError
from shardkit.executors import LocalExecutor, RayExecutor, Task, WorkerLostError, nothing
from shardkit.index.adopt import adopt
from shardkit.index.open import open_index
from shardkit.pack import PackOptions, PackSummary, pack, reshard, verify
from shardkit.storage.store import open_store
from tests.pack.data import FILES, contents, make_files, pack_files
from tests.ray_cluster import ray_cluster, ray_processes, wait_until

ROOT = Path(__file__).parents[2]
Report = Callable[[int, int], None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(num_nodes=2) as found:
        yield found


@pytest.fixture
def connected(cluster: Any) -> Iterator[RayExecutor]:
    """A program that has connected itself: runs are quicker, and its connection stays."""
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    yield RayExecutor()
    assert ray.is_initialized()
    ray.shutdown()


@dataclass(frozen=True)
class Slowed:
    """A task that takes its time whenever it has something to report."""

    task: Task[Any]
    seconds: float

    def __call__(self, item: int, report: Report) -> Any:
        def slowly(samples: int, num_bytes: int) -> None:
            report(samples, num_bytes)
            time.sleep(self.seconds)

        return self.task(item, slowly)


@dataclass(frozen=True)
class Slow:
    """An executor of slowed tasks, so that there is a middle to be killed in."""

    inner: RayExecutor
    seconds: float = 0.3

    def ready(self, task: type[object] | None = None) -> AbstractContextManager[object]:
        return self.inner.ready(task)

    def run(self, task: Task[Any], items: Iterable[int], report: Report) -> Iterator[Any]:
        return self.inner.run(Slowed(task, self.seconds), items, report)


def pack_on(executor: Any, index: Path, out: Path | str, **changes: Any) -> PackSummary:
    options = PackOptions(samples_per_shard=6, shuffle=changes.pop("shuffle", "none"))
    return pack(
        str(index),
        str(out),
        files=FILES,
        inline=["caption=txt"],
        options=options,
        executor=executor,
        **changes,
    )


def at_items(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Ray workers below a process that are at an item."""
    found = []
    for process in ray_processes(parent):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ray::_work" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize("shuffle", ["none", "global"])
def test_on_ray_it_is_the_bytes_of_a_local_run(
    tmp_path: Path, connected: RayExecutor, shuffle: str
) -> None:
    index = make_files(tmp_path / "src", 50)
    pack_files(index, tmp_path / "local", shuffle=shuffle)
    seen: list[tuple[int, int]] = []
    summary = pack_on(
        connected, index, tmp_path / "ray", shuffle=shuffle, report=lambda *n: seen.append(n)
    )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert sum(samples for samples, _ in seen) == summary.num_samples == 50
    assert 0 < sum(num_bytes for _, num_bytes in seen) <= summary.num_bytes
    report = verify(str(tmp_path / "ray"), executor=connected)
    assert report.ok
    local = verify(str(tmp_path / "local"), executor=LocalExecutor(1))
    assert replace(local, url=report.url) == report


def test_relative_paths_mean_the_drivers(
    tmp_path: Path, connected: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_files(tmp_path / "src", 12)
    pack_files(index, tmp_path / "local")
    monkeypatch.chdir(tmp_path)
    pack_on(connected, Path("src/index.parquet"), "ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_part_runs_on_ray_like_the_whole(tmp_path: Path, connected: RayExecutor) -> None:
    index = make_files(tmp_path / "src", 50)
    pack_files(index, tmp_path / "local")
    assert pack_on(connected, index, tmp_path / "ray", part=(0, 2)).num_missing == 4
    pack_files(index, tmp_path / "ray", part=(1, 2))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_tars_are_scanned_on_ray(tmp_path: Path, connected: RayExecutor) -> None:
    pack_files(make_files(tmp_path / "src", 50), tmp_path / "out")
    tars = f"{tmp_path}/out/shard-{{000000..000008}}.tar"
    there = open_index(tars, scratch=str(tmp_path / "there"), executor=connected)
    here = open_index(tars, scratch=str(tmp_path / "here"))
    assert there.fingerprint == here.fingerprint
    assert there.num_rows == 50


def test_tars_are_adopted_on_ray(tmp_path: Path, connected: RayExecutor) -> None:
    pack_files(make_files(tmp_path / "src", 50), tmp_path / "out")
    tars = f"{tmp_path}/out/shard-{{000000..000008}}.tar"
    for name, executor in (("there", connected), ("here", LocalExecutor(1))):
        (tmp_path / name).mkdir()
        adopt(tars, str(tmp_path / name), store=open_store(), executor=executor)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize("way", ["ranges", "spill"])
def test_a_reshard_on_ray_is_the_bytes_of_a_local_one(
    tmp_path: Path, connected: RayExecutor, way: Literal["ranges", "spill"]
) -> None:
    pack_files(make_files(tmp_path / "src", 50), tmp_path / "out")
    options = PackOptions(samples_per_shard=7, shuffle="global", seed=1)
    for name, executor in (("there", connected), ("here", LocalExecutor(1))):
        out = str(tmp_path / name)
        reshard(str(tmp_path / "out"), out, options=options, way=way, executor=executor)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_an_error_arrives_as_it_was(tmp_path: Path, connected: RayExecutor) -> None:
    index = make_files(tmp_path / "src", 50)
    (tmp_path / "src/files/00017.bin").unlink()
    with pytest.raises(NotFoundError) as local:
        pack_files(index, tmp_path / "local")
    with pytest.raises(NotFoundError) as remote:
        pack_on(connected, index, tmp_path / "ray")
    assert type(remote.value) is NotFoundError
    assert str(remote.value) == str(local.value)
    assert "write.py" in "".join(remote.value.__notes__), "the worker's traceback is a note"
    (tmp_path / "src/files/00017.bin").write_bytes(b"mended")
    assert pack_on(connected, index, tmp_path / "ray").num_samples == 50


def test_a_node_killed_in_the_middle_costs_what_it_was_at(
    tmp_path: Path, cluster: Any, connected: RayExecutor
) -> None:
    index = make_files(tmp_path / "src", 72, mean_bytes=100_000)
    pack_files(index, tmp_path / "local")
    victim = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    raylet = psutil.Process(victim.all_processes["raylet"][0].process.pid)
    killed: list[int] = []

    def kill_it(samples: int, num_bytes: int) -> None:
        del samples, num_bytes
        if not killed and at_items(raylet):
            killed.append(raylet.pid)
            cluster.remove_node(victim, allow_graceful=False)

    pack_on(Slow(connected), index, tmp_path / "ray", report=kill_it)
    assert killed, "no item was ever on that node"
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_killed_worker_is_replaced(tmp_path: Path, cluster: Any, connected: RayExecutor) -> None:
    index = make_files(tmp_path / "src", 60, mean_bytes=100_000)
    pack_files(index, tmp_path / "local")
    victims: set[int] = set()

    def kill_one(samples: int, num_bytes: int) -> None:
        del samples, num_bytes
        for process in at_items():
            if len(victims) < 2 and process.pid not in victims:
                victims.add(process.pid)
                process.kill()

    pack_on(Slow(connected), index, tmp_path / "ray", report=kill_one)
    assert len(victims) == 2
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


class Deadly:
    def __call__(self, item: int, report: Report) -> int:
        if item == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        report(1, 1)
        return item


def test_an_item_that_kills_every_worker_is_given_up_with_the_remedy(
    connected: RayExecutor,
) -> None:
    with pytest.raises(WorkerLostError, match=r"4 workers .* at item 1 .*more --cpus-per-worker"):
        list(connected.run(Deadly(), range(3), nothing))


DRIVER = """
import sys
from tests.pack.test_ray import RayExecutor, Slow, pack_on
pack_on(Slow(RayExecutor(sys.argv[1])), sys.argv[2], sys.argv[3])
"""


def test_a_killed_driver_is_run_again_and_goes_on(tmp_path: Path, cluster: Any) -> None:
    index = make_files(tmp_path / "src", 60, mean_bytes=100_000)
    pack_files(index, tmp_path / "local")
    out = tmp_path / "ray"
    command = [sys.executable, "-c", DRIVER, cluster.address, str(index), str(out)]
    driver = subprocess.Popen(command, cwd=ROOT)
    wait_until(lambda: list(out.glob("shard-*.parquet")))
    driver.kill()
    driver.wait()
    assert not (out / "manifest.json").exists()
    wait_until(lambda: not at_items())
    num_done = len(list(out.glob("shard-*.parquet")))
    summary = pack_on(RayExecutor(cluster.address), index, out)
    assert summary.num_resumed == num_done > 0
    assert not ray.is_initialized(), "a connection of our own is closed"
    assert contents(out) == contents(tmp_path / "local")


def test_ctrl_c_ends_the_workers_and_leaves_what_can_be_continued(
    tmp_path: Path, cluster: Any
) -> None:
    index = make_files(tmp_path / "src", 400, mean_bytes=1_000_000)
    out = tmp_path / "ray"
    command = [sys.executable, "-m", "shardkit.cli.main", "pack", str(index), str(out)]
    command += ["--files", *FILES, "--inline", "caption=txt", "--samples-per-shard", "6"]
    command += ["--executor", "ray", "--ray-address", cluster.address]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_until(lambda: list(out.glob("shard-*.parquet")) or driver.poll() is not None)
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert stderr.decode().strip().endswith("interrupted")
    wait_until(lambda: not at_items())
    assert not (out / "manifest.json").exists()
    json.loads((out / ".pack/plan.json").read_text())
    assert pack_files(index, out).num_resumed > 0
    assert not (out / ".pack").exists(), "a temporary is left"


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"), ("there", "not of the form host:")],
)
def test_a_cluster_that_is_not_there_is_said_at_once(
    tmp_path: Path, address: str, message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        pack_on(RayExecutor(address), make_files(tmp_path / "src", 6), tmp_path / "out")
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out").exists()


ABSENT = """
import sys
class NoShardkit:
    def find_spec(self, name, path, target=None):
        if name == "shardkit":
            raise ModuleNotFoundError("No module named 'shardkit'", name=name)
sys.meta_path.insert(0, NoShardkit())
"""
OLDER = "import shardkit; shardkit.__version__ = '0.0.0'"


@pytest.mark.parametrize(
    ("module", "message"),
    [(ABSENT, "install it on all nodes"), (OLDER, "has shardkit 0.0.0 and the driver")],
)
def test_workers_without_this_shardkit_are_told_from_the_task(
    tmp_path: Path, cluster: Any, module: str, message: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(module)
    env = {"env_vars": {"PYTHONPATH": f"{tmp_path}:{ROOT}"}}
    ray.init(cluster.address, runtime_env=env, log_to_driver=False, configure_logging=False)
    try:
        with pytest.raises(ConfigError, match=message):
            list(RayExecutor().run(Deadly(), [0], nothing))
    finally:
        ray.shutdown()


def test_options_of_ray_need_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(make_files(tmp_path / "src", 6))
    assert main(["pack", index, str(tmp_path / "out"), "--ray-address", "auto"]) == 2
    assert "--ray-address is Ray's: say --executor ray too" in capsys.readouterr().err


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from shardkit.cli.main import main; "
    code += f"sys.exit(main(['verify', {str(tmp_path)!r}, '--executor', 'ray']))"
    pack_files(make_files(tmp_path / "src", 6), tmp_path / "out")
    code = code.replace(repr(str(tmp_path)), repr(str(tmp_path / "out")))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2
    assert "pip install shardkit[ray]" in found.stderr


@pytest.mark.parametrize("bad", [{"num_workers": 0}, {"cpus_per_worker": 0}])
def test_numbers_out_of_bounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be (at least 1|above 0)"):
        RayExecutor(**bad)
