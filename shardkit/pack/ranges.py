"""Members that lie inside tars: near ones read into their place, far ones fetched ahead.

Data's path: ``Rows`` whose members are byte ranges → per row, per column: a ``Stretch`` of an open
local file; or the bytes, cut out of a request that covers neighbouring members; or a ``Stream``.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from shardkit.errors import CorruptError, ShardkitError
from shardkit.format.tar import checksum
from shardkit.index.rows import MemberColumn, Rows
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.fetch import fetch_in_order
from shardkit.storage.protocol import Store
from shardkit.storage.ranges import COALESCE_GAP
from shardkit.storage.requests import Request
from shardkit.storage.urls import local_path

__all__ = ["OpenFiles", "Stream", "Stretch", "far_ranges", "near_ranges"]

_OPEN_FILES = 256
"""Tars open at a time: a shuffled pack reads from all of them in turn, and the usual limit of a
process is 1,024."""

_HINTS = 64
"""Members that the kernel is told of before they are read, so that a disk has as many reads under
way as its queue takes (NVMe: 64 and more; a cloud volume: 16 to 64)."""

_SPAN_BYTES = 4 << 20
"""Of one request for neighbouring members: 50 ms at the ~85 MB/s of one stream."""

_HELD_BYTES = 16 << 20
"""Of a member that is fetched ahead; a larger one is streamed when its turn comes."""

_LOOKAHEAD_BYTES = 96 << 20
"""Of what is fetched ahead: 32 requests of 3 MB, or ~1,000 members of 100 KB."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A member inside a local file, to be read from there into its place.

    ``fd`` is open until the next row is asked for.
    """

    fd: int
    url: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A member too large to be held."""

    chunks: Iterator[bytes]
    size: int | None


class OpenFiles:
    """Descriptors of local files, the last ``_OPEN_FILES`` that were asked for."""

    def __init__(self) -> None:
        self._fds: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def get(self, url: str) -> int:
        """The descriptor of a file, open until many others were asked for.

        Raises:
            StoreError: it can't be opened.
        """
        fd = self._fds.get(url)
        if fd is not None:
            self._fds.move_to_end(url)
            return fd
        with map_os_errors("read", url):
            fd = os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)
        self._fds[url] = fd
        if len(self._fds) > _OPEN_FILES:
            os.close(self._fds.popitem(last=False)[1])
        return fd


def near_ranges(rows: Rows) -> Iterator[tuple[Stretch | bytes | ShardkitError | None, ...]]:
    """What each row's members are, for rows whose members are ranges of local files."""
    with OpenFiles() as files:
        ahead: deque[list[tuple[int, str, int, int] | bytes | None]] = deque()
        for row in itertools.chain(_places(rows), itertools.repeat(None, _HINTS)):
            if row is not None:
                ahead.append(row)
                _hint(files, row)
                if len(ahead) <= _HINTS:
                    continue
            if not ahead:
                return
            yield tuple(_stretch(files, place) for place in ahead.popleft())


_Member = tuple[int, str, int, int]
"""Number of its column, URL, start, size."""


def _places(rows: Rows) -> Iterator[list[_Member | bytes | None]]:
    """Row by row, the range of each member, or its value."""
    columns = [_column_places(number, column) for number, column in enumerate(rows.members)]
    for row in zip(*columns, strict=True):
        yield list(row)


def _column_places(number: int, column: MemberColumn) -> Iterator[_Member | bytes | None]:
    starts, sizes = column.starts or (), column.sizes or ()
    values = column.values or itertools.repeat(None)
    for url, start, size, value in zip(column.urls, starts, sizes, values, strict=False):
        yield value if url is None else (number, url, start, size)


def _hint(files: OpenFiles, row: Sequence[_Member | bytes | None]) -> None:
    """Have the kernel start to read a row's members."""
    members = [member for member in row if isinstance(member, tuple)]
    if not members:
        return
    url = members[0][1]
    start = min(member[2] for member in members if member[1] == url)
    stop = max(member[2] + member[3] for member in members if member[1] == url)
    try:
        os.posix_fadvise(files.get(url), start, stop - start, os.POSIX_FADV_WILLNEED)
    except ShardkitError:
        return  # its own turn tells


