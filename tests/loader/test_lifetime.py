"""Nothing leaks, nothing hangs: threads, processes, descriptors, memory; close, Ctrl-C, forks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from shardkit import DataLoader
from shardkit.errors import ShardkitError
from tests.loader.numbers import batches_of, numbers

KINDS = [("threads", 2), ("processes", 2)]


def nap(sample: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.02)
    return sample


def big(sample: dict[str, Any]) -> dict[str, Any]:
    return {"number": sample["number"], "array": np.ones((64, 1024))}


_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _only_own_threads() -> Iterator[None]:
    """What tests of other files left, in a cycle that is not collected yet, is not judged here."""
    gc.collect()  # so that nothing of theirs is collected, and closed by a thread, meanwhile
    assert settle(lambda: not any(t.name == "shardkit-close" for t in threading.enumerate()))
    _others.update(threading.enumerate())
    yield
    _others.clear()


def num_threads() -> int:
    ours = set(threading.enumerate()) - _others
    return sum(thread.name.startswith("shardkit") for thread in ours)


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def settle(check: Callable[[], bool]) -> bool:
    """Whether a claim comes true within a moment: threads end behind their sample."""
    deadline = time.monotonic() + 5
    while not check() and time.monotonic() < deadline:
        time.sleep(0.01)
    return check()


@pytest.mark.parametrize(("kind", "num_workers"), KINDS)
class TestFlat:
    def test_over_fifty_epochs(self, kind: Any, num_workers: int) -> None:
        with DataLoader(
            numbers(transforms=[big]), 16, workers=kind, num_workers=num_workers
        ) as loader:
            for _ in range(5):
                list(loader)
            before = num_threads(), num_fds(), len(multiprocessing.active_children())
            memory = resident_mb()
            for _ in range(50):
                for _batch in loader:
                    pass
            after = num_threads(), num_fds(), len(multiprocessing.active_children())
            assert all(now <= then for now, then in zip(after, before, strict=True)), after
            gc.collect()
            assert resident_mb() - memory < 60
        assert num_threads() == 0
        assert multiprocessing.active_children() == []

    def test_over_abandoned_iterators(self, kind: Any, num_workers: int) -> None:
        count = 100 if kind == "threads" else 12  # a start of processes takes a while
        with DataLoader(numbers(), 4, workers=kind, num_workers=num_workers) as loader:
            next(iter(loader))
            before = num_fds()
            for _ in range(count):
                running = iter(loader)
                next(running)
            assert num_fds() <= before + 2
            assert settle(lambda: num_threads() <= num_workers)
            assert len(multiprocessing.active_children()) <= num_workers

    def test_loaders_that_are_dropped_end_their_workers(self, kind: Any, num_workers: int) -> None:
        before = num_fds()
        for _ in range(5):
            next(iter(DataLoader(numbers(), 4, workers=kind, num_workers=num_workers)))
        gc.collect()
        assert settle(lambda: num_threads() == 0)
        assert settle(lambda: multiprocessing.active_children() == [])
        assert num_fds() <= before + 2

    def test_close_is_quick_with_full_queues(self, kind: Any, num_workers: int) -> None:
        loader = DataLoader(
            numbers(10_000, transforms=[nap]),
            32,
            workers=kind,
            num_workers=num_workers,
            prefetch_factor=8,
        )
        next(iter(loader))
        began = time.monotonic()
        loader.close()
        loader.close()
        assert time.monotonic() - began < 0.5
        assert num_threads() == 0
        assert multiprocessing.active_children() == []

    def test_a_closed_loader_can_be_iterated_again(self, kind: Any, num_workers: int) -> None:
        loader = DataLoader(numbers(), 8, workers=kind, num_workers=num_workers)
        running = iter(loader)
        next(running)
        loader.close()
        with pytest.raises(ShardkitError, match="the loader was closed"):
            next(running)
        assert len(batches_of(loader)) == len(loader)
        loader.close()

    def test_an_error_ends_the_workers(self, kind: Any, num_workers: int) -> None:
        loader = DataLoader(numbers(bad=[5]), 8, workers=kind, num_workers=num_workers)
        with pytest.raises(ShardkitError):
            batches_of(loader)
        assert settle(lambda: num_threads() == 0)
        assert multiprocessing.active_children() == []


SCRIPT = """
import sys, time
from shardkit import DataLoader
from tests.loader.numbers import numbers
from tests.loader.test_lifetime import nap

