"""Any tar → its samples as byte ranges, by its headers alone: exactly what webdataset yields.

Reads USTAR, GNU and PAX names (POSIX.1-2001 ``pax`` and the GNU tar manual's ``L`` records) and
groups by webdataset's rule. Nothing is extracted, so paths that escape, links and devices do no
harm: what is no regular file is skipped, as webdataset does. What would make a reader yield wrong
bytes, or silently fewer samples (sizes beyond the file, broken headers, sparse members), raises.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardkit.errors import CorruptError
from shardkit.format.sidecar import KEY, MEMBER_TYPE
from shardkit.index.names import is_meta, split_key

__all__ = ["ReadRange", "TarScan", "scan_tar"]

ReadRange = Callable[[int, int], bytes]
"""``read(start, stop)`` → exactly those bytes."""

logger = logging.getLogger(__name__)

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_FILE, _OLD_FILE = ord("0"), 0  # types of regular files; the old one may be a folder
_REGULAR = frozenset((b"0", b"\x00", b"7"))
_NO_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))  # links, devices, folders, pipes
_LONG = {b"L": "name", b"K": "link"}
_PAX = frozenset((b"x", b"X"))
_PAX_GLOBAL = b"g"
_GNU_KINDS = frozenset((b"L", b"K", b"S"))  # their prefix field holds other things
_MAX_RECORD = 1 << 20  # bytes of a long name or PAX record; a path has at most 4,096
_MAX_RECORDS = 64  # such records in front of one member: one or two in an honest tar
_RECORD = re.compile(rb"(\d+) ([^=]+)=")
_TELLING = frozenset((b"path", b"size"))  # PAX keywords that say where a member is
_SPARSE = b"GNU.sparse."
_MARK = np.frombuffer(b"xxh3:", dtype=np.uint8)  # of the checksum that our own headers carry
_BATCH = 4096  # headers whose sums are checked, and whose names are parted, at once
_TRAILING = 64 << 10  # bytes looked at behind the end-of-tar for another tar
_RESERVED = frozenset(("__key__", "__url__"))
_WEIGHTS = 8 ** np.arange(5, -1, -1)


@dataclass(frozen=True)
class TarScan:
    """The samples of a tar.

    Attributes:
        table: one row a sample: ``__key__``, and per ext a struct of offset, size and xxh3 (null
            unless the headers carry checksums, as ours do); exts sorted.
        offsets: int64 [N + 1]; where each sample's first header starts, and where the last ends.
        ended: whether the tar has its end marker. Without one it may have been cut between members.
        num_skipped: regular files that belong to no sample: names without an ext, ``__meta__``.
    """

    table: pa.Table
    offsets: npt.NDArray[np.int64]
    ended: bool
    num_skipped: int


def scan_tar(read: ReadRange, size: int, url: str, *, jump_bytes: int = 16 << 10) -> TarScan:
    """Walk the headers of an uncompressed tar.

    Args:
        read: gives any range of it.
        size: its bytes.
        url: for messages.
        jump_bytes: data shorter than this is read along rather than jumped over: what one request
            costs in bytes (16 KB on a local disk; 1 MB where a request takes 10 ms).

    Raises:
        CorruptError: no tar, a broken or cut header, data beyond the end of the file, two members
            of one name in a sample, a sparse member.
    """
    window = _Window(read, size, jump_bytes)
    batch = _Batch(url)
    headers = _Headers(window, url)
    samples = _Samples(url)
    position = 0
    while position + _BLOCK <= size:  # a few bytecodes per member: the speed of the scan is here
        at = position - window.start
        if not 0 <= at <= window.last:
            window.load(position)
            at = 0
        head = window.data[at : at + _BLOCK]
        kind = head[156]
        if kind == _OLD_FILE and head == _ZEROS:
            break
        batch.heads.append(head)
        batch.places.append(position)
        if kind == _FILE and not headers.common:
            try:
                length = int(head[124:136].rstrip(b"\x00"), 8)
            except ValueError:
                length = -1
            if length < 0:
                length = headers.number(head[124:136], position)
            batch.sizes.append(length)
            position += _BLOCK + (length + 511 & ~511)
        else:
            position = headers.unusual(position, batch)
        if position > size:
            batch.refuse_end(position, size)
        if len(batch.heads) >= _BATCH:
            samples.add(batch)
            batch = _Batch(url)
    samples.add(batch)
    return samples.result(_has_end(window, position, size, url))


def _has_end(window: _Window, position: int, size: int, url: str) -> bool:
    """Look at what stands behind the last member: an end marker, a cut, or another tar."""
    if position + _BLOCK > size:
        rest = window.read(position, size)
        if rest.strip(b"\x00") or position == 0:
            raise CorruptError(
                f"{url} is cut: {len(rest)} of 512 header bytes at {position:,}; fetch it again"
                if position
                else f"{url} is no tar: it has {size} bytes"
            )
        logger.warning("%s has no end-of-tar marker: it may have been cut between members", url)
        return False
    behind = window.read(position, min(size, position + _TRAILING))
    if behind.strip(b"\x00"):
        logger.warning(
            "%s goes on after its end-of-tar marker at byte %s (several tars joined?): no tar "
            "reader sees what follows",
            url,
            f"{position:,}",
        )
    return True


class _Window:
    """A stretch of the tar in memory: it grows while headers lie close, and shrinks when far."""

    _LEAST, _MOST = 2 << 10, 4 << 20

    def __init__(self, read: ReadRange, size: int, jump_bytes: int) -> None:
        self.data = b""
        self.start = 0
        self.last = -1  # where the last whole header in ``data`` may start
        self.read = read
        self._size = size
        self._jump = jump_bytes
        self._length = self._LEAST

    def load(self, position: int, least: int = _BLOCK) -> None:
        """Have bytes from ``position`` on: at least ``least``, as far as the tar goes."""
        if position - self.start - self.last > self._jump:
            self._length = self._LEAST
        elif self._length < self._MOST:
            self._length *= 4
        stop = position + (max(least, self._length))
        self.data = data = self.read(position, min(self._size, stop))
        self.start = position
        self.last = len(data) - _BLOCK


class _Batch:
    """Headers of some members, as read; what can be done for many at once waits for ``files``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heads: list[bytes] = []
        self.places: list[int] = []  # where each head stands
        self.sizes: list[int] = []  # bytes of data; -1: belongs to no file of its own
        self.unusual: dict[int, tuple[bytes, int]] = {}  # by head: path and place of first header

    def files(self) -> _Files:
        """Verify all heads, and return the regular files among them."""
        blocks = np.frombuffer(b"".join(self.heads), dtype=np.uint8).reshape(-1, _BLOCK)
        self._verify(blocks)
        sizes = np.array(self.sizes, dtype=np.int64)
        found = np.flatnonzero(sizes >= 0)
        names = blocks[found, :100].copy().view("S100").ravel().tolist()  # without the NULs behind
        prefixed = np.flatnonzero(blocks[found, 345])
        for i in prefixed.tolist():
            prefix = self.heads[found[i]][345:500].partition(b"\x00")[0]
            names[i] = prefix + b"/" + names[i].partition(b"\x00")[0]
        starts = np.array(self.places, dtype=np.int64)[found]
        firsts = starts.copy()
        for head, (path, first) in self.unusual.items():
            i = int(np.searchsorted(found, head))
            names[i] = path
            firsts[i] = first
        return _Files(
            _decoded(names),
            firsts.tolist(),
            starts + _BLOCK,
            sizes[found],
            self._sums(blocks, found),
        )

    def refuse_end(self, position: int, size: int) -> NoReturn:
        """Raise for the last head's member, which ends past the file's end."""
        self._verify(np.frombuffer(b"".join(self.heads), dtype=np.uint8).reshape(-1, _BLOCK))
        name = self.unusual.get(len(self.heads) - 1, (self.heads[-1][:100].rstrip(b"\x00"), 0))[0]
        raise CorruptError(
            f"{self.url}: the member {name.decode('utf-8', 'backslashreplace')!r} at byte "
            f"{self.places[-1]:,} should end at byte {position:,}, but the file has {size:,}: it "
            "is cut, or its header lies; fetch it again"
        )

    def _verify(self, blocks: npt.NDArray[np.uint8]) -> None:
        """Hold the heads against their own checksums."""
        sums = blocks.sum(axis=1, dtype=np.int64)
        sums += 8 * ord(" ") - blocks[:, 148:156].sum(axis=1, dtype=np.int64)
        digits = blocks[:, 148:154].astype(np.int64) - ord("0")
        usual = (digits.max(axis=1) <= 7) & (digits.min(axis=1) >= 0) & (digits @ _WEIGHTS == sums)
        for i in np.flatnonzero(~usual).tolist():
            stored = _octal(self.heads[i][148:156])
            if stored != sums[i] and stored != _signed_sum(self.heads[i]):
                place = self.places[i]
                what = f"has no tar header at byte {place:,}" if place else "is no tar"
                raise CorruptError(
                    f"{self.url} {what} (its checksum is wrong): it is damaged, or cut and written "
                    "over; fetch it again"
                )

    def _sums(self, blocks: npt.NDArray[np.uint8], found: npt.NDArray[np.int64]) -> dict[int, int]:
        """XXH3-64 of the data by file, where the header names it."""
        marked = np.flatnonzero((blocks[found, 297:302] == _MARK).all(axis=1)).tolist()
        sums = {i: _hexadecimal(self.heads[found[i]][302:318]) for i in marked}
        return {i: value for i, value in sums.items() if value is not None}


