"""Process workers: what crosses, what is reused, what happens when one dies."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardkit import DataLoader
from shardkit.errors import ConfigError
from shardkit.loader import WorkerLostError
from shardkit.loader.processes import ProcessWorkers
from shardkit.loader.segments import Lender, Writer
from tests.loader.numbers import batches_of, numbers, numbers_of

UNGUARDED = """
from shardkit import DataLoader
from tests.loader.numbers import numbers

def same(sample):
    return sample

next(iter(DataLoader(numbers(transforms=[same]), 8, workers="processes", num_workers=1)))
"""


def big(sample: dict[str, Any]) -> dict[str, Any]:
    return {"number": sample["number"], "array": np.full((64, 1024), sample["number"], np.float32)}


def with_pid(sample: dict[str, Any]) -> dict[str, Any]:
    return {"number": sample["number"], "pid": os.getpid()}


def slow_in_one(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["number"] % 8 == 0:
        time.sleep(0.3)
    return {"number": sample["number"], "pid": os.getpid()}


def refuse_number_one(number: int) -> None:
    if number == 1:
        raise RuntimeError("worker 1 has no licence")


def leave_a_mark(number: int) -> None:
    os.environ["SHARDKIT_TEST_WORKER"] = str(number)


def marked(sample: dict[str, Any]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    return {"mark": os.environ["SHARDKIT_TEST_WORKER"], "threads": threads}


def processes(dataset: Any, **options: Any) -> DataLoader:
    return DataLoader(dataset, 8, **{"workers": "processes", "num_workers": 2, **options})


def pids_of(loader: DataLoader) -> list[int]:
    workers = loader._running
    assert isinstance(workers, ProcessWorkers)
    return [worker.process.pid for worker in workers._workers]


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped_segments() -> int:
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum("shardkit-batch" in line for line in maps)


VALUES: dict[str, Any] = {
    "text": "text",
    "bytes": [b"", b"x" * 200_000, b"short"],
    "array": np.arange(10_000, dtype=np.int16).reshape(100, 100),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(20)[::2],
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float64(1.5),
    "objects": np.array(["a", None, 3], dtype=object),
    "tensor": torch.arange(12).reshape(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "point": torch.tensor(3.5),
    "none": torch.zeros(0, 4),
    "grad": torch.ones(2, requires_grad=True),
    "sparse": torch.eye(3).to_sparse(),
    "nested": [{"deep": (torch.ones(2), None)}],
}


class TestSegments:
    def exchange(self, value: Any, writer: Writer, lender: Lender) -> Any:
        segment, dropped = lender.lend()
        writer.forget(dropped)
        parcel, fd = writer.write(value, segment)
        lender.received(parcel, segment, fd)
        return lender.read(parcel)

    @pytest.mark.parametrize("name", list(VALUES))
    def test_every_value_arrives_as_it_was(self, name: str) -> None:
        value = VALUES[name]
        found = self.exchange(value, Writer(), Lender())
        assert type(found) is type(value)
        if isinstance(value, torch.Tensor):
            assert found.dtype == value.dtype
            assert found.shape == value.shape
            assert torch.equal(found.to_dense(), value.to_dense())
        elif name == "nested":
            assert torch.equal(found[0]["deep"][0], torch.ones(2))
        else:
            np.testing.assert_array_equal(found, value)

    def test_arrays_are_writable_and_their_own(self) -> None:
        writer, lender = Writer(), Lender()
        first = self.exchange(np.zeros(9), writer, lender)
        second = self.exchange(np.ones(9), writer, lender)
        first += 5
        assert second.tolist() == [1] * 9
        assert first.tolist() == [5] * 9

    def test_a_segment_is_used_again_when_its_last_array_is_gone(self) -> None:
        writer, lender = Writer(), Lender()
        found = self.exchange({"a": np.zeros(100_000), "b": torch.zeros(9)}, writer, lender)
        view = found["a"][5:10]
        del found
        assert lender.lend()[0] is None  # a view is alive
        del view
        segment, _ = lender.lend()
        assert segment == 0
        parcel, fd = writer.write(np.ones(100_000), segment)
        assert (parcel.segment, fd) == (0, None)

    def test_larger_values_get_a_larger_segment_and_the_small_one_goes(self) -> None:
        writer, lender = Writer(), Lender()
        before, fds_before = mapped_segments(), fds()
        for size in (1_000, 50_000, 2_000_000):
            assert self.exchange(np.ones(size), writer, lender).sum() == size
        assert mapped_segments() - before == 2  # one, mapped at both ends
        assert fds() <= fds_before + 2

    def test_held_batches_keep_theirs_and_many_idle_ones_are_given_up(self) -> None:
        writer, lender = Writer(), Lender()
        before = mapped_segments()
        held = [self.exchange(np.full(9, n), writer, lender) for n in range(20)]
        assert [int(array[0]) for array in held] == list(range(20))
        assert mapped_segments() - before == 40
        del held
        self.exchange(np.zeros(1), writer, lender)
        self.exchange(np.zeros(1), writer, lender)
        assert mapped_segments() - before <= 8


class TestBatches:
    def test_large_arrays_arrive_right_whatever_is_held(self) -> None:
        with processes(numbers(transforms=[big]), prefetch_factor=3) as loader:
            held = list(loader)
            held += list(loader)
        for batch in held:
            assert torch.equal(batch["array"][:, 0, 0], batch["number"].float())
            assert torch.equal(batch["array"][:, -1, -1], batch["number"].float())

    def test_memory_is_used_again_when_batches_are_let_go(self) -> None:
        gc.collect()
        before = mapped_segments()
        with processes(numbers(1_000, transforms=[big])) as loader:
            for number, _batch in enumerate(loader):
                if number > 10:
                    assert mapped_segments() - before <= 2 * 6
        del _batch
        gc.collect()
        assert mapped_segments() == before

    def test_a_batch_outlives_its_loader(self) -> None:
        with processes(numbers(transforms=[big])) as loader:
            batch = next(iter(loader))
        assert torch.equal(batch["array"][:, 3, 3], batch["number"].float())

    def test_a_slow_batch_does_not_hold_up_the_other_workers(self) -> None:
        dataset = numbers(64, shuffle="none", transforms=[slow_in_one])
        dataset_quick = numbers(64, shuffle="none", transforms=[with_pid])
        with processes(dataset_quick) as loader:
            shares = Counter(int(batch["pid"][0]) for batch in loader)
        assert len(shares) == 2
        with processes(dataset, prefetch_factor=4) as loader:
            assert sorted(n for batch in loader for n in numbers_of(batch)) == list(range(64))

    def test_workers_have_one_thread_and_are_initialised_with_their_number(self) -> None:
        options = {"worker_init_fn": leave_a_mark, "prefetch_factor": 1}
        with processes(numbers(transforms=[marked]), **options) as loader:
            batches = list(loader)
        assert {mark for batch in batches for mark in batch["mark"]} == {"0", "1"}
        assert {threads for batch in batches for threads in batch["threads"].tolist()} == {1}

    def test_an_error_of_worker_init_reaches_the_consumer(self) -> None:
        with (
            processes(numbers(), worker_init_fn=refuse_number_one) as loader,
            pytest.raises(RuntimeError, match="has no licence"),
        ):
            batches_of(loader)

    def test_what_cannot_be_pickled_is_told_with_what_to_do(self) -> None:
        with (
            processes(numbers(transforms=[lambda sample: sample])) as loader,
            pytest.raises(ConfigError, match="at the top of a module, or use workers='threa"),
        ):
            next(iter(loader))

    @pytest.mark.parametrize(
        ("where", "message"),
        [("script", "under `if __name__"), ("prompt", "what a notebook or a prompt defines")],
    )
    def test_workers_that_can_not_start_are_told_why(
        self, tmp_path: Path, where: str, message: str
    ) -> None:
        script = tmp_path / "train.py"
        script.write_text(UNGUARDED)
        command = [str(script)] if where == "script" else ["-c", UNGUARDED]
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        said = done.stderr.splitlines()[-1]
        assert said.startswith("shardkit.loader.processes.WorkerLostError")
        assert message in said

    def test_a_forked_child_is_told_how_it_can_have_workers_of_its_own(self) -> None:
        with processes(numbers()) as loader:
            running = iter(loader)
            next(running)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    with pytest.raises(ConfigError, match="multiprocessing_context='spawn' here"):
                        next(iter(processes(numbers())))
                    with processes(numbers(), multiprocessing_context="spawn") as own:
                        code = 0 if len(batches_of(own)) == len(own) else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert len(list(running)) == len(loader) - 1

    def test_forked_workers_take_what_cannot_be_pickled(self) -> None:
        dataset = numbers(transforms=[lambda sample: {"number": sample["number"]}])
        with processes(dataset, multiprocessing_context="fork") as loader:
            assert sorted(n for batch in loader for n in numbers_of(batch)) == list(range(101))


class TestDeath:
    @pytest.mark.parametrize("seed", range(4))
    def test_a_killed_worker_is_named_and_a_resume_loses_nothing(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        seen: list[int] = []
        with processes(numbers(400, transforms=[big])) as loader:
            running = iter(loader)
            for _ in range(int(rng.integers(1, 20))):
                seen += numbers_of(next(running))
            victim = pids_of(loader)[int(rng.integers(2))]
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(WorkerLostError, match=r"shardkit-loader-\d is dead \(exit code -9"):
                for batch in running:
                    seen += numbers_of(batch)
            loader.load_state_dict(loader.state_dict())
            for batch in loader:
                seen += numbers_of(batch)
        assert Counter(seen) == Counter(range(400))

    def test_workers_end_when_the_consumer_is_killed(self, tmp_path: Path) -> None:
        child = os.fork()
        if child == 0:
            loader = processes(
                numbers(10_000, transforms=[with_pid]), multiprocessing_context="fork"
            )
            running = iter(loader)
            next(running)
            (tmp_path / "pids").write_text(" ".join(map(str, pids_of(loader))))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2
        deadline = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)
