"""Which rows take part: counts per group and a bitmap on disk, never a list of rows.

A selection file holds, in this order: the bitmap (one bit a row, least significant bit first,
padded with zeros to whole blocks; as many of these *planes* as the largest number of copies of a
row), selected rows per plane and group (int64), selected rows before each block of all planes and
in all (int64), a JSON footer, and the footer's length (int64). All integers are little-endian.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError, CorruptError
from shardkit.order.hashing import Int64Array, hash_range, make_key
from shardkit.order.lanes import starts_of

__all__ = ["Selection", "copies_of", "open_selection", "selection_key", "write_selection"]

_VERSION = 1
# A copy more costs N/8 bytes of disk: past this a weight is a mistake, or a Mix says it better.
_MAX_PLANES = 64
# At most this many blocks have their ranks in memory (2 MB), so a look-up scans N / 2¹⁸ bits,
_MAX_BLOCKS = 2**18
_MIN_BLOCK_ROWS = 4096  # or these 512 bytes.
_SCAN_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _Bitmap:
    """Where the k-th set bit is, over a memory-mapped file. Opened lazily, again after a pickle."""

    path: str
    num_planes: int
    block_rows: int
    ranks: Int64Array  # set bits before each block of each plane, and at last all of them
    _maps: list[npt.NDArray[np.uint64]] = field(default_factory=list, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Bitmap, (self.path, self.num_planes, self.block_rows, self.ranks)

    def locate(self, ids: Int64Array) -> Int64Array:
        """Map ranks of set bits (any order) to rows, whichever the plane: int64."""
        by_id = np.argsort(ids, kind="stable")
        blocks = np.searchsorted(self.ranks, ids[by_id], "right") - 1
        rows = np.empty_like(ids)
        step = max(1, _SCAN_BYTES // (self.block_rows // 8))
        unique, firsts = np.unique(blocks, return_index=True)
        for start in range(0, len(unique), step):
            chosen = unique[start : start + step]
            stop = firsts[start + step] if start + step < len(unique) else len(ids)
            here = by_id[firsts[start] : stop]
            which = np.repeat(
                np.arange(len(chosen)), np.diff(np.append(firsts[start : start + step], stop))
            )
            rows[here] = self._select(chosen, which, ids[here] - self.ranks[chosen][which])
        return rows

    def _select(self, blocks: Int64Array, which: Int64Array, ranks: Int64Array) -> Int64Array:
        """Find set bit ``ranks[i]`` of block ``blocks[which[i]]``: its word, then its bit."""
        words = self._blocks(blocks)
        before = np.cumsum(np.bitwise_count(words), axis=1, dtype=np.int64)
        num_words = words.shape[1]
        # One sorted line of all blocks' running counts, so that a single search finds all words.
        offsets = np.cumsum(before[:, -1]) - before[:, -1]
        line = (before + offsets[:, None]).ravel()
        places = np.searchsorted(line, ranks + offsets[which], "right")
        word_ranks = (
            ranks + offsets[which] - (line[places] - np.bitwise_count(words.ravel()[places]))
        )
        bits = np.unpackbits(
            words.ravel()[places].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
        )
        bit = np.argmax(np.cumsum(bits, axis=1, dtype=np.uint8) > word_ranks[:, None], axis=1)
        in_plane = blocks % ((len(self.ranks) - 1) // self.num_planes)
        rows: Int64Array = in_plane[which] * self.block_rows + (places % num_words) * 64 + bit
        return rows

    def _blocks(self, blocks: Int64Array) -> npt.NDArray[np.uint64]:
        """Copy whole blocks out of the file: uint64[blocks, words]."""
        if not self._maps:
            shape = (len(self.ranks) - 1, self.block_rows // 64)
            self._maps.append(np.memmap(self.path, "<u8", "r", shape=shape))
        words: npt.NDArray[np.uint64] = self._maps[0][blocks]
        return words


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that take part, each as often as it does.

    A row that takes part k times is in the first k planes; every plane is a set of groups of its
    own, so that the copies of a row land at unrelated places of an epoch.

    Attributes:
        row_counts: int64[groups], all rows of each group of the index.
        counts: int64[planes * groups], the selected ones: what ``EpochOrder`` takes.
        key: "" for all rows, else what the selection is keyed by.
    """

    row_counts: Int64Array
    counts: Int64Array
    key: str
    _starts: Int64Array
    _bitmap: _Bitmap | None

    @classmethod
    def all(cls, row_counts: npt.NDArray[np.integer]) -> Selection:
        """Select every row once: no bitmap, no file."""
        counts = row_counts.astype(np.int64)
        return cls(counts, counts, "", starts_of(counts), None)

    @property
    def num_samples(self) -> int:
        """N: selected rows, copies included."""
        return int(self.counts.sum())

    def locate(self, ids: npt.NDArray[np.int64]) -> tuple[Int64Array, Int64Array]:
        """Map sample ids in [0, N), in any order, to (group, row in the group): int64 each."""
        ids = np.asarray(ids, np.int64)
        rows = ids if self._bitmap is None else self._bitmap.locate(ids)
        groups = np.searchsorted(self._starts, rows, "right") - 1
        return groups, rows - self._starts[groups]

    def groups(self, groups: npt.NDArray[np.int64]) -> Int64Array:
        """Map the groups of an order, as ``EpochOrder.groups`` gives them, to the index's."""
        return groups % len(self.row_counts) if len(self.row_counts) else groups


