"""Proving an adopted tar against its sidecar, as far as it can be: by checksums, or by its headers.

Where the tar was read whole when it was adopted, every byte is proved. Where only its headers were
read, it is shown that the store calls its content the same, and that keys, places and sizes of all
members are what they were; of their data nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from shardkit.errors import CorruptError, IndexDataError, NotFoundError
from shardkit.format.adopted import layout_xxh3
from shardkit.index.adopt_tar import AdoptedTar, read_tar
from shardkit.index.shards import PackedDataset, ShardLayout, table_layout
from shardkit.pack.check import Problem

__all__ = ["check_adopted"]


def check_adopted(dataset: PackedDataset, shard: int) -> Iterator[Problem]:
    """Everything wrong with an adopted shard."""
    adopted = dataset.shards.adopted
    name, url = dataset.shards.name(shard), dataset.shard_url(shard)
    is_proved = dataset.tar_checksum(shard) is not None
    try:
        offsets = dataset.offsets(shard)
        layout = dataset.layout(shard, exts=tuple(dataset.manifest.members), metadata=())
        info = dataset.store.stat(url)
        with read_tar(dataset.store, info, "whole" if is_proved else "headers") as tar:
            pass
    except (CorruptError, NotFoundError, IndexDataError, pa.ArrowException) as error:
        yield Problem(name, None, str(error))
        return
    if adopted is None or layout_xxh3(tar.scan.table) != int(adopted.layout_xxh3[shard]):
        yield _moved(name, tar, layout)
        return
    if not np.array_equal(tar.scan.offsets, offsets):
        yield Problem(name, None, "its idx does not say where its samples start")
    if tar.tar_xxh3 == dataset.tar_checksum(shard):
        return
    found = False
    for problem in _changed(name, tar, layout):
        found = True
        yield problem
    if not found:
        text = "its headers or padding are not what was adopted, though every member is right"
        yield Problem(name, None, text)


def _moved(name: str, tar: AdoptedTar, layout: ShardLayout) -> Problem:
    """Say where the tar begins to be another than the sidecar's."""
    now = _layout(tar)
    num_common = min(len(now), len(layout))
    differs = now.keys[:num_common] != layout.keys[:num_common]
    for ext in now.starts.keys() & layout.starts.keys():
        differs |= now.starts[ext][:num_common] != layout.starts[ext][:num_common]
        differs |= now.stops[ext][:num_common] != layout.stops[ext][:num_common]
    first = int(np.argmax(differs)) if differs.any() else num_common
    key = str(layout.keys[first]) if first < len(layout) else None
    text = (
        f"it is not the tar that was adopted: it has {len(now):,} samples where there were "
        f"{len(layout):,}, others from sample {first:,} on"
    )
    return Problem(name, key, text)


def _changed(name: str, tar: AdoptedTar, layout: ShardLayout) -> Iterator[Problem]:
    now = _layout(tar)
    for ext, sums in layout.checksums.items():
        for row in np.flatnonzero(sums != now.checksums[ext]).tolist():
            text = (
                f"the data of {ext!r} at offset {layout.starts[ext][row]:,} has xxh3 "
                f"{now.checksums[ext][row]:016x}, the sidecar says {sums[row]:016x}"
            )
            yield Problem(name, str(layout.keys[row]), text)


def _layout(tar: AdoptedTar) -> ShardLayout:
    table = tar.scan.table
    exts = table.column_names[1:]
    return table_layout(table, exts, (), len(exts))
