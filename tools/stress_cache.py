"""Stress one cache folder with many processes, killed at random; exit 1 if a promise breaks.

    python tools/stress_cache.py                                  # some seconds, as CI runs it
    python tools/stress_cache.py --seconds 3600 --processes 16 --kills-per-s 5 --seed 7

Workers open and read random objects of known content, hold some of them, and are killed with
SIGKILL and replaced. What is watched, from outside and with all workers stopped (SIGSTOP):

* bytes of entries and temporaries never exceed the limit;
* no worker ever sees an error or a wrong byte;
* two workers never fetch the same object into the cache at once;
* at the end, the next process finds a sound cache: ``check()`` is empty, nobody holds room.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from pathlib import Path

from shardkit.storage.cache import Cache, Sink
from shardkit.storage.entries import Entry


def content(key: int, size: int) -> bytes:
    """Return the bytes of object ``key``: known everywhere, different for every key."""
    return (key.to_bytes(4, "little") * (size // 4 + 1))[:size]


def object_size(key: int, mean: int) -> int:
    """Return the size of object ``key``: from nothing to twice the mean."""
    return (key * 7919) % (2 * mean)


def work(arguments: argparse.Namespace) -> int:
    """Be a worker: read objects until killed or told to stop; complain to the errors folder."""
    folder = Path(arguments.folder)
    dice = random.Random(arguments.worker)
    cache = Cache(str(folder / "cache"), arguments.limit, policy=arguments.policy)
    held: deque[Entry] = deque()
    try:
        while not (folder / "stop").exists():
            step(cache, folder, dice, held, arguments)
        while held:
            held.popleft().close()
        cache.close()
    except BaseException:  # noqa: BLE001 - whatever it is, it is a broken promise
        (folder / "errors" / str(os.getpid())).write_text(traceback.format_exc())
        return 1
    return 0


def step(
    cache: Cache,
    folder: Path,
    dice: random.Random,
    held: deque[Entry],
    arguments: argparse.Namespace,
) -> None:
    """Read one object in one of the ways that there are; check every byte."""
    key = min(dice.randrange(arguments.objects), dice.randrange(arguments.objects))  # some are hot
    size = object_size(key, arguments.mean_size)
    expected = content(key, size)

    def fill(sink: Sink) -> None:
        flight = folder / "flights" / str(key)
        alone = hasattr(sink, "path")  # not when it passes through memory
        if alone:
            take_off(flight)
        try:
            for start in range(0, size, 1000):
                sink.write(expected[start : start + 1000])
                if dice.random() < 0.05:
                    time.sleep(0.001)
        finally:
            if alone:
                flight.unlink()

    if dice.random() < 0.4:
        found = cache.get(f"small{key}", lambda: expected)
        if found != expected:
            raise ValueError(f"object {key}: wrong bytes")
        return
    due = dice.random() if dice.random() < 0.5 else None
    entry = cache.open(str(key), fill, size=size if dice.random() < 0.7 else -1, due=due)
    held.append(entry)
    if len(held) > arguments.pins:
        held.popleft().close()
    for each in (entry, dice.choice(held)) if held else (entry,):
        if each is entry and bytes(entry.data) != expected:
            raise ValueError(f"object {key}: wrong bytes")
        _ = bytes(each.data)


def take_off(flight: Path) -> None:
    """Note that we fetch an object; complain if a living process does too."""
    try:
        other = int(flight.read_text() or "0")
    except FileNotFoundError:
        other = 0
    if other and other != os.getpid() and state_of(other) not in "ZX":
        raise RuntimeError(f"object {flight.name} is being fetched by {other} too")
    flight.write_text(str(os.getpid()))


def disk_bytes(cache: Path) -> int:
    """Return the bytes of all entries and temporaries."""
    root = cache / "shardkit-cache-1"
    found = [*(root / "entries").glob("??/*"), *(root / "asides").glob("*/*")]
    return sum(path.stat().st_size for path in found)


def stress(arguments: argparse.Namespace) -> list[str]:
    """Run workers, kill some, watch; return the promises that broke."""
    folder = Path(arguments.folder)
    for name in ("cache", "errors", "flights"):
        (folder / name).mkdir(exist_ok=True)
    dice = random.Random(arguments.seed)
    serial = 0
    broken: list[str] = []
    workers: list[subprocess.Popen[bytes]] = []
    most = kills = samples = 0
    until = time.monotonic() + arguments.seconds
    try:
        while time.monotonic() < until and not broken:
            while len(workers) < arguments.processes:
                serial += 1
                workers.append(start_worker(arguments, arguments.seed * 100_003 + serial))
            time.sleep(dice.uniform(0, 2.0 / max(arguments.kills_per_s, 1)))
            bytes_now = stopped_sample(workers, folder / "cache")
            most, samples = max(most, bytes_now), samples + 1
            if bytes_now > arguments.limit:
                broken.append(f"{bytes_now} bytes on the disk, the limit is {arguments.limit}")
            if arguments.kills_per_s and dice.random() < 0.5:
                victim = workers.pop(dice.randrange(len(workers)))
                victim.kill()
                victim.wait()
                kills += 1
            broken += ended_badly(workers)
    finally:
        (folder / "stop").touch()
        for worker in workers:
            try:
                worker.wait(timeout=60)
            except subprocess.TimeoutExpired:
                broken.append(f"worker {worker.pid} hangs")
                worker.kill()
                worker.wait()
    broken += [path.read_text() for path in (folder / "errors").iterdir()]
    with Cache(str(folder / "cache"), arguments.limit, policy=arguments.policy) as cache:
        broken += cache.check()
        with cache.open("last", lambda sink: sink.write(b"x" * arguments.limit)) as entry:
            if not entry.is_cached:
                broken.append("room is held though nobody lives")
    print(
        f"seed {arguments.seed}: {kills} kills, {samples} samples, at most {most} of "
        f"{arguments.limit} bytes, {len(broken)} broken promises"
    )
    return broken


def start_worker(arguments: argparse.Namespace, seed: int) -> subprocess.Popen[bytes]:
    """Start a worker with its own seed."""
    command = [sys.executable, __file__, "--worker", str(seed)]
    for name in ("folder", "limit", "policy", "objects", "mean_size", "pins"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return subprocess.Popen(command)


def stopped_sample(workers: list[subprocess.Popen[bytes]], cache: Path) -> int:
    """Return the bytes on the disk at one instant: with every worker stopped."""
    living = [worker for worker in workers if worker.poll() is None]
    for worker in living:
        worker.send_signal(signal.SIGSTOP)
    try:
        for worker in living:
            wait_until_stopped(worker.pid)
        return disk_bytes(cache) if (cache / "shardkit-cache-1" / "leases").exists() else 0
    finally:
        for worker in living:
            worker.send_signal(signal.SIGCONT)


def wait_until_stopped(pid: int) -> None:
    """Return when the kernel has stopped (or ended) a process."""
    while state_of(pid) not in "TtZX":
        time.sleep(0.0005)


def state_of(pid: int) -> str:
    """Return the state of a process as proc(5) has it; one that is gone is dead, ``X``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def ended_badly(workers: list[subprocess.Popen[bytes]]) -> list[str]:
    """Return a line for each worker that ended by itself."""
    return [f"worker {w.pid} ended with {w.returncode}" for w in workers if w.poll() is not None]


def main() -> int:
    """Run one stress, or be one of its workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills-per-s", type=float, default=4.0)
    parser.add_argument("--objects", type=int, default=200)
    parser.add_argument("--mean-size", type=int, default=20_000)
    parser.add_argument("--limit", type=int, default=400_000)
    parser.add_argument("--pins", type=int, default=3)
    parser.add_argument("--policy", default="next-use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep everything there (default: a temporary folder)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        return work(arguments)
    with tempfile.TemporaryDirectory(prefix="stress-") as scratch:
        arguments.folder = arguments.folder or scratch
        broken = stress(arguments)
    for promise in broken:
        print(promise)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
