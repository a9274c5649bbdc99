"""What the cache costs and what its policies keep.

    python benchmarks/storage_cache.py [--processes 8] [--hits 20000]

Hits: processor time of one hit, opened, mapped and closed (as shards are) or read (as small objects
are), with all processes hitting at once. Policies: hit rate over 5 shuffled epochs of a data set
twice the cache, 2 of 200 shards pinned at a time, through ``ShardFetcher`` as datasets use it;
"best possible" is Belady's rule with all of the future known.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request
from shardkit.storage.shards import ShardFetcher
from shardkit.storage.store import open_store
from tests.s3 import serve_http

NUM_OBJECTS = 100
OBJECT_BYTES = 100_000


def hit(folder: str, hits: int, barrier, results) -> None:
    with Cache(folder, "1gb") as cache:
        dice = random.Random(0)
        keys = [f"k{dice.randrange(NUM_OBJECTS)}" for _ in range(hits)]
        cache.get(keys[0], bytes)
        barrier.wait()
        start = time.process_time()
        for key in keys:
            with cache.open(key, bytes) as entry:
                _ = entry.data
        opened = time.process_time() - start
        start = time.process_time()
        for key in keys:
            cache.get(key, bytes)
        results.put((opened / hits * 1e6, (time.process_time() - start) / hits * 1e6))


def measure_hits(args) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as folder:
        with Cache(folder, "1gb") as cache:
            for i in range(NUM_OBJECTS):
                cache.get(f"k{i}", lambda: bytes(OBJECT_BYTES))
        for processes in (1, args.processes):
            context = multiprocessing.get_context("spawn")
            barrier, results = context.Barrier(processes), context.Queue()
            children = [
                context.Process(target=hit, args=(folder, args.hits, barrier, results))
                for _ in range(processes)
            ]
            for child in children:
                child.start()
            found = [results.get() for _ in children]
            for child in children:
                child.join()
            opened, read = (statistics.median(values) for values in zip(*found, strict=True))
            print(
                f"{processes} processes: a hit costs {opened:.1f} us opened and mapped, "
                f"{read:.1f} us read ({OBJECT_BYTES:,} bytes)"
            )


def orders(num_shards: int, epochs: int) -> list[list[int]]:
    return [random.Random(epoch).sample(range(num_shards), num_shards) for epoch in range(epochs)]


def requests(urls: list[str], size: int, epochs: list[list[int]]) -> list[Request]:
    flat = [(epoch, shard) for epoch, order in enumerate(epochs) for shard in order]
    place = [{shard: i for i, shard in enumerate(order)} for order in epochs]
    made = []
    for at, (epoch, shard) in enumerate(flat):
        later = None
        if epoch + 1 < len(epochs):
            later = (epoch + 1) * len(urls) + place[epoch + 1][shard] - at
        made.append(Request(urls[shard], size=size, version="", next_use=later))
    return made


def best_possible(epochs: list[list[int]], room: int) -> float:
    flat = [shard for order in epochs for shard in order]
    following: list[float] = [float("inf")] * len(flat)
    seen: dict[int, int] = {}
    for at in reversed(range(len(flat))):
        following[at] = seen.get(flat[at], float("inf"))
        seen[flat[at]] = at
    kept: dict[int, float] = {}
    hits = 0
    for at, shard in enumerate(flat):
        hits += shard in kept
        kept[shard] = following[at]
        if len(kept) > room:
            del kept[max(kept, key=lambda k: kept[k])]
    return hits / len(flat)


def measure_policies(num_shards: int = 200, size: int = 20_000, num_epochs: int = 5) -> None:
    epochs = orders(num_shards, num_epochs)
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        for i in range(num_shards):
            (data / f"{i:03d}").write_bytes(bytes([i]) * size)
        with serve_http(data, proxied=False) as http:
            urls = [f"{http.url}/{i:03d}" for i in range(num_shards)]
            print(f"\nhit rate over {num_epochs} shuffled epochs, the cache holds half of the data")
            for policy in ("lru", "next-use"):
                folder = f"{scratch}/{policy}"
                with Cache(folder, num_shards * size // 2, policy=policy) as cache:
                    rate = run_policy(cache, requests(urls, size, epochs), size)
                print(f"  {policy:14} {rate:.3f}")
        print(f"  {'best possible':14} {best_possible(epochs, num_shards // 2):.3f}")


def run_policy(cache: Cache, asked: list[Request], size: int) -> float:
    held: deque = deque()
    with ShardFetcher(open_store(), cache, lookahead_bytes=2 * size, num_threads=1) as fetcher:
        fetcher.schedule(asked)
        for request in asked:
            held.append(fetcher.open(request))
            if len(held) > 2:
                held.popleft().close()
        for entry in held:
            entry.close()
    return cache.stats.hits / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--hits", type=int, default=20_000)
    args = parser.parse_args()
    measure_hits(args)
    measure_policies()


if __name__ == "__main__":
    main()
