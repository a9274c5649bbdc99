"""What 10^6 shards, 10^9 samples and an index of 10^9 rows cost.

    python benchmarks/scale.py shards [NUM_SHARDS]     # default 1,000,000, of 1,000 samples each
    python benchmarks/scale.py plan [NUM_ROWS]         # default 100,000,000

``shards`` makes a data set of that many shards that really can be read: one shard of 1,000 samples
under as many names (``d000`` to ``d999`` are links to the folder itself, so ``d123/d456/x.tar`` is
x.tar). Lines say seconds, and how much more memory than before was ever held since the start of
their process.
``plan`` makes an index as Parquet files of 10^7 rows (keys and sizes unlike each other, one file's
path for all) and plans a pack of it, once with sizes in the index and once with sampled ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from manifest import peak_mb

from shardkit.executors import LocalExecutor
from shardkit.format.manifest import AdoptedShards, ShardTable
from shardkit.format.tar import checksum

PER_SHARD = 1_000
ROWS_PER_FILE = 10_000_000
ROWS_PER_GROUP = 1_000_000


def make_shards(folder: str, num_shards: int) -> None:
    """One real shard under many names; ``packed`` and ``adopted`` say so as data sets."""
    from shardkit.index.shards import PackedDataset
    from shardkit.pack import PackOptions, pack
    from shardkit.storage.store import open_store

    rng = np.random.default_rng(0)
    rows = pa.table({"id": np.arange(PER_SHARD), "b": [rng.bytes(100) for _ in range(PER_SHARD)]})
    out = f"{folder}/packed"
    pack(
        rows,
        out,
        files=["b=bin"],
        options=PackOptions(samples_per_shard=PER_SHARD),
        executor=LocalExecutor(1),
    )
    for number in range(1_000):
        os.symlink(".", f"{out}/d{number:03d}")
    dataset = PackedDataset.open(out, open_store())
    one, manifest = dataset.shards, dataset.manifest
    numbers = range(num_shards)
    names = pa.chunked_array(
        [pa.array([f"d{n // 1_000 % 1_000:03d}/d{n % 1_000:03d}/{one.name(0)}" for n in numbers])]
    )

    def many(column: np.ndarray) -> np.ndarray:
        return np.full(num_shards, column[0])

    sums = [rng.integers(0, 2**63, num_shards).astype(np.uint64) for _ in range(2)]
    table = ShardTable(
        names,
        many(one.rows),
        many(one.samples),
        many(one.num_bytes),
        many(one.tar_xxh3),
        many(one.idx_xxh3),
        many(one.sidecar_xxh3),
    )
    totals = {
        "num_samples": num_shards * PER_SHARD,
        "num_shards": num_shards,
        "num_bytes": int(table.num_bytes.sum()),
        "members": {ext: count * num_shards for ext, count in manifest.members.items()},
    }
    data = table.encode()
    packed = replace(manifest, **totals, fingerprint=table.fingerprint, shards_xxh3=checksum(data))
    write(out, data, packed.encode())
    versions = pa.chunked_array([pa.array([f'"{x:016x}{x:016x}"' for x in sums[0].tolist()])])
    adopted = AdoptedShards(sums[1], versions, np.zeros(num_shards, dtype=bool))
    os.mkdir(f"{folder}/adopted")
    foreign = replace(table, idx_xxh3=sums[0], sidecar_xxh3=sums[1], adopted=adopted)
    data = foreign.encode()
    write(
        f"{folder}/adopted",
        data,
        replace(packed, fingerprint=foreign.fingerprint, shards_xxh3=checksum(data)).encode(),
    )


def write(folder: str, shards: bytes, manifest: bytes) -> None:
    for name, data in (("shards.parquet", shards), ("manifest.json", manifest)):
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)


class Clock:
    """Prints what each step took, and how much more memory there is than at the start."""

    def __init__(self) -> None:
        self.before = peak_mb()

    def __call__(self, what: str, step: Callable[[], object]) -> object:
        start = time.perf_counter()
        found = step()
        seconds = time.perf_counter() - start
        print(f"{what:<58}{seconds:>10.3f} s{peak_mb() - self.before:>8.0f} MB", flush=True)
        return found


def load(folder: str) -> None:
    from shardkit.index.shards import PackedDataset
    from shardkit.storage.store import open_store

    store = open_store()
    PackedDataset.open(f"{folder}/warm", store)
    clock = Clock()
    clock("manifest and shard table", lambda: PackedDataset.open(f"{folder}/packed", store))


def load_adopted(folder: str) -> None:
    from shardkit.index.shards import PackedDataset
    from shardkit.storage.store import open_store

    store = open_store()
    PackedDataset.open(f"{folder}/warm", store)
    clock = Clock()
    clock("the same of adopted tars", lambda: PackedDataset.open(f"{folder}/adopted", store))


def index(folder: str) -> None:
    from shardkit.index import open_index

    open_index(f"{folder}/warm").take(0, np.arange(3))
    clock = Clock()
    opened = clock("open_index (to pack or reshard it)", lambda: open_index(f"{folder}/packed"))
    num_shards = opened.num_groups
    clock("  3 rows of its middle", lambda: opened.take(num_shards // 2, np.arange(3)))


def dataset(folder: str, shuffle: str) -> None:
    from shardkit import ShardDataset

    options = {"shuffle": shuffle, "decode": None, "cache_dir": f"{folder}/cache"}
    list(islice(ShardDataset(f"{folder}/warm", **options), 2))
    clock = Clock()
    made = clock(
        f"ShardDataset(shuffle={shuffle!r})", lambda: ShardDataset(f"{folder}/packed", **options)
    )
    middle = made.num_samples // 2
    clock("  a sample by number", lambda: made[middle])
    samples = iter(made)
    clock("  the first sample of an epoch", lambda: next(samples))
    samples.close()
    state = made.state_dict() | {"position": middle + 17}
    made.load_state_dict(state)
    samples = iter(made)
    clock("  the first sample of a state in the middle", lambda: next(samples))
    samples.close()
    clock("  an order, set up", lambda: made.order(1))
    order = made.order(1)
    clock("  256 ids in its middle (seek)", lambda: order.at(np.arange(middle, middle + 256)))


def make_index(folder: str, num_rows: int) -> None:
    """Files of 10^7 rows; keys count up (delta-encoded), one path (dictionary), random sizes."""
    path = f"{folder}/a.bin"
    with open(path, "wb") as file:
        file.write(bytes(100_000))
    for first in range(0, num_rows, ROWS_PER_FILE):
        schema = pa.schema([("id", pa.int64()), ("url", pa.string()), ("size.url", pa.int64())])
        name = f"{folder}/{first // ROWS_PER_FILE:05d}.parquet"
        with pq.ParquetWriter(
            name,
            schema,
            use_dictionary=["url"],
            column_encoding={"id": "DELTA_BINARY_PACKED", "size.url": "DELTA_BINARY_PACKED"},
        ) as writer:
            for start in range(first, min(first + ROWS_PER_FILE, num_rows), ROWS_PER_GROUP):
                count = min(ROWS_PER_GROUP, num_rows - start)
                sizes = np.random.default_rng(start).integers(50_000, 150_000, count)
                urls = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [path])
                columns = [pa.array(np.arange(start, start + count)), urls.cast(pa.string())]
                writer.write_table(pa.Table.from_arrays([*columns, pa.array(sizes)], schema=schema))


def plan(folder: str) -> None:
    from shardkit.index import open_index
    from shardkit.pack.plan import PackOptions, make_plan
    from shardkit.storage.store import open_store

    source, store = f"{folder}/*.parquet", open_store()
    clock = Clock()
    opened = clock("open_index", lambda: open_index(source, scratch=f"{folder}/scratch"))
    sampled = clock(
        "plan, sizes sampled",
        lambda: make_plan(opened, PackOptions(shuffle="global"), store),
    )
    print(f"  {sampled.num_shards:,} shards of {sampled.rows_per_shard:,} rows")
    clock("  written down", sampled.encode)
    clock("keys compared", opened.check_keys)


def plan_exact(folder: str) -> None:
    from shardkit.index import open_index
    from shardkit.pack.plan import PackOptions, make_plan
    from shardkit.storage.store import open_store

    source, store = f"{folder}/*.parquet", open_store()
    opened = open_index(source, scratch=f"{folder}/scratch")
    clock = Clock()
    exact = clock("plan, sizes from the index", lambda: make_plan(opened, PackOptions(), store))
    print(f"  {exact.num_shards:,} shards")


STEPS = {
    "load": load,
    "load-adopted": load_adopted,
    "index": index,
    "dataset": dataset,
    "plan": plan,
    "plan-exact": plan_exact,
}


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, __file__, "step", *arguments], check=True)


def main() -> None:
    if sys.argv[1:2] == ["step"]:
        STEPS[sys.argv[2]](*sys.argv[3:])
        return
    what = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        if what == "shards":
            num_shards = int((sys.argv[2:] or ["1000000"])[0])
            make_shards(folder, num_shards)
            os.makedirs(f"{folder}/small")
            make_shards(f"{folder}/small", 2)
            os.rename(f"{folder}/small/packed", f"{folder}/warm")
            print(f"{num_shards:,} shards, {num_shards * PER_SHARD:,} samples")
            for step in ("load", "load-adopted", "index"):
                run(step, folder)
            for shuffle in ("none", "shard", "buffer", "global"):
                run("dataset", folder, shuffle)
        else:
            num_rows = int((sys.argv[2:] or ["100000000"])[0])
            start = time.perf_counter()
            make_index(folder, num_rows)
            files = [entry for entry in os.scandir(folder) if entry.name.endswith(".parquet")]
            size = sum(entry.stat().st_size for entry in files) / 1e6
            took = time.perf_counter() - start
            print(f"{num_rows:,} rows, {len(files)} files, {size:,.0f} MB (made in {took:.0f} s)")
            run("plan", folder)
            if num_rows <= 100_000_000:  # every row is looked at, one after another
                run("plan-exact", folder)


if __name__ == "__main__":
    main()
