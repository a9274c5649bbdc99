"""Samples of shards from an S3 endpoint on loopback, with nothing cached before: ours and peers.

    python benchmarks/peers.py setup                  once: the peers' own environment
    python benchmarks/storage_end_to_end.py [--root FOLDER] [--scale 0.25] [--rounds 3]

Raw bytes of D1, one process, in order, each contestant in its own format. "fetching alone" is
obstore streaming the same shards from 4 threads and keeping nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
from harness import Contestant, Result, Task, timed_pass

KEYS = ("test-key", "test-secret")


def tars(task: Task, fmt: str) -> list[str]:
    return sorted(name for name in os.listdir(task.packed[fmt]) if name.endswith(".tar"))


def fetching_alone(task: Task) -> Result:
    import obstore

    config: Any = {
        "access_key_id": KEYS[0],
        "secret_access_key": KEYS[1],
        "endpoint": task.options["url"],
        "region": "us-east-1",
    }
    client_options: Any = {"allow_http": True}
    store = obstore.store.S3Store("shardkit", config=config, client_options=client_options)

    def fetch(name: str) -> int:
        stream = obstore.get(store, name).stream(min_chunk_size=1 << 20)
        return sum(len(chunk) for chunk in stream)

    start = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        sum(pool.map(fetch, tars(task, "shardkit")))
    return Result(time.perf_counter() - start, task.options["num_samples"])


def read_shardkit(task: Task) -> Result:
    from shardkit import ShardDataset

    options = {"key": KEYS[0], "secret": KEYS[1], "endpoint_url": task.options["url"]}
    start = time.perf_counter()
    dataset = ShardDataset(
        "s3://shardkit/",
        shuffle="none",
        decode=None,
        cache_dir=task.scratch,
        storage_options={**options, "region": "us-east-1"},
    )
    return since(start, timed_pass(dataset, task))


def read_webdataset(task: Task) -> Result:
    import webdataset

    curl = f"pipe:curl -sf --aws-sigv4 aws:amz:us-east-1:s3 --user {KEYS[0]}:{KEYS[1]}"
    urls = [f"{curl} {task.options['url']}/tar/{name}" for name in tars(task, "tar")]
    start = time.perf_counter()
    return since(start, timed_pass(webdataset.WebDataset(urls, shardshuffle=False), task))


def read_mosaicml(task: Task) -> Result:
    os.environ["S3_ENDPOINT_URL"] = task.options["url"]
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = KEYS
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    start = time.perf_counter()
    dataset = StreamingDataset(
        remote="s3://mds/", local=task.scratch, shuffle=False, num_canonical_nodes=1, batch_size=1
    )
    return since(start, timed_pass(dataset, task))


def since(start: float, result: Result) -> Result:
    """Opening counts, too: it is where the first shards come from."""
    seconds = time.perf_counter() - start
    return Result(seconds, result.num_samples, result.num_bytes, result.crc_sum)


CONTESTANTS: Mapping[str, Callable[[Task], Result]] = {
    "fetching_alone": fetching_alone,
    "read_shardkit": read_shardkit,
    "read_webdataset": read_webdataset,
    "read_mosaicml": read_mosaicml,
}


def main() -> None:
    import data
    import peers
    import run

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.s3 import serve_s3

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", default=os.path.join(peers.HERE, ".data"))
    parser.add_argument("--memory", default="/dev/shm/shardkit-end-to-end")
    parser.add_argument("--venv", default=peers.DEFAULT_VENV)
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    python = os.path.join(args.venv, "bin", "python")
    bench = run.Bench(args.root, args.memory, python, args.scale, args.rounds, "")
    packed = run.packed_folders(bench, "D1")
    folder = data.folder_of("D1", args.root, args.scale)
    facts = data.read_facts(folder)
    with serve_s3(Path(packed["tar"]).parent, proxied=False, etag_hash="", fresh=False) as s3:

        def make_task(_: Contestant, check: bool) -> Task:
            scratch = run.empty(os.path.join(args.memory, f"scratch-{time.monotonic_ns()}"))
            options = {"num_samples": facts.num_samples, "url": s3.url}
            return Task(folder, packed, scratch=scratch, check=check, options=options)

        def contestant(label: str, name: str, python: str = sys.executable) -> Contestant:
            return Contestant(label, "storage_end_to_end", name, python)

        results = harness.contest(
            [
                contestant("fetching alone", "fetching_alone"),
                contestant("shardkit", "read_shardkit"),
                contestant("webdataset, pipe:curl", "read_webdataset", python),
                contestant("MosaicML", "read_mosaicml", python),
            ],
            make_task,
            rounds=args.rounds,
            expect=run.expecting(facts),
        )
    run.empty(args.memory)
    print(
        harness.table(
            f"From S3, nothing cached: {facts.num_samples:,} samples of D1",
            results,
            base="fetching alone",
            num_bytes=facts.num_bytes,
            extra=[("webdataset, pipe:curl", "x webdataset"), ("MosaicML", "x MosaicML")],
        )
    )


if __name__ == "__main__":
    main()
