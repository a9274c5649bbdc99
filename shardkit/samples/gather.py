"""From places in open shards to sample dicts, with the work done per block and not per sample.

The columns of a block (keys, offsets, metadata) are gathered by numpy and turned into lists at
once; then one ``zip`` walks them, and the only work per sample is one read per member and one
dict. Reads are lazy, so that a member's bytes are allocated when its sample is asked for and the
allocator can give the same warm memory to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import getitem
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shardkit.index.shards import ShardLayout

__all__ = ["ReadableShard", "samples_of"]

Sample = dict[str, Any]
OpenRange = Callable[[str, int, int], Any]


class ReadableShard(Protocol):
    """A shard whose samples can be read in the order in which they are asked for."""

    @property
    def url(self) -> str:
        """Of the tar."""
        ...

    @property
    def layout(self) -> ShardLayout:
        """Places of its samples."""
        ...

    @property
    def buffer(self) -> Any:
        """The whole tar, where ``maps`` says that slices of it are the way to read."""
        ...

    def maps(self, ext: str) -> bool:
        """Whether plain slices of ``buffer`` are the way to read this member."""
        ...

    def reader(self, ext: str) -> Callable[[int, int, int], bytes]:
        """A function from row, start and stop to the member's bytes."""
        ...

    def settle(self) -> None:
        """Called when a block has been read."""
        ...


def samples_of(
    shards: Mapping[int, ReadableShard],
    groups: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    exts: Sequence[str],
    metadata: Sequence[str],
    ranged: Sequence[str] = (),
    open_range: OpenRange | None = None,
) -> Iterator[Sample]:
    """Yield the sample at each (group, row), in order: key, URL, members as bytes, metadata.

    Args:
        shards: by number, all that ``groups`` names.
        groups: int64 [n], shard numbers.
        rows: int64 [n], rows within them.
        exts: members to give; a sample that lacks one lacks the entry.
        metadata: columns to give.
        ranged: members of which only a source is given; nothing of them is read here.
        open_range: makes a source of the shard's URL and where the member starts and stops.

    Raises:
        CorruptError: a member's bytes are not what was packed; earlier samples were right.
    """
    block = _Block(shards, groups, rows)
    columns: list[Any] = [
        block.gather(lambda shard: shard.layout.keys),
        block.same(lambda shard: shard.url),
    ]
    columns.extend(block.members(ext) for ext in exts)
    if open_range is not None:
        columns.extend(block.sources(ext, open_range) for ext in ranged)
    columns.extend(block.metadata(name) for name in metadata)
    names = ("__key__", "__url__", *exts, *ranged, *metadata)
    rows_of_values = zip(*columns, strict=False)
    if block.is_uneven([*exts, *ranged]):
        members = frozenset([*exts, *ranged])
        return (_without_absent(names, values, members) for values in rows_of_values)
    return _dicts(names, rows_of_values)


def _dicts(names: Sequence[str], rows_of_values: Iterator[tuple[Any, ...]]) -> Iterator[Sample]:
    """``dict(zip(names, values))`` of each row; of few columns as a display, 0.15 µs sooner."""
    match names:
        case (a, b, c):
            return ({a: u, b: v, c: w} for u, v, w in rows_of_values)
        case (a, b, c, d):
            return ({a: u, b: v, c: w, d: x} for u, v, w, x in rows_of_values)
        case (a, b, c, d, e):
            return ({a: u, b: v, c: w, d: x, e: y} for u, v, w, x, y in rows_of_values)
        case (a, b, c, d, e, f):
            return ({a: u, b: v, c: w, d: x, e: y, f: z} for u, v, w, x, y, z in rows_of_values)
        case _:
            return map(dict, map(zip, repeat(names), rows_of_values))


def _without_absent(
    names: Sequence[str], values: tuple[Any, ...], members: frozenset[str]
) -> Sample:
    """A sample without the members that it lacks; metadata may be None."""
    return {
        name: value
        for name, value in zip(names, values, strict=True)
        if value is not None or name not in members
    }