def _stretch(
    files: OpenFiles, place: _Member | bytes | None
) -> Stretch | bytes | ShardkitError | None:
    if not isinstance(place, tuple):
        return place
    _, url, start, size = place
    try:
        return Stretch(files.get(url), url, start, size)
    except ShardkitError as error:
        return error


@dataclass(slots=True)
class _Span:
    """One request for members that lie near each other, in rows that follow each other."""

    url: str
    start: int
    stop: int
    members: list[tuple[int, int, int | None]] = field(default_factory=list)
    """Start, size and checksum of each, in the order in which they are wanted."""

    def takes(self, url: str, start: int, stop: int) -> bool:
        """Whether a member may come with this request."""
        near = 0 <= start - self.stop <= COALESCE_GAP
        return url == self.url and near and stop - self.start <= _SPAN_BYTES

    def check(self, data: bytes) -> None:
        """Hold the bytes against the members' checksums.

        Raises:
            CorruptError: one fails it.
        """
        view = memoryview(data)
        for start, size, expected in self.members:
            first = start - self.start
            if expected is not None and checksum(view[first : first + size]) != expected:
                raise CorruptError(
                    f"{self.url}: the member at offset {start:,} fails its checksum, fetched "
                    "several times"
                )


def far_ranges(
    rows: Rows, store: Store
) -> Iterator[tuple[bytes | Stream | ShardkitError | None, ...]]:
    """What each row's members are, for rows whose members are ranges of objects behind URLs.

    Members of a sample, and of samples that follow each other here and in a shard, are one
    request; many requests are under way at once. What fails its checksum is fetched again.
    """
    spans: deque[_Span] = deque()

    def requests() -> Iterator[Request]:
        for span in _spans(rows):
            spans.append(span)
            yield Request(span.url, start=span.start, stop=span.stop, version="", check=span.check)

    with fetch_in_order(store, requests(), lookahead_bytes=_LOOKAHEAD_BYTES) as results:
        span, data, num_left = _Span("", 0, 0), b"", 0
        error: Exception | None = None
        for row in _places(rows):
            held: list[bytes | Stream | ShardkitError | None] = [
                None if isinstance(member, tuple) else member for member in row
            ]
            for column, url, start, size in _in_shard_order(row):
                if not size:
                    held[column] = b""
                elif size > _HELD_BYTES:
                    held[column] = Stream(store.get_chunks(url, start, start + size), size)
                else:
                    if not num_left:
                        result = next(results)
                        span, data, error = spans.popleft(), result.data, result.error
                        num_left = len(span.members)
                    num_left -= 1
                    first = start - span.start
                    held[column] = data[first : first + size] if error is None else _own(error)
            yield tuple(held)


def _spans(rows: Rows) -> Iterator[_Span]:
    """The requests for all members that are neither empty nor large, in the order of rows."""
    span: _Span | None = None
    for number, row in enumerate(_places(rows)):
        for column, url, start, size in _in_shard_order(row):
            if not 0 < size <= _HELD_BYTES:
                continue
            if span is None or not span.takes(url, start, start + size):
                if span is not None:
                    yield span
                span = _Span(url, start, start)
            sums = rows.members[column].checksums
            span.members.append((start, size, None if sums is None else sums[number]))
            span.stop = start + size
    if span is not None:
        yield span


def _in_shard_order(row: Sequence[_Member | bytes | None]) -> list[_Member]:
    """The members of a row that are ranges, as they lie in their shard."""
    members = [member for member in row if isinstance(member, tuple)]
    return sorted(members, key=lambda member: (member[1], member[2]))


def _own(error: Exception) -> ShardkitError:
    if isinstance(error, ShardkitError):
        return error
    raise error