def selection_key(*parts: str | int | float | None) -> str:
    """Name a selection by what it depends on (fingerprint, expression, seed, …): 16 hex digits."""
    return f"{make_key('selection', _VERSION, *map(repr, parts)):016x}"


def copies_of(
    weights: npt.NDArray[np.floating[Any]], *, seed: int = 0, start: int = 0
) -> Int64Array:
    """Turn weights into copies: ⌊w⌋, and one more for a share w - ⌊w⌋ of the rows, by their hash.

    Args:
        weights: finite, from 0 to 64; 0.5 keeps half of such rows, 2 repeats each.
        seed: chooses which rows are kept.
        start: number of the first row, when weights come in chunks.

    Raises:
        ConfigError: a weight is negative, not finite or above 64; the message has the row.
    """
    weights = np.asarray(weights, np.float64)
    wrong = np.flatnonzero(~((weights >= 0) & (weights <= _MAX_PLANES)))
    if wrong.size:
        raise ConfigError(
            f"row {start + int(wrong[0])} has weight {weights[wrong[0]]}, not between 0 and "
            f"{_MAX_PLANES}: scale the weights, or mix data sets with Mix"
        )
    whole = np.floor(weights)
    hashes = hash_range(start, start + len(weights), make_key("weight", seed))
    chance = (hashes >> np.uint64(11)) * 2.0**-53
    copies: Int64Array = (whole + (chance < weights - whole)).astype(np.int64)
    return copies


def write_selection(
    path: str,
    row_counts: npt.NDArray[np.integer],
    chunks: Iterable[npt.NDArray[np.bool_] | npt.NDArray[np.integer]],
    *,
    key: str,
) -> Selection:
    """Write a selection file and open it.

    Args:
        path: local; replaced atomically when the file is whole.
        row_counts: rows per group of the index, int64[groups].
        chunks: over all rows in natural order, in pieces of any length: bool (selected or not), or
            the number of copies, 0 to 64. Streamed: memory is O(groups).
        key: from ``selection_key``.

    Raises:
        ConfigError: the chunks are not exactly as long as the groups, or ask for too many copies.
    """
    rows = row_counts.astype(np.int64)
    temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "w+b") as file:
            num_rows = int(rows.sum())
            num_planes = _write_planes(file.fileno(), num_rows, chunks)
            tables = _count_planes(file.fileno(), rows, num_planes)
            sizes = {"version": _VERSION, "num_planes": num_planes, "num_rows": num_rows}
            footer = json.dumps(sizes | {"num_groups": len(rows), "key": key}).encode()
            file.seek(0, os.SEEK_END)
            file.write(tables.astype("<i8").tobytes())
            file.write(footer + len(footer).to_bytes(8, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return open_selection(path, rows, key=key)


def open_selection(path: str, row_counts: npt.NDArray[np.integer], *, key: str) -> Selection:
    """Open a selection file; its bitmap is memory-mapped when first needed.

    Raises:
        FileNotFoundError: there is none.
        CorruptError: it is damaged, or it is another selection's.
    """
    rows = row_counts.astype(np.int64)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), 8, max(size - 8, 0))
        length = int.from_bytes(tail, "little")
        if len(tail) < 8 or not 0 < length <= size - 8:
            raise CorruptError(f"{path} is not a selection file or is cut short: delete it")
        try:
            footer = json.loads(os.pread(file.fileno(), length, size - 8 - length))
            num_planes = int(footer["num_planes"])
            found = tuple(footer[name] for name in ("version", "key", "num_rows", "num_groups"))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{path} has no selection footer: delete it") from error
        num_rows, num_groups = int(rows.sum()), len(rows)
        wanted = (_VERSION, key, num_rows, num_groups)
        if found != wanted:
            raise CorruptError(
                f"{path} holds another selection (version, key, rows, groups: {found}, not "
                f"{wanted}): delete it"
            )
        num_blocks, block_rows = _layout(num_rows)
        start = num_planes * num_blocks * block_rows // 8
        num_values = num_planes * (num_groups + num_blocks) + 1
        if start + 8 * num_values + length + 8 != size:
            raise CorruptError(f"{path} has {size} bytes, not what its footer says: delete it")
        values = np.frombuffer(os.pread(file.fileno(), 8 * num_values, start), "<i8")
    counts, ranks = np.split(values.astype(np.int64), [num_planes * num_groups])
    bitmap = _Bitmap(path, num_planes, block_rows, ranks)
    return Selection(rows, counts, key, starts_of(rows), bitmap)


