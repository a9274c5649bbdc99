"""What each policy of the cache keeps, through ``ShardDataset``.

    python -m benchmarks.storage_policies [--shards 40] [--epochs 5] [--shuffle shard]

A data set twice the cache, from a web server, in shuffled epochs; the hit rate is the share of
shards that an epoch did not have to fetch. No policy can reach more than 0.4.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from shardkit import ShardDataset
from shardkit.pack import PackOptions, pack
from shardkit.storage.cache import Cache
from shardkit.storage.policies import POLICIES
from tests.s3 import S3Endpoint, serve_http

SAMPLES = 20
SAMPLE_BYTES = 5_000


def make(folder: Path, shards: int) -> None:
    source = folder / "source"
    source.mkdir()
    for number in range(shards * SAMPLES):
        (source / f"{number:06d}.bin").write_bytes(os.urandom(SAMPLE_BYTES))
    pack(str(source), str(folder / "data"), options=PackOptions(samples_per_shard=SAMPLES))


def hit_rate(server: S3Endpoint, folder: str, policy: str, args: argparse.Namespace) -> float:
    dataset = ShardDataset(f"{server.url}/", shuffle=args.shuffle, decode=None, buffer_size=SAMPLES)
    num_bytes = sum(dataset.stream.source.dataset.num_bytes(n) for n in range(args.shards))
    with Cache(folder, num_bytes // 2, policy=policy) as cache:
        dataset.stream.source.cache = cache
        for _ in range(args.epochs):
            for _sample in dataset:
                pass
        fetched = server.count("GET", "*.tar")
    return 1 - fetched / (args.epochs * args.shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--shuffle", default="shard")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-policies-") as scratch:
        make(Path(scratch), args.shards)
        for policy in sorted(POLICIES):
            with serve_http(Path(scratch) / "data") as http:
                print(f"{policy:10} {hit_rate(http, f'{scratch}/{policy}', policy, args):.3f}")


if __name__ == "__main__":
    main()