class _Files(NamedTuple):
    """Regular files of a batch, each list as long as there are files."""

    paths: list[str]
    firsts: list[int]  # where the first header of each stands
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    checksums: dict[int, int]


def _signed_sum(head: bytes) -> int:
    """The checksum as some old tars made it, over signed bytes."""
    values = np.frombuffer(head, dtype=np.int8).astype(np.int64)
    return int(values.sum() - values[148:156].sum()) + 8 * ord(" ")


_Record = dict[str, bytes]


class _Headers:
    """Everything but a plain header: records in front of a member, sizes beyond 8 GiB, links."""

    def __init__(self, window: _Window, url: str) -> None:
        self.common: _Record = {}  # from global PAX records, for all members that follow
        self._window = window
        self._url = url

    def unusual(self, position: int, batch: _Batch) -> int:
        """Read the rest of a member whose first header is the last of ``batch``; return its end.

        Headers that follow are added to the batch, and a path that is not in the last one.
        """
        records: list[_Record] = []
        first = position
        while True:
            head = batch.heads[-1]
            kind = head[156:157]
            length = self.number(head[124:136], position)
            position += _BLOCK
            if kind not in _PAX and kind not in _LONG and kind != _PAX_GLOBAL:
                break
            if len(records) >= _MAX_RECORDS or length > _MAX_RECORD:
                raise self._broken(position - _BLOCK, f"{length:,} bytes of extra header")
            records.append(self._record(kind, self._get(position, length), position))
            position += length + -length % _BLOCK
            batch.sizes.append(-1)
            batch.heads.append(self._get(position, _BLOCK))
            batch.places.append(position)
        path, length, kind = self._member(head, kind, length, position, records)
        regular = kind in _REGULAR
        batch.sizes.append(length if regular else -1)
        if regular:
            batch.unusual[len(batch.heads) - 1] = (path, first)
        return position if kind in _NO_DATA else position + length + -length % _BLOCK

    def _record(self, kind: bytes, body: bytes, position: int) -> _Record:
        if kind == _PAX_GLOBAL:
            self.common.update(self._pax(body, position))
            return {}
        if kind in _PAX:
            own = self._pax(body, position)
            return {**self.common, **own} if self.common else own
        return {_LONG[kind]: body.partition(b"\x00")[0]}

    def _get(self, position: int, length: int) -> bytes:
        window = self._window
        at = position - window.start
        if at < 0 or at + length > len(window.data):
            window.load(position, length)
            at = 0
        found = window.data[at : at + length]
        if len(found) < length:
            raise self._broken(position, "the file ends")
        return found

    def _member(
        self, head: bytes, kind: bytes, length: int, start: int, records: list[_Record]
    ) -> tuple[bytes, int, bytes]:
        """What header and records together say: path, size and type."""
        path = head[:100].partition(b"\x00")[0]
        if kind == b"\x00" and path.endswith(b"/"):
            kind = b"5"
        prefix = head[345:500].partition(b"\x00")[0]
        if prefix and kind not in _GNU_KINDS:
            path = prefix + b"/" + path
        sparse = kind == b"S"
        for record in [self.common, *reversed(records)]:  # what stands first has the last word
            if not record:
                continue
            path = record.get("name", path)
            if "path" in record:
                path = record["path"].rstrip(b"/")
            sparse = sparse or any(name.startswith("GNU.") for name in record)
            if "size" in record:
                if not record["size"].isdigit():
                    raise self._broken(start - _BLOCK, f"size {record['size']!r}")
                length = int(record["size"])
        if sparse:
            raise CorruptError(
                f"{self._url}: {path!r} is stored sparse, so its bytes do not lie in one piece; "
                "tar it again without --sparse"
            )
        return path, length, kind

    def _pax(self, body: bytes, position: int) -> _Record:
        """Records of length, blank, keyword, ``=``, value and line end; those that matter here."""
        found = {}
        at = 0
        while match := _RECORD.match(body, at):
            digits, keyword = match.groups()
            length = int(digits) if len(digits) < 9 else 0
            if length <= match.end() - at or at + length > len(body):
                raise self._broken(position, "a PAX record of a wrong length")
            if keyword in _TELLING or keyword.startswith(_SPARSE):
                found[keyword.decode()] = body[match.end() : at + length - 1]
            at += length
        return found

    def number(self, digits: bytes, position: int) -> int:
        """Read a size: octal, or base 256 as GNU tar writes sizes from 8 GiB on."""
        if digits[0] == 0x80:
            return int.from_bytes(digits[1:], "big")
        found = _octal(digits)
        if found is None:
            raise self._broken(position, f"size {digits!r}")
        return found

    def _broken(self, position: int, what: str) -> CorruptError:
        return CorruptError(
            f"{self._url}: the header at byte {position:,} is broken ({what}); fetch the tar again"
        )