class _Block:
    """The rows of one block, by shard."""

    def __init__(
        self,
        shards: Mapping[int, ReadableShard],
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
    ) -> None:
        self.rows = rows
        if len(shards) == 1:
            self.pieces: list[tuple[ReadableShard, Any]] = [
                (next(iter(shards.values())), slice(None))
            ]
        else:
            by_group = np.argsort(groups, kind="stable")
            cuts = np.flatnonzero(np.diff(groups[by_group])) + 1
            self.pieces = [
                (shards[int(groups[piece[0]])], piece) for piece in np.split(by_group, cuts)
            ]

    def is_uneven(self, exts: Sequence[str]) -> bool:
        """Whether some sample may lack one of the members."""
        return any(
            shard.layout.uneven or any(ext not in shard.layout.starts for ext in exts)
            for shard, _ in self.pieces
        )

    def gather(self, column: Callable[[ReadableShard], npt.NDArray[Any] | None]) -> list[Any]:
        """A per-row column of the shards, in the order of the block, as Python values."""
        if len(self.pieces) == 1:
            values = column(self.pieces[0][0])
            return [None] * len(self.rows) if values is None else values[self.rows].tolist()
        out = np.empty(len(self.rows), dtype=object)
        for shard, piece in self.pieces:
            values = column(shard)
            if values is not None:
                out[piece] = values[self.rows[piece]].astype(object)
        return out.tolist()

    def same(self, value: Callable[[ReadableShard], Any]) -> Iterator[Any]:
        """A value that all rows of a shard share, row by row."""
        if len(self.pieces) == 1:
            return repeat(value(self.pieces[0][0]))
        out = np.empty(len(self.rows), dtype=object)
        cell = np.empty((), dtype=object)  # numpy would look inside a buffer it is to store
        for shard, piece in self.pieces:
            cell[()] = value(shard)
            out[piece] = cell
        return iter(out.tolist())

    def metadata(self, name: str) -> list[Any]:
        """A metadata column; None where a shard has no such column."""
        return self.gather(lambda shard: shard.layout.metadata.get(name))

    def members(self, ext: str) -> Iterator[bytes | None]:
        """The bytes of a member, read as they are asked for."""
        starts, stops = self._bounds(ext)
        uneven = self.is_uneven([ext])
        if not uneven and all(shard.maps(ext) for shard, _ in self.pieces):
            slices = map(slice, starts, stops)
            if len(self.pieces) == 1:
                return map(self.pieces[0][0].buffer.__getitem__, slices)
            return map(getitem, self.same(lambda shard: shard.buffer), slices)
        reader = _read_or_none if uneven else _read
        readers = self.same(lambda shard: shard.reader(ext))
        return map(reader, readers, self.rows.tolist(), starts, stops)

    def sources(self, ext: str, open_range: OpenRange) -> Iterator[Any]:
        """A source of a member's bytes, None where the sample has no such member."""
        starts, stops = self._bounds(ext)
        urls = self.same(lambda shard: shard.url)
        return (
            None if start < 0 else open_range(url, start, stop)
            for url, start, stop in zip(urls, starts, stops, strict=False)
        )

    def _bounds(self, ext: str) -> tuple[list[int], list[int]]:
        if len(self.pieces) == 1:
            layout = self.pieces[0][0].layout
            if ext not in layout.starts:
                return [-1] * len(self.rows), [-1] * len(self.rows)
            return layout.starts[ext][self.rows].tolist(), layout.stops[ext][self.rows].tolist()
        bounds = np.full((2, len(self.rows)), -1, dtype=np.int64)
        for shard, piece in self.pieces:
            if ext in shard.layout.starts:
                bounds[0, piece] = shard.layout.starts[ext][self.rows[piece]]
                bounds[1, piece] = shard.layout.stops[ext][self.rows[piece]]
        return bounds[0].tolist(), bounds[1].tolist()


Reader = Callable[[int, int, int], bytes]


def _read(reader: Reader, row: int, start: int, stop: int) -> bytes:
    return reader(row, start, stop)


def _read_or_none(reader: Reader, row: int, start: int, stop: int) -> bytes | None:
    return None if start < 0 else reader(row, start, stop)
