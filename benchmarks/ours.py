"""shardkit as a contestant."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from harness import Again, Result, Task, random_ids, timed_gets, timed_pass
from peers import SHARD_BYTES, as_list, flat


def pack(task: Task) -> Result:
    """From the index, with checksums, sidecars and the manifest."""
    from shardkit.pack import LocalExecutor, PackOptions
    from shardkit.pack import pack as shardkit_pack

    index = os.path.join(task.data, task.options.get("index", "index.parquet"))
    options = PackOptions(shard_size=SHARD_BYTES)
    start = time.perf_counter()
    shardkit_pack(index, task.out, options=options, executor=LocalExecutor(task.options["workers"]))
    return Result(time.perf_counter() - start, task.options["num_samples"])


def dataset_over(task: Task) -> Any:
    from shardkit import ShardDataset

    return ShardDataset(
        task.packed["shardkit"],
        shuffle=task.options.get("shuffle", "none"),
        decode=None,
    )


def read(task: Task) -> Result:
    return timed_pass(dataset_over(task), task)


def random(task: Task) -> Result:
    return timed_gets(dataset_over(task).__getitem__, random_ids(task))


def load_torch(task: Task) -> Result:
    from torch.utils.data import DataLoader

    batches = DataLoader(
        dataset_over(task),
        batch_size=64,
        num_workers=task.options["workers"],
        collate_fn=as_list,
    )
    return timed_pass(Again(lambda: flat(batches)), task)


def load_threads(task: Task) -> Result:
    from shardkit import DataLoader

    batches: Iterator[Any] = DataLoader(
        dataset_over(task),
        batch_size=64,
        num_workers=task.options["workers"],
        collate_fn=as_list,
        remainder="keep",
    )
    return timed_pass(Again(lambda: flat(batches)), task)


CONTESTANTS: dict[str, Callable[[Task], Result]] = {
    "pack": pack,
    "read": read,
    "random": random,
    "load_torch": load_torch,
    "load_threads": load_threads,
}