@dataclass
class _Samples:
    """Members as they come, grouped by webdataset's rule: neighbours with one key."""

    url: str
    keys: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    end: int = 0
    num_files: int = 0
    current: set[str] = field(default_factory=set)  # exts of the last sample
    columns: dict[str, _Places] = field(default_factory=dict)

    def add(self, batch: _Batch) -> None:
        """Note the regular files of a batch."""
        if not batch.heads:
            return
        files = batch.files()
        self.num_files += len(files.paths)
        keys, starts, columns, current = self.keys, self.starts, self.columns, self.current
        last = keys[-1] if keys else None
        final = -1
        for i, path in enumerate(files.paths):
            key, dot, ext = path.partition(".")
            if dot and key and "/" not in path:
                ext = ext.lower()
            else:
                key, ext = split_key(path)
            if not key or (path[0] == "_" and is_meta(path)):
                continue
            if key != last:
                keys.append(key)
                starts.append(files.firsts[i])
                current = set()
                last = key
            if ext in current or ext in _RESERVED:
                raise CorruptError(
                    f"{self.url}: the sample {key!r} has two members {ext!r} (the second at byte "
                    f"{files.firsts[i]:,}); webdataset refuses such a tar too: rename one"
                )
            current.add(ext)
            column = columns.get(ext)
            if column is None:
                column = columns[ext] = _Places()
            column.rows.append(len(keys) - 1)
            column.files.append(i)
            final = i
        self.current = current
        if final >= 0:
            size = int(files.sizes[final])
            self.end = int(files.starts[final]) + size + -size % _BLOCK
        for column in columns.values():
            column.gather(files)

    def result(self, ended: bool) -> TarScan:
        """Return all samples as a table."""
        count = len(self.keys)
        exts = sorted(ext for ext in self.columns if ext)
        arrays = [pa.array(self.keys, pa.string())]
        arrays += [self.columns[ext].to_arrow(count) for ext in exts]
        schema = pa.schema([(KEY, pa.string()), *((ext, MEMBER_TYPE) for ext in exts)])
        offsets = np.array([*self.starts, self.end], dtype=np.int64)
        members = sum(len(rows) for c in self.columns.values() for rows in c.done_rows)
        table = pa.Table.from_arrays(arrays, schema=schema)
        return TarScan(table, offsets, ended, self.num_files - members)


