"""The bytes that index rows name, row by row, fetched ahead; what can't be had is a value."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shardkit.errors import IndexDataError, NotFoundError, StoreError, TransientError
from shardkit.format.sniff import sniff_ext
from shardkit.index.rows import MemberColumn, Rows
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["LARGE", "Content", "RowError", "read_members"]

LARGE = 32 << 20
"""Bytes from which on a member is streamed: eight of them in flight stay within 256 MB."""

_THREADS = 32  # requests in flight per worker, for members that lie behind a URL

Kind = Literal["missing", "empty", "unreadable", "no_members"]


class Content(NamedTuple):
    """One member of a sample, ready to be written."""

    ext: str
    data: bytes | Iterator[bytes]
    """The bytes, or the chunks of a large member."""
    url: str


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row can't be packed, for good; a failing network is raised instead."""

    kind: Kind
    url: str
    cause: BaseException | None = None

    @classmethod
    def of(cls, url: str, error: StoreError) -> RowError:
        """The row error for a store's error.

        Raises:
            TransientError: the failure is the network's, which says nothing of the row.
        """
        if isinstance(error, TransientError):
            raise error
        kind: Kind = "missing" if isinstance(error, NotFoundError) else "unreadable"
        return cls(kind, url, error)

    def as_error(self, key: str) -> StoreError | IndexDataError:
        """What to raise for the row under ``on_error="raise"``."""
        remedy = "mend the index or the file, or skip such rows (--on-error skip)"
        if self.kind == "no_members":
            return IndexDataError(f"the row with key {key!r} names no file at all; {remedy}")
        if self.kind == "missing":
            return NotFoundError(f"{self.url} does not exist (key {key!r}); {remedy}")
        if self.kind == "empty":
            return StoreError(f"{self.url} is empty: zero bytes (key {key!r}); {remedy}")
        return StoreError(f"{self.url} can't be read (key {key!r}): {self.cause}; {remedy}")


def read_members(rows: Rows, store: Store) -> Iterator[list[Content] | RowError]:
    """The contents of each row in turn, or the row's error.

    Raises:
        TransientError: a store failed past all retries.
    """
    members = [(column, column.names) for column in rows.members]
    contents = _fetched(rows.members, len(rows.keys), store)
    for row in range(len(rows.keys)):
        sample: list[Content] = []
        failure: RowError | None = None
        for column, names in members:
            if not column.has(row):
                continue
            url = column.urls[row] or ""
            data = next(contents)
            if isinstance(data, StoreError):
                failure = failure or RowError.of(url, data)
            elif not data and url:
                failure = failure or RowError("empty", url)
            else:
                if not isinstance(data, bytes):
                    head, data = _peeked(data)
                else:
                    head = data
                sample.append(Content(names[row] or column.name_for(sniff_ext(head)), data, url))
        yield failure or sample or RowError("no_members", "")


def _fetched(
    columns: tuple[MemberColumn, ...], num_rows: int, store: Store
) -> Iterator[bytes | Iterator[bytes] | StoreError]:
    """What each member holds, row by row and column by column."""
    requests = ((column, row) for row in range(num_rows) for column in columns if column.has(row))
    if all(url is None or is_local(url) for column in columns for url in _some(column.urls)):
        for column, row in requests:
            yield _read(column, row, store)
        return
    with ThreadPoolExecutor(_THREADS, "shardkit-pack") as pool:
        pending: deque[Future[bytes | Iterator[bytes] | StoreError]] = deque()
        try:
            for column, row in requests:
                pending.append(pool.submit(_read, column, row, store))
                if len(pending) >= 2 * _THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _some(urls: list[str | None]) -> list[str | None]:
    """The first and the last URL: a column is either local or remote."""
    return [urls[0], urls[-1]] if urls else []


def _read(column: MemberColumn, row: int, store: Store) -> bytes | Iterator[bytes] | StoreError:
    url = column.urls[row]
    if url is None:
        values = column.values or []
        return values[row] or b""
    try:
        if column.starts is not None and column.sizes is not None:
            start = column.starts[row]
            return _ranged(store, url, start, start + column.sizes[row])
        if is_local(url):
            return _local(url, store)
        return store.get(url)
    except StoreError as error:
        return error


def _ranged(store: Store, url: str, start: int, stop: int) -> bytes | Iterator[bytes]:
    if stop - start > LARGE:
        return store.get_chunks(url, start, stop)
    return store.get_range(url, start, stop)


def _local(url: str, store: Store) -> bytes | Iterator[bytes]:
    """A local file in three system calls: most packs read millions of small ones."""
    try:
        fd = os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return store.get(url)  # fails again, with the store's own words
    try:
        size = os.fstat(fd).st_size
        if size <= LARGE:
            data = os.read(fd, size + 1)
            if len(data) == size:
                return data
    except OSError:
        return store.get(url)
    finally:
        os.close(fd)
    return store.get_chunks(url) if size > LARGE else store.get(url)


def _peeked(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first chunk, and all of them again."""
    first = next(chunks, b"")
    return first, itertools.chain([first], chunks)
