"""What Ray costs over local worker processes: the same pack, on the same cores, in turn.

    python benchmarks/ray_overhead.py [--data FOLDER] [--rounds 5] [--workers 2]

``--data`` is a data set of data.py (D1 by default, at a scale that gives ``--gb``); shards are of
256 MB. Ray is started, and its workers have packed once, before the clock runs: a cluster is there
when a pack of hours is sent to it. Local workers are started within the clock, as they always are.
Both packs read a warm page cache and write to the same disk; what was written before is deleted and
``sync`` has returned before each. A ratio is taken within a round; its median is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import ray

from shardkit.pack import LocalExecutor, PackOptions, RayExecutor, pack


def first_rows(data: Path, gigabytes: float, folder: Path) -> str:
    """An index of the first rows of the data set, as many as make ``gigabytes``."""
    table = pq.read_table(data / "index.parquet")
    facts = json.loads((data / "facts.json").read_text())
    per_sample = facts["num_bytes"] / facts["num_samples"]
    path = folder / "index.parquet"
    pq.write_table(table.slice(0, int(gigabytes * 1e9 / per_sample)), path)
    return str(path)


def timed(index: str, out: Path, executor: LocalExecutor | RayExecutor) -> tuple[float, int]:
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    began = time.perf_counter()
    summary = pack(index, str(out), executor=executor, options=PackOptions())
    return time.perf_counter() - began, summary.num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / ".data/D1"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    ray.init(
        num_cpus=args.workers,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
    )
    with tempfile.TemporaryDirectory(dir=args.data.parent) as folder:
        index = first_rows(args.data.resolve(), args.gb, Path(folder))
        executors = {"local": LocalExecutor(args.workers), "ray": RayExecutor()}
        times: dict[str, list[float]] = {name: [] for name in executors}
        num_bytes = 0
        for number in range(args.rounds + 1):  # round 0 fills caches and starts workers
            for name, executor in executors.items():
                seconds, num_bytes = timed(index, Path(folder) / "out", executor)
                if number:
                    times[name].append(seconds)
    ray.shutdown()
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:5}  {median:6.2f} s  {num_bytes / median / 1e6:6,.0f} MB/s")
    ratios = [theirs / ours for ours, theirs in zip(times["local"], times["ray"], strict=True)]
    print(f"ray / local: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(
        f"{args.workers} workers, {num_bytes / 1e9:.2f} GB in 256 MB shards, {args.rounds} rounds"
    )


if __name__ == "__main__":
    main()