class _Places:
    """Members of one ext: those of the batch at hand, and those of batches before."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.files: list[int] = []
        self.done_rows: list[npt.NDArray[np.int64]] = []
        self.done: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        self.checksums: dict[int, int] = {}  # by row

    def gather(self, files: _Files) -> None:
        """Look up offsets and sizes of the batch's members."""
        if not self.rows:
            return
        picked = np.array(self.files, dtype=np.int64)
        self.done_rows.append(np.array(self.rows, dtype=np.int64))
        self.done.append((files.starts[picked], files.sizes[picked]))
        if files.checksums:
            for row, i in zip(self.rows, self.files, strict=True):
                if i in files.checksums:
                    self.checksums[row] = files.checksums[i]
        self.rows, self.files = [], []

    def to_arrow(self, count: int) -> pa.StructArray:
        """A struct column of ``count`` rows, null where there is no member."""
        rows = np.concatenate(self.done_rows)
        absent = np.ones(count, dtype=bool)
        absent[rows] = False
        children = []
        for k in (0, 1):
            full = np.zeros(count, dtype=np.int64)
            full[rows] = np.concatenate([part[k] for part in self.done])
            children.append(pa.array(full, mask=absent))
        sums = np.zeros(count, dtype=np.uint64)
        unknown = np.ones(count, dtype=bool)
        known = list(self.checksums)
        sums[known] = np.array(list(self.checksums.values()), dtype=np.uint64)
        unknown[known] = False
        children.append(pa.array(sums, mask=unknown))
        return pa.StructArray.from_arrays(children, fields=list(MEMBER_TYPE), mask=pa.array(absent))


def _decoded(names: list[bytes]) -> list[str]:
    """Paths as text, all decoded at once; behind a NUL a name field may hold anything."""
    if not names:
        return []
    found = b"\x00".join(names).decode("utf-8", "backslashreplace").split("\x00")
    if len(found) == len(names):
        return found
    return [name.partition(b"\x00")[0].decode("utf-8", "backslashreplace") for name in names]


def _octal(field_: bytes) -> int | None:
    text = field_.partition(b"\x00")[0].strip()
    try:
        found = int(text or b"0", 8)
    except ValueError:
        return None
    return found if found >= 0 else None


def _hexadecimal(text: bytes) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None
