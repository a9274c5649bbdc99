"""Proving one shard: its bytes against its headers, its ``.idx``, its sidecar and the shard table.

Pure over buffers: the callers bring the bytes. Every sample is checked on its own, from where the
``.idx`` or sidecar says that it starts, so that one broken header does not hide the samples after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.errors import CorruptError
from shardkit.format.keys import split_name, tar_name
from shardkit.format.sidecar import ShardRecord
from shardkit.format.tar import BLOCK, END_OF_TAR, checksum, member_header, padded, walk_members
from shardkit.index.shards import ShardLayout

__all__ = ["Problem", "check_lone_tar", "check_shard"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where: in a sample of a shard, in a shard, or in all of it."""

    shard: str | None
    key: str | None
    text: str

    def __str__(self) -> str:
        where = [self.shard, None if self.key is None else f"key {self.key!r}", self.text]
        return ": ".join(part for part in where if part is not None)


def check_shard(
    tar: memoryview,
    record: ShardRecord,
    offsets: npt.NDArray[np.int64],
    layout: ShardLayout,
) -> Iterator[Problem]:
    """Everything wrong with a shard whose ``.idx`` and sidecar are themselves intact.

    Args:
        tar: the whole tar.
        record: the shard table's row.
        offsets: [N+1] of the ``.idx``.
        layout: of the sidecar, all members included.
    """
    name = record.name
    if not record.samples == len(layout) == len(offsets) - 1:
        text = (
            f"the shard table counts {record.samples} samples, the sidecar {len(layout)}, the idx "
            f"{len(offsets) - 1}"
        )
        yield Problem(name, None, text)
        return
    right = len(tar) == record.num_bytes and checksum(tar) == record.tar_xxh3
    if right and is_sound(tar, offsets, layout):
        return
    if len(tar) != record.num_bytes:
        yield Problem(name, None, f"it has {len(tar):,} bytes instead of {record.num_bytes:,}")
    if bytes(tar[int(offsets[-1]) :]) != END_OF_TAR:
        yield Problem(name, None, "it does not end with the end-of-tar blocks where it should")
    if offsets[0] != 0:
        yield Problem(name, None, f"its first sample starts at {offsets[0]}, not at 0")
    found = False
    for problem in _check_samples(tar, name, offsets, layout):
        found = True
        yield problem
    if not found and len(tar) == record.num_bytes:
        text = (
            "its headers or padding are not what was packed, though every member is right"
            if not right
            else "its idx or sidecar don't describe it, though every member is right"
        )
        yield Problem(name, None, text)


def is_sound(tar: memoryview, offsets: npt.NDArray[np.int64], layout: ShardLayout) -> bool:
    """Whether a tar is exactly the headers and data that ``.idx`` and sidecar describe.

    Says only yes or no, so that it costs little more than the checksums themselves: the members
    in the order of the tar must leave no gap, and every header must be the one that the dialect
    makes of name, size and checksum.
    """
    if not len(layout):
        return offsets.tolist() == [0] and bytes(tar) == END_OF_TAR
    exts = list(layout.starts)
    keys = layout.keys.tolist()
    rows, starts, stops, sums, kinds = _members_in_order(layout)
    ends = starts + (stops - starts + BLOCK - 1) // BLOCK * BLOCK
    if not np.array_equal(starts - BLOCK, np.concatenate(([0], ends))[:-1]):
        return False
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    if not np.array_equal(rows[firsts], np.arange(len(keys))):
        return False
    if not np.array_equal(offsets, np.append(starts[firsts] - BLOCK, ends[-1:])):
        return False
    if bytes(tar[int(offsets[-1]) :]) != END_OF_TAR:
        return False
    columns = (column.tolist() for column in (rows, starts, stops, ends, sums, kinds))
    for row, start, stop, end, digest, kind in zip(*columns, strict=True):
        header = member_header(tar_name(keys[row], exts[kind]), stop - start, digest)
        if bytes(tar[start - BLOCK : start]) != header or bytes(tar[stop:end]).strip(b"\0"):
            return False
        if checksum(tar[start:stop]) != digest:
            return False
    return True


