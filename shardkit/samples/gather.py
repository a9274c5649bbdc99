"""From places in mapped shards to sample dicts, with the work done per block and not per sample.

The columns of a block (keys, offsets, metadata) are gathered by numpy and turned into lists at
once; then one ``zip`` walks them, and the only work per sample is one slice per member and one
dict. Slices are made lazily, so that a member's bytes are allocated when its sample is asked for
and the allocator can give the same warm memory to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import getitem
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.index.shards import ShardLayout

__all__ = ["OpenShard", "samples_of"]

Sample = dict[str, Any]
Buffer = Any  # what slices to bytes: an mmap, or bytes


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A shard's bytes and where its samples lie in them.

    Attributes:
        url: of the tar, as ``__url__`` of its samples.
        layout: places of its N samples.
        buffer: the tar, sliced by the layout's offsets; whoever holds this keeps it mapped.
    """

    url: str
    layout: ShardLayout
    buffer: Buffer


def samples_of(
    shards: Mapping[int, OpenShard],
    groups: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    exts: Sequence[str],
    metadata: Sequence[str],
) -> Iterator[Sample]:
    """Yield the sample at each (group, row), in order: key, URL, members as bytes, metadata.

    Args:
        shards: by number, all that ``groups`` names.
        groups: int64 [n], shard numbers.
        rows: int64 [n], rows within them.
        exts: members to give; a sample that lacks one lacks the entry.
        metadata: columns to give.
    """
    if len(shards) == 1:
        ((_, shard),) = shards.items()
        columns, uneven = _from_one(shard, rows, exts, metadata)
    else:
        columns, uneven = _from_many(shards, groups, rows, exts, metadata)
    names = ("__key__", "__url__", *exts, *metadata)
    if not uneven:
        for values in zip(*columns, strict=False):
            yield dict(zip(names, values, strict=False))
        return
    for values in zip(*columns, strict=False):
        sample = dict(zip(names, values, strict=False))
        for ext in exts:
            if sample[ext] is None:
                del sample[ext]
        yield sample


def _from_one(
    shard: OpenShard, rows: npt.NDArray[np.int64], exts: Sequence[str], metadata: Sequence[str]
) -> tuple[list[Any], bool]:
    layout = shard.layout
    columns: list[Any] = [layout.keys[rows].tolist(), repeat(shard.url)]
    uneven = layout.uneven
    for ext in exts:
        if ext not in layout.starts:
            columns.append(repeat(None))
            uneven = True
            continue
        starts, stops = layout.starts[ext][rows].tolist(), layout.stops[ext][rows].tolist()
        if uneven:
            columns.append(map(_slice_or_none, repeat(shard.buffer), starts, stops))
        else:
            columns.append(map(shard.buffer.__getitem__, map(slice, starts, stops)))
    for name in metadata:
        values = layout.metadata.get(name)
        columns.append(repeat(None) if values is None else values[rows].tolist())
    return columns, uneven


def _from_many(
    shards: Mapping[int, OpenShard],
    groups: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    exts: Sequence[str],
    metadata: Sequence[str],
) -> tuple[list[Any], bool]:
    size = len(rows)
    by_group = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[by_group])) + 1
    keys, urls, buffers = (np.empty(size, dtype=object) for _ in range(3))
    places = {ext: np.full((2, size), -1, dtype=np.int64) for ext in exts}
    values = {name: np.empty(size, dtype=object) for name in metadata}
    uneven = False
    for piece in np.split(by_group, cuts):
        shard = shards[int(groups[piece[0]])]
        layout, wanted = shard.layout, rows[piece]
        keys[piece] = layout.keys[wanted]
        urls[piece] = shard.url
        buffers[piece] = _cell(shard.buffer)
        uneven |= layout.uneven
        for ext, place in places.items():
            if ext in layout.starts:
                place[0, piece] = layout.starts[ext][wanted]
                place[1, piece] = layout.stops[ext][wanted]
            else:
                uneven = True
        for name, column in values.items():
            if name in layout.metadata:
                column[piece] = layout.metadata[name][wanted].astype(object)
    mapped = buffers.tolist()
    columns: list[Any] = [keys.tolist(), urls.tolist()]
    for place in places.values():
        starts, stops = place[0].tolist(), place[1].tolist()
        if uneven:
            columns.append(map(_slice_or_none, mapped, starts, stops))
        else:
            columns.append(map(getitem, mapped, map(slice, starts, stops)))
    columns.extend(column.tolist() for column in values.values())
    return columns, uneven


def _cell(value: Buffer) -> npt.NDArray[np.object_]:
    """An array of no dimensions, so that numpy does not look inside a buffer it is to store."""
    cell = np.empty((), dtype=object)
    cell[()] = value
    return cell


def _slice_or_none(buffer: Buffer, start: int, stop: int) -> bytes | None:
    return None if start < 0 else buffer[start:stop]
