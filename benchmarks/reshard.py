"""Reshard against a plain copy of the same bytes, from and to one local disk.

    python benchmarks/reshard.py [--data FOLDER] [--scale 1] [--rounds 5] [--workers N]

Packs D1 once (256 MB shards), then in alternating rounds: ``cp -r`` of the packed folder, the same
with a ``sync`` at its end, and ``shardkit reshard`` in a random order by either way. Before each
the disk has nothing left to write, and the page cache holds the source. A reshard brings its shards
to the disk, a copy alone does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable

import data as benchmark_data
from harness import warm

from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, pack, reshard


def packed(folder: str) -> str:
    """The packed data set, made now unless it is there."""
    out = os.path.join(os.path.dirname(folder), "reshard", os.path.basename(folder))
    if not os.path.exists(os.path.join(out, "manifest.json")):
        shutil.rmtree(out, ignore_errors=True)
        pack(os.path.join(folder, "index.parquet"), out, options=PackOptions())
    return out


def size_of(folder: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=benchmark_data.DEFAULT_ROOT, help="of the data sets")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="processes (default: cores)")
    args = parser.parse_args()
    source = packed(benchmark_data.make("D1", os.path.abspath(args.data), args.scale))
    out = f"{source}-out"
    num_bytes = size_of(source)

    def copy() -> None:
        subprocess.run(["cp", "-r", source, out], check=True)

    def copy_and_sync() -> None:
        copy()
        os.sync()

    def by(way: str) -> Callable[[], None]:
        options = PackOptions(shuffle="global", seed=1)
        executor = LocalExecutor(args.workers)
        return lambda: reshard(source, out, options=options, way=way, executor=executor)

    contestants = {
        "cp -r": copy,
        "cp -r; sync": copy_and_sync,
        "reshard, ranges": by("ranges"),
        "reshard, spill": by("spill"),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(args.rounds + 1):
        for name, run in contestants.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            warm(source)
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - started)
    shutil.rmtree(out, ignore_errors=True)
    print(f"| {num_bytes / 1e9:.2f} GB | s | MB/s | x cp -r | x cp -r; sync | spread |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        ratios = []
        for base in ("cp -r", "cp -r; sync"):
            pairs = zip(taken[base], seconds, strict=True)
            ratios.append(statistics.median(b / s for b, s in pairs))
        spread = f"{min(seconds) / middle:.2f} to {max(seconds) / middle:.2f}"
        cells = [name, f"{middle:.2f}", f"{num_bytes / middle / 1e6:,.0f}"]
        print(f"| {' | '.join([*cells, *(f'{ratio:.2f}' for ratio in ratios), spread])} |")


if __name__ == "__main__":
    main()