def _members_in_order(layout: ShardLayout) -> tuple[npt.NDArray[Any], ...]:
    """All members by where they lie: sample, start, stop, checksum, number of the ext."""
    parts = []
    for number, (ext, all_starts) in enumerate(layout.starts.items()):
        rows = np.flatnonzero(all_starts >= 0)
        columns = (layout.stops[ext], layout.checksums[ext])
        parts.append(
            (rows, all_starts[rows], *(c[rows] for c in columns), np.full(len(rows), number))
        )
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[1], kind="stable")
    return tuple(column[order] for column in joined)


def check_lone_tar(tar: memoryview, name: str) -> tuple[int, list[Problem]]:
    """Samples seen and what is wrong with a tar that has nothing but its headers' checksums."""
    problems: list[Problem] = []
    num_samples = num_members = num_unmarked = 0
    end, last_key = 0, None
    try:
        for member in walk_members(tar):
            num_members += 1
            end = member.start + padded(member.size)
            if member.checksum is None:
                num_unmarked += 1
            key, ext = split_name(member.name)
            num_samples += key != last_key
            last_key = key
            stop = member.start + member.size
            if member.checksum not in (None, checksum(tar[member.start : stop])):
                problems.append(Problem(name, key, f"the data of {ext!r} fails its checksum"))
            if any(tar[stop:end]):
                problems.append(Problem(name, key, f"the padding after {ext!r} is not zeros"))
    except CorruptError as error:
        problems.append(Problem(name, None, str(error)))
    else:
        if bytes(tar[end : end + len(END_OF_TAR)]) != END_OF_TAR:
            text = f"no end-of-tar after its last member (at {end:,}): it was cut there"
            problems.append(Problem(name, None, text))
    if num_unmarked:
        text = (
            f"{num_unmarked} of {num_members} members carry no checksum: shardkit did not write "
            "them, and without sidecar and manifest nothing can be proved"
        )
        problems.append(Problem(name, None, text))
    return num_samples, problems


def _check_samples(
    tar: memoryview, name: str, offsets: npt.NDArray[np.int64], layout: ShardLayout
) -> Iterator[Problem]:
    bounds, keys = offsets.tolist(), layout.keys.tolist()
    places = {
        ext: (
            layout.starts[ext].tolist(),
            layout.stops[ext].tolist(),
            layout.checksums[ext].tolist(),
        )
        for ext in layout.starts
    }
    for row, key in enumerate(keys):
        expected = {
            ext: (starts[row], stops[row], sums[row])
            for ext, (starts, stops, sums) in places.items()
            if starts[row] >= 0
        }
        for text in _check_sample(tar, key, bounds[row], bounds[row + 1], expected):
            yield Problem(name, key, text)


def _check_sample(
    tar: memoryview,
    key: str,
    start: int,
    stop: int,
    expected: Mapping[str, tuple[int, int, int]],
) -> Iterator[str]:
    seen: set[str] = set()
    try:
        for member in walk_members(tar, start, min(stop, len(tar))):
            found_key, ext = split_name(member.name)
            place = expected.get(ext)
            if found_key != key or place is None or ext in seen:
                yield f"the tar has a member {member.name!r} that the sidecar does not know"
                continue
            seen.add(ext)
            stop_of_data = member.start + member.size
            if (member.start, stop_of_data) != place[:2]:
                yield (
                    f"{ext!r} lies at {member.start:,}+{member.size:,}, the sidecar says "
                    f"{place[0]:,}+{place[1] - place[0]:,}"
                )
            digest = checksum(tar[member.start : stop_of_data])
            header = member_header(tar_name(key, ext), member.size, member.checksum or 0)
            if bytes(tar[member.header : member.start]) != header:
                yield f"the header of {ext!r} is not what was packed"
            if any(tar[stop_of_data : member.start + padded(member.size)]):
                yield f"the padding after {ext!r} is not zeros"
            if digest != place[2] or digest != member.checksum:
                yield (
                    f"the data of {ext!r} at offset {member.start:,} has xxh3 {digest:016x}; its "
                    f"header says {member.checksum or 0:016x}, the sidecar {place[2]:016x}"
                )
    except CorruptError as error:
        yield str(error)
        return
    for ext in expected.keys() - seen:
        yield f"its member {ext!r} is missing from the tar"
    if stop > len(tar) - 2 * BLOCK:
        yield "it reaches past the end of the tar"
