"""S3 on loopback: raw clients against our store, fetch and cache, as ratios in one run.

    python benchmarks/storage_s3.py [--objects 5000] [--shards 8] [--shard-mb 128] [--rounds 3]

Contestants of a table take turns for some rounds; the best round of each counts (the machine is
shared, noise only slows). "cpu" is processor time of this process, the server's not included.
Raw clients keep nothing and check nothing; ours verifies, writes to disk and evicts nothing.

Before each round as many bytes as the table reads are written to a file and deleted. Where a
virtual machine gives free memory back to its host, the first touch of a page costs ten times what
writing to it does, whoever touches it: thus whoever writes finds pages that were touched.
``--cold`` leaves it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import s3fs
from xxhash import xxh3_64_intdigest

from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.shards import ShardFetcher
from shardkit.storage.store import open_store
from tests.s3 import KEY, SECRET, S3Endpoint, serve_s3, trusted

Contestant = Callable[[list[Request]], int]


def make(folder: Path, objects: int, object_bytes: int, shards: int, shard_bytes: int) -> None:
    (folder / "small").mkdir(parents=True)
    (folder / "big").mkdir()
    noise = os.urandom(object_bytes + objects)
    for i in range(objects):
        (folder / "small" / f"{i:05d}").write_bytes(noise[i : i + object_bytes])
    for i in range(shards):
        (folder / "big" / f"{i:02d}").write_bytes(os.urandom(shard_bytes))


def raw_obstore(s3: S3Endpoint, bucket: str):
    config = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint": s3.url,
        "region": "us-east-1",
    }
    return obstore.store.S3Store(bucket, config=config, client_options={"allow_http": True})


def key_of(request: Request) -> str:
    return request.url.rsplit("/", 1)[1]


def spread(read: Callable[[Request], int], threads: int) -> Contestant:
    def run(requests: list[Request]) -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(read, requests))

    return run


def obstore_whole(client) -> Callable[[Request], int]:
    return lambda request: len(obstore.get(client, key_of(request)).bytes())


def obstore_stream(client) -> Callable[[Request], int]:
    def read(request: Request) -> int:
        stream = obstore.get(client, key_of(request)).stream(min_chunk_size=1 << 20)
        return sum(len(chunk) for chunk in stream)

    return read


def obstore_async(client, most: int) -> Contestant:
    async def all_of(requests: list[Request]) -> int:
        room = asyncio.Semaphore(most)

        async def one(request: Request) -> int:
            async with room:
                return len(await (await obstore.get_async(client, key_of(request))).bytes_async())

        return sum(await asyncio.gather(*[one(request) for request in requests]))

    return lambda requests: asyncio.run(all_of(requests))


def _connection(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    if place.scheme == "https":
        return http.client.HTTPSConnection(place.netloc)
    return http.client.HTTPConnection(place.netloc)


def signed_http(client, s3: S3Endpoint) -> Callable[[Request], int]:
    place = threading.local()

    def read(request: Request) -> int:
        url = urlsplit(obstore.sign(client, "GET", key_of(request), timedelta(hours=1)))
        if not hasattr(place, "connection"):
            place.connection = _connection(s3.url)
        place.connection.request("GET", f"{url.path}?{url.query}")
        answer = place.connection.getresponse()
        total = 0
        while chunk := answer.read(1 << 20):
            total += len(chunk)
        return total

    return read


def s3fs_one_by_one(s3: S3Endpoint) -> Callable[[Request], int]:
    fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=s3.url, skip_instance_cache=True)
    return lambda request: len(fs.cat_file(request.url.removeprefix("s3://")))


class Place:
    """Where the cache of the round lies."""

    folder = Path()


def our_fetch(s3: S3Endpoint, place: Place, *, cached: bool) -> Contestant:
    def run(requests: list[Request]) -> int:
        store = open_store(s3.storage_options)
        with (
            Cache(str(place.folder)) as cache,
            fetch_in_order(store, requests, cache=cache if cached else None) as results,
        ):
            return sum(len(result.unwrap()) for result in results)

    return run


def our_shards(s3: S3Endpoint, place: Place) -> Contestant:
    def run(requests: list[Request]) -> int:
        store = open_store(s3.storage_options)
        total = 0
        with Cache(str(place.folder)) as cache, ShardFetcher(store, cache) as fetcher:
            fetcher.schedule(requests)
            for request in requests:
                with fetcher.open(request) as entry:
                    total += entry.size
        return total

    return run


def touch(file: Path, num_bytes: int) -> None:
    """Have the kernel's free memory hold that many bytes that were touched."""
    block = os.urandom(1 << 20)
    with file.open("wb", buffering=0) as out:
        for _ in range(num_bytes >> 20):
            out.write(block)
    file.unlink()


