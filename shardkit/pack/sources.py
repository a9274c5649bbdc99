"""What each member of index rows holds: near bytes told where they are, far ones fetched ahead.

Data's path: ``MemberColumn`` (URLs, ranges, values) → ``Held``, row by row. What can't be had is
a value too, so that one bad row does not end the rows after it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from shardkit.errors import (
    ConfigError,
    CorruptError,
    IndexDataError,
    NotFoundError,
    ShardkitError,
    StoreError,
    TransientError,
)
from shardkit.format.tar import MAX_MEMBER_BYTES
from shardkit.index.rows import MemberColumn, Rows
from shardkit.pack.ranges import Stream, Stretch, far_ranges, near_ranges
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["Held", "RowError", "SourceBrokeError", "Stream", "Stretch", "held_members", "marked"]

_NUM_THREADS = 32  # requests under way per worker; a bucket serves ~50 small objects/s to each
_HELD_BYTES = 2 << 20  # of one fetched member: twice as many of them as threads stay in 128 MB

Kind = Literal["missing", "empty", "unreadable", "corrupt", "too_large", "no_members"]


class SourceBrokeError(Exception):
    """A stream broke off, as opposed to what it was being written to."""

    def __init__(self, error: ShardkitError) -> None:
        super().__init__(str(error))
        self.error = error


def marked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, their own errors raised as ``SourceBrokeError``."""
    try:
        yield from chunks
    except (StoreError, CorruptError) as error:
        raise SourceBrokeError(error) from error


Held = bytes | str | Stretch | Stream | ShardkitError | None
"""A member: its bytes, the path of the local file with them, a stretch of one, a stream, or why it
can't be had; None where the row has no such member."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row can't be packed, for good; a failing network is raised instead."""

    kind: Kind
    url: str
    cause: ShardkitError | None = None

    @classmethod
    def of(cls, url: str, error: ShardkitError) -> RowError:
        """The row error for the error of a member.

        Raises:
            TransientError: the failure is the network's, which says nothing of the row.
        """
        if isinstance(error, TransientError):
            raise error
        if isinstance(error, NotFoundError):
            return cls("missing", url, error)
        return cls("corrupt" if isinstance(error, CorruptError) else "unreadable", url, error)

    @classmethod
    def too_large(cls, url: str, size: int) -> RowError:
        """The row error of a member that no tar of the dialect holds."""
        text = f"{url} has {size:,} bytes; a shard holds members below {MAX_MEMBER_BYTES:,} (8 GiB)"
        return cls("too_large", url, ConfigError(text))

    def as_error(self, key: str) -> ShardkitError:
        """What to raise for the row under ``on_error="raise"``."""
        remedy = "mend the index or the file, or skip such rows (--on-error skip)"
        match self.kind:
            case "no_members":
                return IndexDataError(f"the row with key {key!r} names no file at all; {remedy}")
            case "missing":
                return NotFoundError(f"{self.url} does not exist (key {key!r}); {remedy}")
            case "empty":
                return StoreError(f"{self.url} is empty: zero bytes (key {key!r}); {remedy}")
            case "too_large":
                return ConfigError(f"{self.cause} (key {key!r}); split the file, or {remedy}")
            case "corrupt":
                remedy = (
                    "verify and repair its shard (shardkit verify), or leave the sample out "
                    "(pack: --on-error skip; reshard: --exclude)"
                )
                return CorruptError(f"{self.url} is damaged (key {key!r}): {self.cause}; {remedy}")
        return StoreError(f"{self.url} can't be read (key {key!r}): {self.cause}; {remedy}")


def held_members(rows: Rows, store: Store) -> Iterator[tuple[Held, ...]]:
    """What each row's members hold, in the order of rows and, within a row, of columns."""
    if not rows.members:
        yield from itertools.repeat((), len(rows))
        return
    are_near = all(_are_paths(column.urls) or _are_local(column.urls) for column in rows.members)
    if all(column.starts is not None for column in rows.members):
        yield from near_ranges(rows) if are_near else far_ranges(rows, store)
    elif are_near:
        yield from zip(*(_near(column, store) for column in rows.members), strict=True)
    else:
        yield from _far(rows, store)


def _are_paths(urls: Iterable[str | None]) -> bool:
    """Whether all are bare paths: one look at all of them costs less than one look at each."""
    together = "\n".join(filter(None, urls))
    return "://" not in together and "::" not in together


def _are_local(urls: Iterable[str | None]) -> bool:
    return all(is_local(url) for url in urls if url)


def _near(column: MemberColumn, store: Store) -> Iterator[Held]:
    """Members on this machine; a whole file is left to the tar's writer to read."""
    values = column.values or itertools.repeat(None)
    if column.starts is None:
        if column.values is None and _are_paths(column.urls):
            yield from column.urls
            return
        for url, value in zip(column.urls, values, strict=False):
            yield value if url is None else local_path(url)
        return
    ranges = zip(column.starts, column.sizes or (), strict=True)
    for url, value, (start, size) in zip(column.urls, values, ranges, strict=False):
        yield value if url is None else _fetched(store, url, start, start + size)


def _far(rows: Rows, store: Store) -> Iterator[tuple[Held, ...]]:
    """Members behind URLs, several requests under way at once.

    Not by ``fetch_in_order``, which gives whole objects: here nobody may know how large they are,
    so each request holds a first part of its object and hands the open stream on.
    """
    with ThreadPoolExecutor(_NUM_THREADS, "shardkit-pack") as pool:
        under_way: deque[list[Future[Held]]] = deque()
        num_under_way = 0
        try:
            for row in range(len(rows)):
                row_members = [pool.submit(_member, column, row, store) for column in rows.members]
                under_way.append(row_members)
                num_under_way += len(row_members)
                if num_under_way >= 2 * _NUM_THREADS:
                    first = under_way.popleft()
                    num_under_way -= len(first)
                    yield tuple(future.result() for future in first)
            while under_way:
                yield tuple(future.result() for future in under_way.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _member(column: MemberColumn, row: int, store: Store) -> Held:
    url = column.urls[row]
    if url is None:
        return None if column.values is None else column.values[row]
    if column.starts is not None and column.sizes is not None:
        start = column.starts[row]
        return _fetched(store, url, start, start + column.sizes[row])
    return local_path(url) if is_local(url) else _fetched(store, url)


def _fetched(store: Store, url: str, start: int = 0, stop: int | None = None) -> Held:
    """Bytes of an object; the rest of a large one comes as it is written."""
    size = None if stop is None else stop - start
    try:
        if size is not None and size <= _HELD_BYTES:
            return store.get_range(url, start, start + size)
        chunks = store.get_chunks(url, start, stop)
        held = [b""]
        num_bytes = 0
        for chunk in chunks:
            held.append(chunk)
            num_bytes += len(chunk)
            if num_bytes > _HELD_BYTES:
                return Stream(itertools.chain([b"".join(held)], chunks), size)
        return b"".join(held)
    except (StoreError, CorruptError) as error:
        return error
