"""Stress one cache folder with many processes, killed at random; exit 1 if a promise breaks.

    python tools/stress_cache.py                                  # some seconds, as CI runs it
    python tools/stress_cache.py --seconds 3600 --processes 16 --kills-per-s 5 --seed 7

Workers open and read random objects of known content, hold some of them, and are killed with
SIGKILL and replaced. What is watched, from outside and with all workers stopped (SIGSTOP):

* bytes of entries and temporaries never exceed the limit;
* no worker ever sees an error or a wrong byte;
* two workers never fetch the same object into the cache at once;
* at the end, the next process finds a sound cache: ``check()`` is empty, nobody holds room, every
  byte on the disk is of an entry.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from shardkit.storage.cache import Cache, Sink
from shardkit.storage.entries import Entry

_BLOCK = 4096
"""A packed entry takes whole blocks of the disk; so that bytes can be compared, objects do too."""


def content(key: int, size: int) -> bytes:
    """Return the bytes of object ``key``: known everywhere, different for every key."""
    return (key.to_bytes(4, "little") * (size // 4 + 1))[:size]


def object_size(key: int, mean: int) -> int:
    """Return the size of object ``key``: whole blocks, from none to twice the mean."""
    return (key * 7919) % (2 * mean) // _BLOCK * _BLOCK


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
        alone = hasattr(sink, "path")  # not when it passes through memory
        with flight(folder, str(key)) if alone else contextlib.nullcontext():
            for start in range(0, size, 1000):
                sink.write(expected[start : start + 1000])
                if dice.random() < 0.05:
                    time.sleep(0.001)

    def load() -> bytes:
        with flight(folder, f"small{key}"):
            time.sleep(dice.choice((0, 0, 0.001)))
            return expected

    if dice.random() < 0.4:
        name = f"small{key}"
        way = dice.random()
        if way < 0.7:
            found: bytes | None = cache.get(name, load)
        elif way < 0.8:
            found = cache.get(name, load, as_file=True)
        elif way < 0.9:
            version = str(key % 2) if dice.random() < 0.9 else "another"
            found = cache.get_fresh(
                name, lambda: (load(), version), lambda: version, since_ns=time.time_ns()
            )
        else:
            entry = cache.find(name)
            found = None if entry is None else bytes(entry.data)
            if entry is not None:
                entry.close()
        if found not in (None, expected):
            raise ValueError(f"object {name}: wrong bytes")
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


@contextlib.contextmanager
def flight(folder: Path, name: str) -> Iterator[None]:
    """Note that we fetch an object; complain if a living process does too."""
    note = folder / "flights" / name
    try:
        other = int(note.read_text() or "0")
    except FileNotFoundError:
        other = 0
    if other and other != os.getpid() and state_of(other) not in "ZX":
        raise RuntimeError(f"object {name} is being fetched by {other} too")
    note.write_text(str(os.getpid()))
    try:
        yield
    finally:
        note.unlink()


def disk_bytes(cache: Path) -> tuple[int, int]:
    """Return the bytes of all entries and temporaries; how many of them are of packed entries."""
    root = cache / "shardkit-cache-2"
    found = [*(root / "entries").glob("??/*"), *(root / "asides").glob("*/*")]
    packed = sum(map(data_bytes, (root / "segments").glob("*")))
    return packed + sum(path.stat().st_size for path in found), packed


def data_bytes(path: Path) -> int:
    """Return the bytes of a file that take room: its extents of data, not its holes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        num_bytes = end = 0
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            num_bytes += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data any more
            raise
        return num_bytes
    finally:
        os.close(fd)


def stress(arguments: argparse.Namespace) -> list[str]:
    """Run workers, kill some, watch; return the promises that broke."""
    folder = Path(arguments.folder)
    for name in ("cache", "errors", "flights"):
        (folder / name).mkdir(exist_ok=True)
    dice = random.Random(arguments.seed)
    serial = 0
    broken: list[str] = []
    workers: list[subprocess.Popen[bytes]] = []
    most = most_packed = kills = samples = 0
    until = time.monotonic() + arguments.seconds
    try:
        while time.monotonic() < until and not broken:
            while len(workers) < arguments.processes:
                serial += 1
                workers.append(start_worker(arguments, arguments.seed * 100_003 + serial))
            time.sleep(dice.uniform(0, 2.0 / max(arguments.kills_per_s, 1)))
            bytes_now, packed_now = stopped_sample(workers, folder / "cache")
            most, most_packed = max(most, bytes_now), max(most_packed, packed_now)
            samples += 1
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
        broken += unrecorded(cache, folder / "cache")
        with cache.open("last", lambda sink: sink.write(b"x" * arguments.limit)) as entry:
            if not entry.is_cached:
                broken.append("room is held though nobody lives")
    print(
        f"seed {arguments.seed}: {kills} kills, {samples} samples, at most {most} of "
        f"{arguments.limit} bytes (packed: {most_packed}), {len(broken)} broken promises"
    )
    return broken


def unrecorded(cache: Cache, folder: Path) -> list[str]:
    """Return a line if other bytes lie on the disk than the cache says."""
    found, known = disk_bytes(folder)[0], sum(entry.size for entry in cache.entries())
    return [] if found == known else [f"{found} bytes on the disk, {known} of them are known"]


def start_worker(arguments: argparse.Namespace, seed: int) -> subprocess.Popen[bytes]:
    """Start a worker with its own seed."""
    command = [sys.executable, __file__, "--worker", str(seed)]
    for name in ("folder", "limit", "policy", "objects", "mean_size", "pins"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return subprocess.Popen(command)


def stopped_sample(workers: list[subprocess.Popen[bytes]], cache: Path) -> tuple[int, int]:
    """Return the bytes on the disk (and packed) at one instant: with every worker stopped."""
    living = [worker for worker in workers if worker.poll() is None]
    for worker in living:
        worker.send_signal(signal.SIGSTOP)
    try:
        for worker in living:
            wait_until_stopped(worker.pid)
        return disk_bytes(cache)
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
