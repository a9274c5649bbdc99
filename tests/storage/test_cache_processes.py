"""Real processes over one cache, killed at random instants."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardkit.storage.cache import Cache, Sink
from shardkit.storage.ledger import Ledger
from tests.storage.disk import OURS, disk_bytes

ROOT = Path(__file__).parents[2]
KNOWN = {
    *("entries", "asides", "leases", "segments", "places", "flights"),
    *("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"),
}


@pytest.mark.parametrize(("policy", "seed"), [("next-use", 1), ("lru", 2)])
def test_eight_processes_under_a_tenth_of_the_data_with_kills_break_no_promise(
    policy: str, seed: int
) -> None:
    """The limit holds, no reader sees an error or a wrong byte, no object is fetched twice at once,
    and the next process finds everything clean. Longer: ``python tools/stress_cache.py --help``."""
    command = [sys.executable, str(ROOT / "tools" / "stress_cache.py"), "--seconds", "4"]
    command += ["--seed", str(seed), "--policy", policy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _read(folder: str, start: int) -> None:
    def load(key: int) -> bytes:
        with open(f"{folder}/fetched", "a", encoding="ascii") as log:  # one short append is atomic
            log.write(f"{key}\n")
        return bytes([key]) * 1000

    with Cache(f"{folder}/cache") as cache:
        for i in range(100):
            key = (start + i) % 100
            assert cache.get(str(key), lambda key=key: load(key)) == bytes([key]) * 1000


def test_eight_processes_fetch_each_object_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_read, args=(str(tmp_path), 12 * n)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    fetched = (tmp_path / "fetched").read_text().split()
    assert sorted(map(int, fetched)) == list(range(100))
    with Cache(str(tmp_path / "cache")) as cache:
        assert len(cache.entries()) == 100
        assert cache.check() == []


KILLED = """
import os, signal, sys
from shardkit.storage import cache as module, places, segments

places._FIRST_SETS = 1  # so that the table grows
segments._SEGMENT = 20 * 4096
calls, instant = 0, int(sys.argv[2])

def die_at(original):
    def instead(*args, **kwargs):
        global calls
        calls += 1
        if calls == instant:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return instead

for name in (
    *("open", "rename", "unlink", "utime", "pwrite", "pwritev", "write", "ftruncate", "truncate"),
    *("posix_fallocate", "close", "mkdir", "rmdir"),
):
    setattr(os, name, die_at(getattr(os, name)))
segments._punch = die_at(segments._punch)
for name in ("put", "remove", "_grow"):
    setattr(places.Places, name, die_at(getattr(places.Places, name)))

def get(i, version=None):
    data = bytes([i]) * (i % 5 * 4096)
    if version is None:
        assert cache.get(f"k{i}", lambda: data) == data
    else:
        ask = lambda: version
        load = lambda: (data, version)
        assert cache.get_fresh(f"k{i}", load, ask, since_ns=1 << 62) == data

cache = module.Cache(sys.argv[1], 100_000)
for i in range(100, 200, 5):  # empty ones, so that the table grows
    get(i)
for i in range(30):
    get(i)
    with cache.open(f"b{i}", lambda sink: sink.write(b"y" * 8000), size=8000) as entry:
        assert bytes(entry.data) == b"y" * 8000
    if i % 3 == 0:  # a packed entry becomes a file
        entry = cache.find(f"k{i}")
        assert bytes(entry.data) == bytes([i]) * (i % 5 * 4096)
        entry.close()
    if i % 5 == 0:  # another is asked about, or of another version
        get(i // 2, str(i % 2))
cache.clear()
cache.close()
print("survived", calls)
"""


@pytest.mark.parametrize("offset", range(0, 80, 6))
def test_killed_before_any_system_call_the_next_process_finds_a_sound_cache(
    tmp_path: Path, offset: int
) -> None:
    """Not at random: each process dies just before its n-th call that touches the disk."""
    limit = 100_000
    for instant in range(offset + 1, offset + 800, 80):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(instant)]
        done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert disk_bytes(tmp_path) <= limit
    for litter in (tmp_path / OURS).glob("places.*"):  # tables that some died in making
        os.utime(litter, (0, 0))
    with Cache(str(tmp_path), limit) as cache:
        assert cache.check() == []
        assert disk_bytes(tmp_path) == sum(entry.size for entry in cache.entries())
        assert set(os.listdir(tmp_path / OURS)) <= KNOWN  # the dead leave nothing beside
        with cache.open("all of it", lambda s: s.write(b"z" * limit), size=limit) as entry:
            assert entry.is_cached  # the dead hold no room
            assert disk_bytes(tmp_path) == limit
        assert cache.check() == []


def test_a_reader_waiting_for_a_fetcher_that_dies_fetches_itself(tmp_path: Path) -> None:
    script = f"""
import time
from shardkit.storage.cache import Cache
def load():
    print("fetching", flush=True)
    time.sleep(60)
Cache({str(tmp_path)!r}).get("k", load)
"""
    fetcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert fetcher.stdout is not None
    assert fetcher.stdout.readline() == b"fetching\n"
    context = multiprocessing.get_context("spawn")
    reader = context.Process(target=_wait_for_k, args=(str(tmp_path),))
    reader.start()
    while not (tmp_path / "waiting").exists():
        time.sleep(0.01)
    fetcher.kill()
    reader.join(30)
    fetcher.wait()
    fetcher.stdout.close()
    assert reader.exitcode == 0


def _open_at(folder: str, first: float) -> None:
    for i in range(100):
        os.makedirs(f"{folder}/{i}", exist_ok=True)
        while time.time() < first + 0.02 * i:  # closer together than any barrier wakes them
            pass
        ledger = Ledger(f"{folder}/{i}/ledger.sqlite")
        assert ledger.row("k") is None
        ledger.close()


def test_processes_may_make_a_ledger_all_at_once(tmp_path: Path) -> None:
    """SQLite makes nobody wait for a change to WAL: without turns, one in 100 was refused."""
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path), time.time() + 1.5)
    processes = [context.Process(target=_open_at, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def _wait_for_k(folder: str) -> None:
    Path(folder, "waiting").touch()
    with Cache(folder) as cache:
        assert cache.get("k", lambda: b"mine") == b"mine"


def test_an_open_entry_survives_another_process_filling_the_cache(tmp_path: Path) -> None:
    with Cache(str(tmp_path), 10_000) as cache:
        with cache.open("k", lambda s: s.write(b"k" * 4000), size=4000) as entry:
            script = f"""
from shardkit.storage.cache import Cache
with Cache({str(tmp_path)!r}, 10_000) as cache:
    for i in range(50):
        cache.get(f"o{{i}}", lambda: b"o" * 1000)
    cache.clear()
"""
            subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
            assert Path(entry.path).read_bytes() == b"k" * 4000
        assert cache.check() == []


def test_a_fill_may_itself_use_the_cache(tmp_path: Path) -> None:
    with Cache(str(tmp_path), 10_000) as cache:

        def fill(sink: Sink) -> None:
            sink.write(cache.get("inner", lambda: b"inner"))

        with cache.open("outer", fill, size=5) as entry:
            assert bytes(entry.data) == b"inner"
        assert list((tmp_path / "shardkit-cache-2" / "asides").glob("*/*")) == []
