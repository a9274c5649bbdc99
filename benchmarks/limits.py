"""What the machine allows: GNU tar, a plain copy, os.pread, a bare generator, Python's tarfile.

``spans`` of a folder of tars (made once by ``write_spans`` with the standard library's
``tarfile``, so that it depends on none of the contestants) say where each member's data lies.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator

from harness import Again, Result, Task, random_ids, timed_gets, timed_pass

SPANS = "spans.json"

Shard = tuple[str, list[str], list[str], list[list[int]], list[list[int]]]
# a shard: path, exts, keys, and for each ext the starts and the stops of its members


def write_spans(folder: str) -> dict[str, int]:
    """Scan the tars of a folder into ``spans.json``; return the samples of each tar.

    All samples must have the same exts.
    """
    shards: list[Shard] = []
    for name in sorted(n for n in os.listdir(folder) if n.endswith(".tar")):
        found: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(os.path.join(folder, name)) as tar:
            for member in tar:
                key, ext = member.name.split(".", 1)
                stop = member.offset_data + member.size
                found.setdefault(key, {})[ext] = (member.offset_data, stop)
        exts = list(next(iter(found.values())))
        starts = [[spans[ext][0] for spans in found.values()] for ext in exts]
        stops = [[spans[ext][1] for spans in found.values()] for ext in exts]
        shards.append((os.path.join(folder, name), exts, list(found), starts, stops))
    with open(os.path.join(folder, SPANS), "w", encoding="ascii") as file:
        json.dump(shards, file)
    return {os.path.basename(shard[0]): len(shard[2]) for shard in shards}


def read_spans(task: Task) -> list[Shard]:
    """The shards of the tars, permuted when the task is to shuffle by shard."""
    with open(os.path.join(task.packed["tar"], SPANS), encoding="ascii") as file:
        shards: list[Shard] = json.load(file)
    if task.shuffled:
        random.Random(0).shuffle(shards)
    return shards


def gnu_tar(task: Task) -> Result:
    """GNU tar over the list of files, into one tar."""
    command = ["tar", "--format=ustar", "-C", task.data, "-T", "files.txt", "-cf"]
    start = time.perf_counter()
    subprocess.run([*command, os.path.join(task.out, "all.tar")], check=True, cwd=task.data)
    seconds = time.perf_counter() - start
    return Result(seconds, task.options["num_samples"])


def copy(task: Task) -> Result:
    """``cp -r`` of the folders of files."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", os.path.join(task.data, "files"), task.out], check=True)
    return Result(time.perf_counter() - start, task.options["num_samples"])


def pread_members(task: Task) -> Result:
    """One ``os.pread`` for each member, nothing kept."""
    plan = [
        (
            os.open(path, os.O_RDONLY),
            list(zip(*starts, strict=True)),
            list(zip(*stops, strict=True)),
        )
        for path, _, _, starts, stops in read_spans(task)
    ]
    pread = os.pread
    for _ in range(task.options.get("epochs", 1)):
        count = 0
        begin = time.perf_counter()
        for fd, starts, stops in plan:
            for firsts, ends in zip(starts, stops, strict=True):
                for first, end in zip(firsts, ends, strict=True):
                    pread(fd, end - first, first)
                count += 1
        seconds = time.perf_counter() - begin
    return Result(seconds, count)


def mapped(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def bare_generator(task: Task) -> Result:
    """The same dicts from memory maps, by a generator that knows all offsets beforehand."""
    shards = [(mapped(shard[0]), *shard) for shard in read_spans(task)]

    def two() -> Iterator[dict[str, object]]:
        for view, url, (a, b), keys, (starts_a, starts_b), (stops_a, stops_b) in shards:
            for key, a0, a1, b0, b1 in zip(keys, starts_a, stops_a, starts_b, stops_b, strict=True):
                yield {"__key__": key, "__url__": url, a: view[a0:a1], b: view[b0:b1]}

    def one() -> Iterator[dict[str, object]]:
        for view, url, (a,), keys, (starts,), (stops,) in shards:
            for key, first, end in zip(keys, starts, stops, strict=True):
                yield {"__key__": key, "__url__": url, a: view[first:end]}

    return timed_pass(Again(two if len(shards[0][2]) == 2 else one), task)


def pread_random(task: Task) -> Result:
    """``os.pread`` of each member of a random sample."""
    places = [
        (fd, [(end - first, first) for first, end in zip(firsts, ends, strict=True)])
        for path, _, _, starts, stops in read_spans(task)
        for fd in [os.open(path, os.O_RDONLY)]
        for firsts, ends in zip(zip(*starts, strict=True), zip(*stops, strict=True), strict=True)
    ]

    def get(number: int) -> list[bytes]:
        fd, spans = places[number]
        return [os.pread(fd, size, first) for size, first in spans]

    return timed_gets(get, random_ids(task))


def scan_tarfile(task: Task) -> Result:
    """List every member of the tars with Python's ``tarfile``."""
    count = 0
    begin = time.perf_counter()
    for path in sorted(os.listdir(task.packed["tar"])):
        if path.endswith(".tar"):
            with tarfile.open(os.path.join(task.packed["tar"], path)) as tar:
                count += sum(1 for _ in tar)
    return Result(time.perf_counter() - begin, count)


CONTESTANTS: dict[str, Callable[[Task], Result]] = {
    "gnu_tar": gnu_tar,
    "copy": copy,
    "pread_members": pread_members,
    "bare_generator": bare_generator,
    "pread_random": pread_random,
    "scan_tarfile": scan_tarfile,
}
