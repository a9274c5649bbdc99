"""The two-pass way of a reshard: source shards → spill files in output order → output shards.

Pass 1 reads a batch of source shards once, from end to end, and writes the members that take part
into one spill file, each to the place that the order of the output gives it: sizes are known
before, so nothing is held or sorted but numbers. Pass 2 packs rows whose members lie in spill
files; what one output shard needs is one run of each file.

A spill file is members, then (little-endian, 8 bytes each) for its n samples in output order:
position, offset of the first member, checksum of each of m members; and at last n and m. It has
its name only when it is whole.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64

from shardkit.errors import ConfigError, CorruptError
from shardkit.executors import Report
from shardkit.format.tar import checksum
from shardkit.index.index import Index
from shardkit.index.rows import MemberColumn, Rows
from shardkit.index.shards import ShardLayout, ShardSet
from shardkit.order.permutation import Permutation
from shardkit.pack.output import Output
from shardkit.pack.rows import pack_order
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.protocol import Chunk, Store
from shardkit.storage.ranges import COALESCE_GAP
from shardkit.storage.urls import is_local

__all__ = ["PIECE_BYTES", "Destination", "SpillPlaces", "SpillTask", "spill_batches", "spill_name"]

_BATCH_BYTES = 256 << 20
"""Least bytes of source shards behind a spill file: a run of 1 MB for each of 256 output shards."""
_MAX_BATCHES = 4_096
"""Spill files at most, so that every output shard opens no more than so many."""
_BATCH_SAMPLES = 1 << 20
"""Most samples of a batch of several shards: ~64 bytes of numbers each are in memory."""
_STREAMS = 8
"""Pieces of a far shard under way at once: one stream of S3 gives ~85 MB/s, a process takes 570."""
PIECE_BYTES = 32 << 20
"""Of a far shard in one request."""
_ATTEMPTS = 3  # reads before bytes with a wrong checksum are taken for what the far end holds

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Destination:
    """One dataset of the result: which samples go into it, in which order, and from what position.

    Positions count the samples of all datasets of the result, one after the other.
    """

    index: Index
    seed: int | None
    """Of the random order; None keeps the source's."""
    first: int

    def positions(self, shard: int) -> tuple[Int64Array, Int64Array]:
        """Rows of a source shard that go here, and the position of each."""
        counts = self.index.counts
        start = int(counts[:shard].sum())
        places = np.arange(start, start + int(counts[shard]), dtype=np.int64)
        selection = self.index.selection
        rows = places - start if selection is None else selection.rows(shard)
        if self.seed is not None and len(places):
            places = self._order.inverse(places)
        return rows, places + self.first

    @property
    def _order(self) -> Permutation:
        return pack_order(self.index.num_rows, self.seed or 0)


