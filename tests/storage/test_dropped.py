"""A cache that nobody closed is closed when nobody has it any more."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shardkit import StreamingDataset
from shardkit.storage.cache import Cache
from tests.s3 import serve_http
from tests.storage.disk import open_in


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def leases(folder: Path) -> list[str]:
    return os.listdir(folder / "shardkit-cache-2" / "leases")


def test_its_descriptors_are_free_its_entries_recorded_its_lease_is_over(tmp_path: Path) -> None:
    for number in range(20):
        cache = Cache(str(tmp_path))
        assert cache.get(f"k{number}", lambda: b"x" * 5_000)
        del cache
    until(lambda: open_in(tmp_path) == [])
    assert leases(tmp_path) == []
    with Cache(str(tmp_path)) as cache:
        assert sorted(entry.key for entry in cache.entries()) == sorted(f"k{n}" for n in range(20))
        assert cache.check() == []


def test_one_that_was_closed_is_not_closed_again(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    cache.get("a", lambda: b"x")
    cache.close()
    cache.get("b", lambda: b"x")
    cache.close()
    assert open_in(tmp_path) == []
    own = [os.open(tmp_path / "own", os.O_WRONLY | os.O_CREAT) for _ in range(9)]  # its numbers
    del cache
    time.sleep(0.05)
    assert len(open_in(tmp_path)) == 9
    for fd in own:
        os.close(fd)


def test_children_forked_while_caches_are_dropped_share_their_folder(tmp_path: Path) -> None:
    """None of them may hold, or believe to hold, a lock of its parent's ledger."""
    with Cache(str(tmp_path)) as kept:
        for number in range(30):
            cache = Cache(str(tmp_path))
            cache.get(f"parent{number}", lambda: b"x" * 5_000)
            del cache
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    with Cache(str(tmp_path)) as own:
                        own.get(f"child{number}", lambda: b"y" * 5_000)
                    kept.get(f"also{number}", lambda: b"z" * 5_000)
                    kept.close()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
        keys = {entry.key for entry in kept.entries()}
        expected = {f"{who}{n}" for who in ("parent", "child", "also") for n in range(30)}
        assert keys == expected
        assert kept.check() == []


def test_a_child_does_not_end_what_its_parent_has(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    cache.get("a", lambda: b"x" * 5_000)
    mine = leases(tmp_path)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            del cache
            time.sleep(0.2)
            status = 0 if leases(tmp_path) == mine else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("b", lambda: b"x" * 5_000)
    assert leases(tmp_path) == mine
    cache.close()


SCRIPT = """
import sys
from shardkit.storage.cache import Cache
cache = Cache(sys.argv[1])
for number in range(30):
    cache.get(f"k{number}", lambda: b"x" * 5_000)
"""


def test_a_process_that_ends_loses_nothing_of_what_it_fetched(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
    with Cache(str(tmp_path)) as cache:
        assert len(cache.entries()) == 30
        assert cache.check() == []


def _fill(cache: Cache) -> None:
    for number in range(30):
        cache.get(f"k{number}", lambda: b"x" * 5_000)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_nor_does_a_worker_of_multiprocessing(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with Cache(str(tmp_path)) as cache:
        cache.get("before", lambda: b"x")
        process = context.Process(target=_fill, args=(cache,))  # type: ignore[attr-defined]
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert len(cache.entries()) == 31
        assert len(leases(tmp_path)) == 1
        assert cache.check() == []


JOB = """
import sys
import torch
import shardkit

def alone(samples):
    return samples

def main(how, url, folder):
    rows = [{"data_id": f"{i}", "data_url": f"{url}/{i}.bin"} for i in range(40)]
    dataset = shardkit.StreamingDataset(rows, folder, decode=None, revalidate="never")
    if how == "torch":
        passed = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=3, multiprocessing_context="fork"
        )
    elif how == "processes":
        passed = shardkit.DataLoader(
            dataset, 1, workers="processes", num_workers=2, collate_fn=alone
        )
    else:
        passed = dataset
    for number, _ in enumerate(passed, 1):
        if number == 40 and how == "exit":
            sys.exit(7)
        if number == 40 and how == "raise":
            raise RuntimeError("training failed")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("how", "status"), [("plain", 0), ("raise", 1), ("exit", 7), ("torch", 0), ("processes", 0)]
)
def test_a_job_that_ends_without_closing_anything_has_kept_all_that_it_fetched(
    tmp_path: Path, how: str, status: int
) -> None:
    (tmp_path / "served" / "bin").mkdir(parents=True)
    for number in range(40):
        (tmp_path / "served" / "bin" / f"{number}.bin").write_bytes(bytes([number]) * 1_500)
    script, folder = tmp_path / "job.py", str(tmp_path / "cache")
    script.write_text(JOB)
    with serve_http(tmp_path / "served") as http:
        url = f"{http.url}/bin"
        ran = subprocess.run([sys.executable, str(script), how, url, folder], check=False)
        assert ran.returncode == status
        assert http.count("GET", "*.bin") == 40
        rows = [{"data_id": f"{i}", "data_url": f"{url}/{i}.bin"} for i in range(40)]
        dataset = StreamingDataset(rows, folder, decode=None, revalidate="never")
        assert sorted(sample["bin"] for sample in dataset) == [
            bytes([i]) * 1_500 for i in range(40)
        ]
        assert http.count("*", "*.bin") == 40