def race(title: str, contestants: dict[str, Contestant], requests: list[Request], args) -> None:
    if not requests:
        return
    best: dict[str, tuple[float, float]] = {}
    num_bytes = 0
    for _ in range(args.rounds):
        for name, run in contestants.items():
            args.place.folder = args.scratch / f"cache-{time.monotonic_ns()}"
            if not args.cold:
                touch(args.scratch / "touched", sum(request.num_bytes for request in requests))
            wall, cpu = time.perf_counter(), time.process_time()
            num_bytes = run(requests)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            old = best.get(name, (1e9, 1e9))
            best[name] = (min(wall, old[0]), min(cpu, old[1]))
            shutil.rmtree(args.place.folder, ignore_errors=True)
    raw = [name for name in best if not name.startswith(("shardkit", "s3fs"))]
    fastest = min(raw, key=lambda name: best[name][0])
    print(f"\n{title}: {len(requests)} objects, {num_bytes / 1e9:.2f} GB, best of {args.rounds}")
    print(
        f"{'':38} {'objects/s':>10} {'MB/s':>7} {'cpu s/GB':>9} {'x fastest':>9} {'x its cpu':>9}"
    )
    for name, (wall, cpu) in best.items():
        print(
            f"{name:38} {len(requests) / wall:10.0f} {num_bytes / wall / 1e6:7.0f} "
            f"{cpu / (num_bytes / 1e9):9.2f} {best[fastest][0] / wall:9.2f} "
            f"{cpu / best[fastest][1]:9.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--object-bytes", type=int, default=110_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--shard-mb", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="leave free memory as it is")
    parser.add_argument("--tls", action="store_true", help="the endpoint speaks https")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        args.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-s3-")))
        args.place = Place()
        data = args.scratch / "data"
        make(data, args.objects, args.object_bytes, args.shards, args.shard_mb << 20)
        if args.tls:
            stack.enter_context(trusted())
        s3 = stack.enter_context(
            serve_s3(data, proxied=False, etag_hash="", fresh=False, tls=args.tls)
        )
        small = [
            Request(f"s3://small/{i:05d}", size=args.object_bytes, version="")
            for i in range(args.objects)
        ]
        client = raw_obstore(s3, "small")
        race(
            "small objects",
            {
                "obstore.get().bytes(), 8 threads": spread(obstore_whole(client), 8),
                "obstore.get().bytes(), 32 threads": spread(obstore_whole(client), 32),
                "obstore.get_async, 32 at once": obstore_async(client, 32),
                "http.client, signed URL, 32 threads": spread(signed_http(client, s3), 32),
                "s3fs one by one, 32 threads": spread(s3fs_one_by_one(s3), 32),
                "shardkit fetch_in_order": our_fetch(s3, args.place, cached=False),
                "shardkit fetch_in_order, into cache": our_fetch(s3, args.place, cached=True),
            },
            small,
            args,
        )
        big = []
        for i in range(args.shards):
            content = (data / "big" / f"{i:02d}").read_bytes()
            checksum = xxh3_64_intdigest(content)
            big.append(Request(f"s3://big/{i:02d}", size=len(content), checksum=checksum))
        client = raw_obstore(s3, "big")
        race(
            "shards",
            {
                "obstore stream of 1 MiB, 2 threads": spread(obstore_stream(client), 2),
                "obstore stream of 1 MiB, 4 threads": spread(obstore_stream(client), 4),
                "obstore.get().bytes(), 4 threads": spread(obstore_whole(client), 4),
                "http.client, signed URL, 4 threads": spread(signed_http(client, s3), 4),
                "s3fs one by one, 4 threads": spread(s3fs_one_by_one(s3), 4),
                "shardkit ShardFetcher, into cache": our_shards(s3, args.place),
            },
            big,
            args,
        )


if __name__ == "__main__":
    main()
