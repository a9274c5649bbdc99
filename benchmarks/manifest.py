"""How long manifests of many shards take to load, and how much memory.

    python benchmarks/manifest.py [100000 1000000]

Also prints what starting costs: ``import shardkit`` and ``shardkit --help``, medians of 9.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa

from shardkit.format.manifest import Manifest, ShardTable, fingerprint
from shardkit.format.tar import checksum


def make(folder: str, num_shards: int) -> None:
    """Write manifest and shard table of a dataset with so many shards."""
    rng = np.random.default_rng(0)
    samples = rng.integers(2_000, 3_000, num_shards)
    sums = [rng.integers(0, 2**64, num_shards, dtype=np.uint64) for _ in range(3)]
    names = pa.chunked_array([pa.array([f"shard-{n:07d}.tar" for n in range(num_shards)])])
    table = ShardTable(names, samples, samples, samples * 100_352, *sums)
    data = table.encode()
    manifest = Manifest(
        num_samples=int(samples.sum()),
        num_shards=num_shards,
        num_bytes=int(table.num_bytes.sum()),
        fingerprint=fingerprint(table.tar_xxh3),
        shards_xxh3=checksum(data),
        members={"jpg": int(samples.sum())},
        metadata={"label": "string"},
        metadata_ext="json",
    )
    for name, content in (("shards.parquet", data), ("manifest.json", manifest.encode())):
        with open(f"{folder}/{name}", "wb") as file:
            file.write(content)


def load(folder: str) -> None:
    """Print seconds and growth of memory of one load, in a process of its own."""
    from shardkit.index.shards import PackedDataset
    from shardkit.storage.store import open_store

    store = open_store()
    before = peak_mb()
    start = time.perf_counter()
    dataset = PackedDataset.open(folder, store)
    seconds = time.perf_counter() - start
    after = peak_mb()
    print(
        f"{len(dataset.shards):>9,} shards: {seconds:.3f} s, {after - before:.0f} MB "
        f"more (peak of the process {after:.0f} MB)"
    )


def peak_mb() -> float:
    """Most memory that this process ever held (ru_maxrss would count its parent's)."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def start_up(what: str, *command: str) -> None:
    times = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    print(f"{what}: {statistics.median(times) * 1000:.0f} ms")


def main() -> None:
    if sys.argv[1:2] == ["load"]:
        load(sys.argv[2])
        return
    for num_shards in map(int, sys.argv[1:] or ["100000", "1000000"]):
        with tempfile.TemporaryDirectory() as folder:
            make(folder, num_shards)
            subprocess.run([sys.executable, __file__, "load", folder], check=True)
    start_up("python -c pass", "-c", "pass")
    start_up("import shardkit", "-c", "import shardkit")
    start_up("shardkit --help", "-m", "shardkit.cli.main", "--help")


if __name__ == "__main__":
    main()