def spill_batches(source: ShardSet) -> tuple[tuple[int, int], ...]:
    """Runs of source shards, one a spill file; the same for everyone who continues."""
    counts = source.counts
    sizes = [max(0, source.num_bytes(shard)) for shard in range(len(counts))]
    limit = max(_BATCH_BYTES, sum(sizes) // _MAX_BATCHES)
    batches = []
    first = num_bytes = num_samples = 0
    for shard, (size, samples) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        full = num_bytes + size > limit or num_samples + samples > _BATCH_SAMPLES
        if full and shard > first:
            batches.append((first, shard))
            first, num_bytes, num_samples = shard, 0, 0
        num_bytes += size
        num_samples += samples
    return (*batches, (first, len(sizes)))


def spill_name(batch: int) -> str:
    """File name of a batch's spill."""
    return f"{batch:05d}.spill"


@dataclass(frozen=True)
class SpillTask:
    """Pass 1: writes the spill file of batch ``item``; returns the bytes of its members."""

    source: ShardSet
    store: Store
    exts: tuple[str, ...]
    destinations: tuple[Destination, ...]
    batches: tuple[tuple[int, int], ...]
    output: Output

    def __call__(self, item: int, report: Report) -> int:
        """Write one spill file whole, and give it its name.

        Raises:
            ConfigError: this machine does not see the folder that the run has made.
            CorruptError: a member fails its checksum.
        """
        if not os.path.isdir(self.output.url):
            raise ConfigError(
                f"{self.output.url} is not there on {os.uname().nodename}: all machines must see "
                "the same spill folder. Name one of a shared filesystem (--scratch), or read "
                "ranges (--way ranges)"
            )
        shards = range(*self.batches[item])
        wanted = _Wanted.of([self._wanted(shard) for shard in shards], len(self.exts))
        with self.output.temporary() as path:
            with map_os_errors("write", path):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                sums = np.zeros((len(wanted.positions), len(self.exts)), dtype=np.uint64)
                for shard in shards:
                    self._spill(fd, shard, wanted, sums)
                    report(0, int(wanted.sizes_of(shard).sum()))
                _write_tail(fd, path, wanted, sums)
            finally:
                os.close(fd)
            self.output.publish(path, spill_name(item))
        return wanted.num_bytes

    def _wanted(self, shard: int) -> _Wanted:
        """What of a shard takes part."""
        layout = self.source.layout(shard, self.exts, ())
        found = [destination.positions(shard) for destination in self.destinations]
        rows = np.concatenate([rows for rows, _ in found])
        sizes = np.zeros((len(rows), len(self.exts)), dtype=np.int64)
        for number, ext in enumerate(self.exts):
            if ext in layout.starts:
                sizes[:, number] = (layout.stops[ext] - layout.starts[ext])[rows]
        positions = np.concatenate([positions for _, positions in found])
        return _Wanted(positions, np.full(len(rows), shard), rows, sizes, sizes)

    def _spill(self, fd: int, shard: int, wanted: _Wanted, sums: UInt64Array) -> None:
        """Copy the members of a shard that are wanted, in the order in which they lie there."""
        here = np.flatnonzero(wanted.shards == shard)
        if not len(here):
            return
        layout = self.source.layout(shard, self.exts, ())
        rows = wanted.rows[here]
        parts = []
        for number, ext in enumerate(self.exts):
            if ext in layout.starts:
                held = layout.starts[ext][rows] >= 0
                parts.append(
                    np.stack(
                        [
                            layout.starts[ext][rows][held],
                            layout.stops[ext][rows][held],
                            wanted.starts[here, number][held],
                            here[held],
                            np.full(int(held.sum()), number),
                        ]
                    )
                )
        if not parts:
            return
        members = np.concatenate(parts, axis=1)
        members = members[:, np.argsort(members[0], kind="stable")]
        url = self.source.shard_url(shard)
        if (members[0][1:] < members[1][:-1]).any():
            raise CorruptError(f"{url}: members overlap; verify the source")
        copy = partial(self._copy, fd, url, layout, wanted, sums)
        if is_local(url):
            for span in _spans(members):
                copy(span)
            return
        with ThreadPoolExecutor(_STREAMS, "shardkit-spill") as pool:
            deque(pool.map(copy, _pieces(members)), maxlen=0)

    def _copy(
        self,
        fd: int,
        url: str,
        layout: ShardLayout,
        wanted: _Wanted,
        sums: UInt64Array,
        members: npt.NDArray[np.int64],
    ) -> None:
        cutter = _Cutter(fd, members)
        self.store.stream_to(url, cutter.write, int(members[0, 0]), int(members[1, -1]))
        sums[members[3], members[4]] = cutter.sums
        for number, ext in enumerate(self.exts):
            known = layout.checksums.get(ext)
            if known is None:
                continue
            of_ext = np.flatnonzero(members[4] == number)
            rows = wanted.rows[members[3][of_ext]]
            for place in of_ext[known[rows] != cutter.sums[of_ext]].tolist():
                row = int(wanted.rows[members[3][place]])
                self._again(fd, url, members[:, place : place + 1], int(known[row]), row, layout)
                sums[members[3][place], number] = known[row]

    def _again(
        self,
        fd: int,
        url: str,
        member: npt.NDArray[np.int64],
        expected: int,
        row: int,
        layout: ShardLayout,
    ) -> None:
        """Read a member that failed its checksum again: networks flip bits, bad disks keep them.

        Raises:
            CorruptError: it fails again.
        """
        found = 0
        for _ in range(_ATTEMPTS - 1):
            cutter = _Cutter(fd, member)
            self.store.stream_to(url, cutter.write, int(member[0, 0]), int(member[1, 0]))
            found = int(cutter.sums[0])
            if found == expected:
                return
        ext = self.exts[int(member[4, 0])]
        raise CorruptError(
            f"{url} is damaged (key {layout.keys[row]!r}): the xxh3 of {ext!r} is {found:016x}, "
            f"not {expected:016x}; it was not copied. Verify and repair the source (shardkit "
            "verify), or leave the key out (--exclude)"
        )


@dataclass(frozen=True)
class _Wanted:
    """Samples that take part, and where their members go: n samples, m exts.

    In the order of the output once joined by ``of``.
    """

    positions: Int64Array  # [n]
    shards: Int64Array  # [n]
    rows: Int64Array  # [n], in their shard
    sizes: Int64Array  # [n, m]
    starts: Int64Array  # [n, m], in the spill file

    @classmethod
    def of(cls, pieces: Sequence[_Wanted], num_exts: int) -> _Wanted:
        """All of them, by position, laid out one behind the other."""
        positions = np.concatenate([piece.positions for piece in pieces])
        order = np.argsort(positions, kind="stable")
        sizes = np.concatenate([piece.sizes for piece in pieces])[order]
        ends = np.cumsum(sizes.ravel())
        starts = (ends - sizes.ravel()).reshape(-1, num_exts)
        return cls(
            positions[order],
            np.concatenate([piece.shards for piece in pieces])[order],
            np.concatenate([piece.rows for piece in pieces])[order],
            sizes,
            starts,
        )

    @property
    def num_bytes(self) -> int:
        """Of all members."""
        return int(self.sizes.sum())

    def sizes_of(self, shard: int) -> Int64Array:
        """[k, m] sizes of a shard's samples."""
        found: Int64Array = self.sizes[self.shards == shard]
        return found


def _spans(members: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Members, by where they start, cut where reading on would read too much for nothing."""
    gaps = members[0][1:] - members[1][:-1]
    yield from np.split(members, np.flatnonzero(gaps > COALESCE_GAP) + 1, axis=1)


def _pieces(members: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Spans, in pieces that are streamed at the same time."""
    for span in _spans(members):
        pieces = (span[0] - span[0, 0]) // PIECE_BYTES
        yield from np.split(span, np.flatnonzero(np.diff(pieces)) + 1, axis=1)


class _Cutter:
    """Takes a stretch of a tar chunk by chunk, and writes the members in it to their places.

    Args:
        fd: of the spill file.
        members: [5, k]: start, stop in the tar, start in the spill file; the rest is the caller's.
    """

    def __init__(self, fd: int, members: npt.NDArray[np.int64]) -> None:
        self.sums = np.zeros(members.shape[1], dtype=np.uint64)
        self._fd = fd
        self._members: list[tuple[int, int, int]] = list(zip(*members[:3].tolist(), strict=True))
        self._number = 0
        self._at = self._members[0][0]
        self._digest: xxh3_64 | None = None  # of a member that began in an earlier chunk
        self._skip_empty()

    def write(self, chunk: Chunk) -> None:
        """Take the next chunk."""
        view = memoryview(chunk)
        first, last = self._at, self._at + len(view)
        self._at = last
        while self._number < len(self._members):
            start, stop, to = self._members[self._number]
            if start >= last:
                return
            begin = max(start, first)
            piece = view[begin - first : min(stop, last) - first]
            _write_all(self._fd, piece, to + begin - start)
            if stop > last:
                self._digest = self._digest or xxh3_64()
                self._digest.update(piece)
                return
            if self._digest is None:
                self.sums[self._number] = checksum(piece)
            else:
                self._digest.update(piece)
                self.sums[self._number] = self._digest.intdigest()
                self._digest = None
            self._number += 1
            self._skip_empty()

    def _skip_empty(self) -> None:
        while self._number < len(self._members):
            start, stop, _ = self._members[self._number]
            if stop > start:
                return
            self.sums[self._number] = checksum(b"")
            self._number += 1


def _write_all(fd: int, data: memoryview, at: int) -> None:
    with map_os_errors("write", "a spill file"):
        while data:
            done = os.pwrite(fd, data, at)
            data, at = data[done:], at + done


def _write_tail(fd: int, path: str, wanted: _Wanted, sums: UInt64Array) -> None:
    tail = b"".join(
        column.astype("<i8" if column.dtype == np.int64 else "<u8").tobytes()
        for column in (wanted.positions, wanted.starts[:, 0], sums, np.array(sums.shape))
    )
    with map_os_errors("write", path):
        _write_all(fd, memoryview(tail), wanted.num_bytes)


@dataclass(frozen=True)
class SpillPlaces:
    """Pass 2: where the members of a dataset's rows lie in the spill files."""

    folder: str
    num_files: int
    exts: tuple[str, ...]
    first: int
    """Position of the dataset's first sample."""

    def moved(self, rows: Rows, start: int) -> Rows:
        """The rows from row ``start`` of the dataset on, their members where they were spilled.

        Raises:
            CorruptError: a spill file is damaged, or some are missing.
        """
        count = len(rows)
        files = np.full(count, -1, dtype=np.int64)
        starts = np.zeros(count, dtype=np.int64)
        sums = np.zeros((count, len(self.exts)), dtype=np.uint64)
        for number in range(self.num_files):
            self._find(number, self.first + start, files, starts, sums)
        if (files < 0).any():
            raise CorruptError(
                f"{self.folder} lacks samples that were spilled there; remove the folder and run "
                "the same command again"
            )
        paths = [os.path.join(self.folder, spill_name(number)) for number in range(self.num_files)]
        urls = [paths[number] for number in files.tolist()]
        members = []
        for column in rows.members:
            number = self.exts.index(column.name)
            moved, sizes = _moved(column, urls, starts, sums[:, number])
            starts = starts + sizes
            members.append(moved)
        return replace(rows, members=tuple(members))

    def _find(
        self, number: int, first: int, files: Int64Array, starts: Int64Array, sums: UInt64Array
    ) -> None:
        """Note which of the positions from ``first`` on lie in a file, and where."""
        path = os.path.join(self.folder, spill_name(number))
        with map_os_errors("read", path), open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), 16, max(0, size - 16))
            count, width = np.frombuffer(tail, "<i8").tolist() if len(tail) == 16 else (0, -1)
            at = size - 16 - 8 * count * (2 + len(self.exts))
            if width != len(self.exts) or count < 0 or at < 0:
                raise CorruptError(
                    f"{path} is no spill of this reshard; remove the folder and run the same "
                    "command again"
                )
            if not count:
                return
            numbers = np.memmap(file, "<i8", "r", at, shape=(count * (2 + width),))
            positions, offsets = numbers[:count], numbers[count : 2 * count]
            run = slice(*np.searchsorted(positions, [first, first + len(files)]).tolist())
            where = positions[run] - first
            if not len(where):
                return
            files[where] = number
            starts[where] = offsets[run]
            sums[where] = numbers[2 * count :].view("<u8").reshape(count, width)[run]
            stop = int(offsets[run.stop]) if run.stop < count else at
            begin = int(offsets[run.start])
            os.posix_fadvise(file.fileno(), begin, stop - begin, os.POSIX_FADV_WILLNEED)


def _moved(
    column: MemberColumn, urls: Sequence[str], starts: Int64Array, sums: UInt64Array
) -> tuple[MemberColumn, Int64Array]:
    """The column with its members in spill files, and how many bytes each takes there."""
    present = np.array([url is not None for url in column.urls], dtype=bool)
    sizes = np.where(present, np.array(column.sizes, dtype=np.int64), 0)
    changes: dict[str, Any] = {
        "urls": [url if has else None for url, has in zip(urls, present.tolist(), strict=True)],
        "starts": starts.tolist(),
        "checksums": [
            digest if has else None
            for digest, has in zip(sums.tolist(), present.tolist(), strict=True)
        ],
    }
    return replace(column, **changes), sizes
