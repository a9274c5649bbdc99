"""The peers, from PyPI: webdataset, wids, MosaicML Streaming, LitData; each as its docs say.

    python benchmarks/peers.py setup [--venv FOLDER]     makes the environment they run in

They live in an environment of their own because MosaicML Streaming pins versions of numpy
and s3fs that shardkit has no use for.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from typing import Any

from harness import Again, Result, Task, random_ids, source_rows, timed_gets, timed_pass

HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT_VENV = os.path.join(HERE, ".data", "peers-venv")
PACKAGES = ["mosaicml-streaming", "litdata", "webdataset", "wids", "torch"]
SHARD_BYTES = 64_000_000  # for all contestants alike


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def loaded(row: tuple[str, dict[str, str]]) -> dict[str, Any]:
    key, paths = row
    return {"__key__": key} | {ext: read(path) for ext, path in paths.items()}


# Packing: from a list of (key, paths) that is in memory before the clock starts.


def pack_webdataset(task: Task) -> Result:
    import webdataset

    rows = source_rows(task.data)
    pattern = os.path.join(task.out, "shard-%06d.tar")
    start = time.perf_counter()
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, maxcount=10**9, verbose=0) as out:
        for row in rows:
            out.write(loaded(row))
    return Result(time.perf_counter() - start, len(rows))


def pack_mosaicml(task: Task) -> Result:
    from streaming import MDSWriter

    rows = source_rows(task.data)
    columns = {"__key__": "str"} | dict.fromkeys(rows[0][1], "bytes")
    start = time.perf_counter()
    with MDSWriter(out=task.out, columns=columns, size_limit=SHARD_BYTES, exist_ok=True) as out:
        for row in rows:
            out.write(loaded(row))
    return Result(time.perf_counter() - start, len(rows))


def pack_litdata(task: Task) -> Result:
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = os.path.join(task.scratch, "cache")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = os.path.join(task.scratch, "data")
    import litdata

    rows = source_rows(task.data)
    start = time.perf_counter()
    litdata.optimize(
        fn=loaded,
        inputs=rows,
        output_dir=task.out,
        chunk_bytes=SHARD_BYTES,
        num_workers=task.options.get("workers", 1),
        reorder_files=False,
        verbose=False,
    )
    return Result(time.perf_counter() - start, len(rows))


# Reading: warm local shards, one process, dicts of bytes.


def tars(task: Task) -> list[str]:
    folder = task.packed["tar"]
    return [
        os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".tar")
    ]


def webdataset_over(task: Task) -> Any:
    import webdataset

    return webdataset.WebDataset(tars(task), shardshuffle=1000 if task.shuffled else False, seed=0)


def mosaicml_over(task: Task, **options: Any) -> Any:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return StreamingDataset(
        local=task.packed["mds"],
        shuffle=task.shuffled,
        shuffle_algo="py1s",
        num_canonical_nodes=1,
        batch_size=options.get("batch_size", 1),
    )


def litdata_over(task: Task) -> Any:
    import litdata

    return litdata.StreamingDataset(
        task.packed["litdata"],
        shuffle=task.shuffled,
        transform=as_bytes,
    )


def wids_over(task: Task) -> Any:
    import wids

    # lru_size: the default keeps 10 shards open, and re-scans a tar that it closed.
    return wids.ShardListDataset(
        os.path.join(task.packed["tar"], "wids.json"),
        cache_dir=os.path.join(task.scratch, "wids"),
        transformations=[],
        keep=True,
        lru_size=200,
    )


def write_wids_index(folder: str, counts: dict[str, int]) -> None:
    shards = [{"url": os.path.join(folder, n), "nsamples": c} for n, c in sorted(counts.items())]
    with open(os.path.join(folder, "wids.json"), "w", encoding="ascii") as file:
        json.dump({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}, file)


def as_bytes(sample: dict[str, Any]) -> dict[str, Any]:
    """What the others give: wids gives BytesIO, LitData views of a memory map."""
    for name, value in sample.items():
        if isinstance(value, memoryview):
            sample[name] = bytes(value)
        elif isinstance(value, io.BytesIO):
            sample[name] = value.getvalue()
    return sample


def read_webdataset(task: Task) -> Result:
    return timed_pass(webdataset_over(task), task)


def read_mosaicml(task: Task) -> Result:
    return timed_pass(mosaicml_over(task), task)


def read_litdata(task: Task) -> Result:
    return timed_pass(litdata_over(task), task)


def read_wids(task: Task) -> Result:
    dataset = wids_over(task)
    samples = Again(lambda: (as_bytes(dataset[i]) for i in range(len(dataset))))
    return timed_pass(samples, task)


# Random access


def random_wids(task: Task) -> Result:
    dataset = wids_over(task)
    return timed_gets(lambda number: as_bytes(dataset[number]), random_ids(task))


def random_mosaicml(task: Task) -> Result:
    return timed_gets(mosaicml_over(task).__getitem__, random_ids(task))


def random_litdata(task: Task) -> Result:
    return timed_gets(litdata_over(task).__getitem__, random_ids(task, 500))


# Through torch's DataLoader


def as_list(samples: list[Any]) -> list[Any]:
    return samples


def flat(batches: Any) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch


def load(task: Task, dataset: Any, loader: Any = None) -> Result:
    from torch.utils.data import DataLoader

    batches = (loader or DataLoader)(
        dataset,
        batch_size=64,
        num_workers=task.options.get("workers", 2),
        collate_fn=as_list,
    )
    return timed_pass(Again(lambda: flat(batches)), task)


def load_webdataset(task: Task) -> Result:
    return load(task, webdataset_over(task))


def load_mosaicml(task: Task) -> Result:
    return load(task, mosaicml_over(task, batch_size=64))


def load_litdata(task: Task) -> Result:
    import litdata

    return load(task, litdata_over(task), litdata.StreamingDataLoader)


CONTESTANTS: dict[str, Callable[[Task], Result]] = {
    name: value
    for name, value in list(globals().items())
    if name.startswith(("pack_", "read_", "random_", "load_")) and name != "random_ids"
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["setup"])
    parser.add_argument("--venv", default=DEFAULT_VENV)
    args = parser.parse_args()
    venv.create(args.venv, with_pip=True)
    python = os.path.join(args.venv, "bin", "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    print(f"the peers are in {args.venv}", file=sys.stderr)


if __name__ == "__main__":
    main()