def main():
    loader = DataLoader(numbers(100_000, transforms=[nap]), 32, workers=sys.argv[1], num_workers=2)
    for number, batch in enumerate(loader):
        if number == 0:
            print("begun", flush=True)
        if sys.argv[2] == "leave":
            return
        if sys.argv[2] == "fail":
            raise RuntimeError("training failed")

if __name__ == "__main__":
    main()
"""


def start(tmp_path: Any, kind: str, what: str) -> subprocess.Popen[str]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), kind, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def group_of(process: subprocess.Popen[str]) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getpgid(int(pid)) == process.pid:
                found.append(int(pid))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_ctrl_c_stops_at_once_and_leaves_nothing_behind(tmp_path: Any, kind: str) -> None:
    process = start(tmp_path, kind, "go on")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode != 0
    assert said.count("Traceback") == 1
    assert "KeyboardInterrupt" in said
    assert settle(lambda: not group_of(process))


@pytest.mark.parametrize(
    ("kind", "what"), [("threads", "leave"), ("threads", "fail"), ("processes", "leave")]
)
def test_a_script_that_never_closes_its_loader_ends_at_once(
    tmp_path: Any, kind: str, what: str
) -> None:
    process = start(tmp_path, kind, what)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == (what == "fail")
    assert ("training failed" in said) == (what == "fail")
    assert "Fatal" not in said
    assert settle(lambda: not group_of(process))


def test_a_forked_child_leaves_its_parents_workers_alone() -> None:
    with DataLoader(numbers(), 8, num_workers=2) as loader:
        running = iter(loader)
        first = next(running)
        child = os.fork()
        if child == 0:
            loader.load_state_dict(loader.state_dict())
            good = len(batches_of(loader)) == len(loader) - 1
            loader.close()
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(running)) == len(loader) - 1
        assert len(first["number"]) == 8


class TestThreadsAsNeeded:
    """Where there is nothing to do but read, threads beyond the first come when they help."""

    def started(self, **options: Any) -> int:
        dataset = numbers(400)
        slow = options.pop("slow", 0.0)
        source: Any = dataset.stream.source
        read = source.read

        def slowly(*arguments: Any) -> Any:
            for sample in read(*arguments):
                time.sleep(slow)
                yield sample

        source.read = slowly if slow else read
        with DataLoader(dataset, 8, num_workers=3, **options) as loader:
            batches_of(loader)
            return num_threads()

    def test_one_reads_from_memory(self) -> None:
        assert 1 in (self.started(collate_fn=few) for _ in range(10))  # a busy machine looks slow

    def test_all_read_where_reading_waits(self) -> None:
        assert self.started(slow=0.001) == 3

    def test_all_work_where_collating_takes_long(self) -> None:
        assert self.started(collate_fn=slow_collate) == 3


def few(samples: Any) -> dict[str, Any]:
    return {"number": [sample["number"] for sample in samples]}


def slow_collate(samples: Any) -> dict[str, Any]:
    time.sleep(0.003)
    return few(samples)


def test_threads_work_alone_in_torch_and_leave_everybody_elses_number_as_it_was() -> None:
    before = torch.get_num_threads()
    seen = []

    def look(sample: dict[str, Any]) -> dict[str, Any]:
        seen.append(torch.get_num_threads())
        return sample

    try:
        torch.set_num_threads(3)
        with DataLoader(numbers(20, transforms=[look]), 2, num_workers=2) as loader:
            list(loader)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as others:
            assert others.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
