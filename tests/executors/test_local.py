"""Workers: results, errors, losses; whatever happens, nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from shardkit.errors import ConfigError, NotFoundError
from shardkit.executors import LocalExecutor, WorkerLostError, nothing
from shardkit.executors.local import num_cores
from tests.pack.data import workers_alive

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Square:
    """Squares its items; before, in workers, dies as often as its folder does not say it has."""

    folder: str = ""
    times: int = 0
    parent: int = 0

    def __call__(self, item: int, report: Report) -> int:
        report(1, item)
        if os.getpid() != self.parent and self.times:
            deaths = len(os.listdir(self.folder))
            if deaths < self.times:
                open(f"{self.folder}/{deaths}", "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return item * item


@dataclass(frozen=True)
class WhoAmI:
    def __call__(self, item: int, report: Report) -> int:
        del item, report
        return os.getpid()


@dataclass(frozen=True)
class Fails:
    error: Exception

    def __call__(self, item: int, report: Report) -> int:
        del report
        if item == 3:
            raise self.error
        time.sleep(0.01)
        return item


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_item_is_done_once_and_reported(workers: int) -> None:
    seen: list[int] = []
    results = LocalExecutor(workers).run(Square(), range(20), lambda _, size: seen.append(size))
    assert sorted(results) == [n * n for n in range(20)]
    assert sorted(seen) == list(range(20))
    assert not workers_alive()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller_as_it_was(workers: int) -> None:
    error = NotFoundError("no such thing; look elsewhere")
    with pytest.raises(NotFoundError) as caught:
        list(LocalExecutor(workers).run(Fails(error), range(20), nothing))
    assert str(caught.value) == "no such thing; look elsewhere"
    assert not workers_alive()


def test_this_process_is_one_of_the_workers() -> None:
    pids = set(LocalExecutor(3).run(WhoAmI(), range(20), nothing))
    assert len(pids) == 3
    assert os.getpid() in pids


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    task = Square(str(tmp_path), times=2, parent=os.getpid())
    assert sorted(LocalExecutor(2).run(task, range(8), nothing)) == [n * n for n in range(8)]
    assert len(list(tmp_path.iterdir())) == 2


def test_workers_that_are_always_killed_are_given_up_with_the_remedy(tmp_path: Path) -> None:
    task = Square(str(tmp_path), times=100, parent=os.getpid())
    with pytest.raises(WorkerLostError, match=r"4 worker processes in a row .*-9.*fewer --workers"):
        list(LocalExecutor(2).run(task, range(8), nothing))
    assert not workers_alive()


def test_an_abandoned_run_ends_its_workers() -> None:
    run = LocalExecutor(2).run(Square(), range(1000), nothing)
    next(run)  # type: ignore[call-overload]
    run.close()  # type: ignore[attr-defined]
    assert not workers_alive()


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from tests.executors.test_local import Sleeps\n"
        "from shardkit.executors import LocalExecutor, nothing\n"
        "list(LocalExecutor(3).run(Sleeps(), range(8), lambda *a: print('up', flush=True)))\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(workers, timeout=5)[1]


class Sleeps:
    def __call__(self, item: int, report: Report) -> None:
        report(1, 1)
        time.sleep(60)


def test_workers_that_are_ready_and_not_needed_are_ended() -> None:
    executor = LocalExecutor(3)
    with executor.ready(Square), executor.ready():
        while len(workers_alive()) < 2:  # one that has just begun has no command line yet
            time.sleep(0.01)
        assert len(workers_alive()) == 2
        assert sorted(executor.run(Square(), range(4), nothing)) == [0, 1, 4, 9]
    with executor.ready():
        pass
    assert not workers_alive()


def test_of_many_workers_no_more_than_cores_start_before_there_is_work_for_them() -> None:
    executor = LocalExecutor(10**9)
    with executor.ready(Square):
        assert len(workers_alive()) <= num_cores()
        assert sorted(executor.run(Square(), range(4), nothing)) == [0, 1, 4, 9]
    assert not workers_alive()


def test_workers_whose_parent_is_killed_say_nothing() -> None:
    script = """
import os, signal
from shardkit.executors.workers import start_worker
start_worker(), start_worker()
os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(5):
        ran = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert ran.stderr == ""


def test_at_least_one_worker_is_needed() -> None:
    with pytest.raises(ConfigError, match="workers=0 must be at least 1"):
        LocalExecutor(0)
