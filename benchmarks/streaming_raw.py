"""StreamingDataset against raw clients, as ratios in one run.

    python benchmarks/streaming_raw.py [--objects 5000] [--rounds 3] [--rows 1000000]

Cold: objects/s from S3 on loopback, nothing decoded, against the best raw obstore client. Warm:
the same files from the cache, and local files, against ``open().read()``. Contestants take turns,
the best round of each counts. "Opened again" is the first epoch of a run over a cache that an
earlier one filled: each file is asked about. Then microseconds a sample of metadata alone.
Before each cold round memory is touched as ``storage_s3.py`` tells.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.storage_s3 import touch
from shardkit import StreamingDataset
from shardkit.index import open_index
from tests.s3 import KEY, SECRET, S3Endpoint, serve_s3


def race(
    title: str,
    contestants: dict[str, Callable[[], int]],
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> None:
    best = dict.fromkeys(contestants, 1e9)
    count = 0
    for _ in range(rounds):
        for name, run in contestants.items():
            before()
            start = time.perf_counter()
            count = run()
            best[name] = min(best[name], time.perf_counter() - start)
    raw = min(seconds for name, seconds in best.items() if "StreamingDataset" not in name)
    print(f"\n{title}: {count} objects, best of {rounds}")
    for name, seconds in best.items():
        print(f"{name:44} {count / seconds:9.0f} objects/s {raw / seconds:6.2f} x best raw")


def raw_s3(s3: S3Endpoint, names: list[str], threads: int) -> Callable[[], int]:
    config = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint": s3.url,
        "region": "us-east-1",
    }
    client = obstore.store.S3Store("small", config=config, client_options={"allow_http": True})

    def run() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(1 for _ in pool.map(lambda name: obstore.get(client, name).bytes(), names))

    return run


def count_of(dataset: StreamingDataset) -> int:
    return sum(1 for _ in dataset)


def read_all(paths: list[str]) -> int:
    for path in paths:
        with open(path, "rb") as file:
            file.read()
    return len(paths)


def metadata_alone(folder: Path, num_rows: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"id": np.arange(num_rows), "a": rng.random(num_rows), "b": ["x"] * num_rows})
    path = str(folder / "rows.parquet")
    pq.write_table(table, path, row_group_size=65_536)
    for shuffle in ("none", "shard", "buffer", "global"):
        index = open_index(path, files=[], scratch=str(folder / "s"))
        dataset = StreamingDataset(index, str(folder / "m"), shuffle=shuffle)
        best = 1e9
        for _ in range(rounds):
            start = time.perf_counter()
            assert count_of(dataset) == num_rows
            best = min(best, time.perf_counter() - start)
        print(f"metadata alone, {shuffle:8} {best / num_rows * 1e6:6.2f} us a sample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--object-bytes", type=int, default=110_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-streaming-")))
        files = folder / "data" / "small"
        files.mkdir(parents=True)
        noise = os.urandom(args.object_bytes + args.objects)
        names = [f"{i:05d}.jpg" for i in range(args.objects)]
        for i, name in enumerate(names):
            (files / name).write_bytes(noise[i : i + args.object_bytes])
        s3 = stack.enter_context(
            serve_s3(folder / "data", proxied=False, etag_hash="", fresh=False)
        )
        metadata_alone(folder, args.rows, args.rounds)

        def streamed(root: str, cache: str) -> StreamingDataset:
            table = pa.table(
                {"id": list(range(len(names))), "url": [f"{root}/{name}" for name in names]}
            )
            return StreamingDataset(
                table,
                str(folder / cache),
                decode=None,
                shuffle="none",
                storage_options=s3.storage_options,
            )

        def make_ready() -> None:
            shutil.rmtree(folder / "cold", ignore_errors=True)
            touch(folder / "touched", args.objects * args.object_bytes)

        def cold() -> int:
            return count_of(streamed("s3://small", "cold"))

        raw = {f"obstore, {n} threads": raw_s3(s3, names, n) for n in (8, 32)}
        race("cold", {**raw, "StreamingDataset, into cache": cold}, args.rounds, make_ready)
        far, near = streamed("s3://small", "warm"), streamed(str(files), "none")
        count_of(far)
        paths = [str(files / name) for name in names]
        race(
            "warm",
            {
                "open().read()": lambda: read_all(paths),
                "StreamingDataset, cached from S3": lambda: count_of(far),
                "StreamingDataset, opened again": lambda: count_of(streamed("s3://small", "warm")),
                "StreamingDataset, local files": lambda: count_of(near),
            },
            args.rounds,
        )


if __name__ == "__main__":
    main()