def _layout(num_rows: int) -> tuple[int, int]:
    """Return blocks per plane and rows per block of an index of ``num_rows``."""
    block_rows = _MIN_BLOCK_ROWS
    while num_rows > _MAX_BLOCKS * block_rows:
        block_rows *= 2
    return -(-num_rows // block_rows), block_rows


def _write_planes(descriptor: int, num_rows: int, chunks: Iterable[npt.NDArray[Any]]) -> int:
    """Write the bitmaps side by side; return how many there are."""
    num_blocks, block_rows = _layout(num_rows)
    plane_bytes = num_blocks * block_rows // 8
    num_planes, row = 1, 0
    rest = np.empty(0, np.uint8)  # rows of a byte that is not full yet
    for chunk in _pieces(chunks):
        copies = np.concatenate((rest, chunk))
        if row + copies.size > num_rows:
            raise ConfigError(_not_covered(row + copies.size, num_rows))
        full = copies.size - copies.size % 8
        num_planes = max(num_planes, int(copies.max(initial=1)))
        _write_bits(descriptor, copies[:full], row // 8, plane_bytes)
        row += full
        rest = copies[full:]
    if row + rest.size != num_rows:
        raise ConfigError(_not_covered(row + rest.size, num_rows))
    _write_bits(descriptor, rest, row // 8, plane_bytes)
    os.ftruncate(descriptor, num_planes * plane_bytes)  # what was not written is zero
    return num_planes


def _not_covered(num_covered: int, num_rows: int) -> str:
    return (
        f"the selection covers {num_covered} rows (or more) of an index that has {num_rows}: they "
        "are not of the same data set"
    )


def _write_bits(
    descriptor: int, copies: npt.NDArray[np.uint8], start: int, plane_bytes: int
) -> None:
    for plane in range(int(copies.max(initial=0))):
        bits = np.packbits(copies > plane, bitorder="little")
        view = memoryview(bits.tobytes())
        offset = plane * plane_bytes + start
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset, view = offset + written, view[written:]


def _pieces(chunks: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[np.uint8]]:
    """Cut chunks to a bounded size and check their values."""
    for chunk in chunks:
        for start in range(0, len(chunk), 1 << 20):
            piece = chunk[start : start + (1 << 20)]
            if piece.dtype != np.bool_ and not 0 <= piece.min() <= piece.max() <= _MAX_PLANES:
                raise ConfigError(
                    f"a row is to take part {piece.min()} to {piece.max()} times: 0 to "
                    f"{_MAX_PLANES} are possible; mix data sets with Mix for more"
                )
            yield piece.astype(np.uint8)


def _count_planes(descriptor: int, row_counts: Int64Array, num_planes: int) -> Int64Array:
    """Count finished planes: set bits per plane and group, then the ranks of all blocks."""
    num_rows = int(row_counts.sum())
    num_blocks, block_rows = _layout(num_rows)
    group_bounds = np.append(starts_of(row_counts), num_rows)
    block_bounds = np.arange(num_blocks + 1) * block_rows
    bounds = np.sort(np.concatenate((group_bounds, block_bounds)))
    plane_bytes = num_blocks * block_rows // 8
    counts, sizes = [], []
    for plane in range(num_planes):
        before = _count_before(descriptor, plane * plane_bytes, plane_bytes, bounds)
        counts.append(np.diff(before[np.searchsorted(bounds, group_bounds)]))
        sizes.append(np.diff(before[np.searchsorted(bounds, block_bounds)]))
    return np.concatenate((*counts, [0], np.cumsum(np.concatenate(sizes))))


def _count_before(descriptor: int, start: int, num_bytes: int, bounds: Int64Array) -> Int64Array:
    """Count the set bits before each (sorted) row of ``bounds``, reading a plane once."""
    before = np.zeros(len(bounds), np.int64)
    done = total = 0
    for offset in range(0, num_bytes, _SCAN_BYTES):
        size = min(_SCAN_BYTES, num_bytes - offset)
        bits = np.frombuffer(os.pread(descriptor, size, start + offset), np.uint8)
        running = np.zeros(size + 1, np.int64)
        np.cumsum(np.bitwise_count(bits), out=running[1:])
        last = int(np.searchsorted(bounds, 8 * (offset + size), "right"))
        rows = bounds[done:last] - 8 * offset
        below = ((1 << (rows % 8)) - 1).astype(np.uint8)
        partial = np.bitwise_count(np.append(bits, np.uint8(0))[rows // 8] & below)
        before[done:last] = total + running[rows // 8] + partial
        done, total = last, total + int(running[-1])
    return before
