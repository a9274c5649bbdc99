"""A copy of an index's columns on local disk, mapped into memory: any row in microseconds."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from shardkit.errors import CacheError
from shardkit.index.columns import URL_COLUMN
from shardkit.index.groups import ArrowFileGroups, Groups
from shardkit.index.scratch import Scratch
from shardkit.index.spool import write_arrow_groups
from shardkit.index.tar_groups import PackedGroups
from shardkit.storage.cache import Cache, Sink
from shardkit.storage.entries import Entry

__all__ = ["MappedGroups", "map_groups"]

_VERSION = "2"
_READERS = 16
"""Groups read at once: far sidecars take ~30 ms each, whatever their size."""
_ROWS_AHEAD = 1 << 18
"""Rows of groups that are read ahead: ~30 MB."""
_FEW_BYTES = 1 << 20
"""Of a copy that each process keeps in memory: some 10,000 rows. A file would take room in a small
cache from what it is there for."""


class MappedGroups:
    """The same groups as another source, read from a copy. See ``Groups``.

    Where it is unpickled and the copy is not, on another machine, the copy is made again.

    Attributes:
        original: what was copied.
    """

    in_memory = True

    def __init__(
        self,
        original: Groups,
        copy: ArrowFileGroups | TablesOfGroups,
        columns: Sequence[str],
        place: Cache | Scratch,
    ) -> None:
        self.schema = original.schema
        self.counts = original.counts
        self.identity = original.identity
        self.original = original
        self._copy = copy
        self._columns = tuple(columns)
        self._place = place
        self._unchanged: set[int] = set()  # groups whose tar was looked at, once a process

    def __reduce__(self) -> tuple[Any, ...]:
        return map_groups, (self.original, self._columns, self._place)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Map, without a copy but for texts that the source has as dictionaries."""
        if not any(pa.types.is_dictionary(self.schema.field(name).type) for name in columns):
            return self._copy.read(group, columns)
        table = self._copy.read(group, [name for name in columns if name != URL_COLUMN])
        found = []
        for name in columns:
            kind = self.schema.field(name).type
            if name == URL_COLUMN:
                self._check_unchanged(group)
                codes = pa.array(np.zeros(table.num_rows, dtype=np.int32))
                found.append(pa.DictionaryArray.from_arrays(codes, pa.array([self.file(group)])))
            elif pa.types.is_dictionary(kind):
                found.append(table.column(name).cast(kind))
            else:
                found.append(table.column(name))
        return pa.Table.from_arrays(found, names=list(columns))

    def _check_unchanged(self, group: int) -> None:
        """The copy may be older than the tar, from which whoever wants its URL will read."""
        if isinstance(self.original, PackedGroups) and group not in self._unchanged:
            self.original.check_unchanged(group)
            self._unchanged.add(group)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return a slice of the first group that has rows."""
        return self.original.head(columns, num_rows)

    def file(self, group: int) -> str:
        """URL of the original's file."""
        return self.original.file(group)


def map_groups(groups: Groups, columns: Sequence[str], place: Cache | Scratch) -> MappedGroups:
    """Copy these columns of all groups, a few at a time, unless the copy is there already.

    Args:
        groups: what to copy.
        columns: of it.
        place: a cache keeps the copy as an entry, pinned as long as these groups are in use (a copy
            of less than a megabyte is kept in memory, by each process); scratch for good.

    Raises:
        CacheError: the cache has no room for it.
    """
    name = xxh3_128_hexdigest(repr((_VERSION, groups.identity, list(columns))).encode())
    copied = [column for column in columns if column != URL_COLUMN]  # a tar's is that of its group
    schema = pa.schema([_plain(groups.schema.field(column)) for column in copied])

    def on_disk(path: str) -> ArrowFileGroups:
        return ArrowFileGroups(path, groups.file(0), groups.identity, groups.counts, schema)

    if isinstance(place, Scratch):
        path = place.keep(
            f"{name}.mapped",
            lambda part: write_arrow_groups(part, schema, _read_ahead(groups, copied)),
        )
        return MappedGroups(groups, on_disk(path), columns, place)
    key = f"the copy of {groups.file(0)} for shuffle='global' ({name})"
    entry = place.find(key)
    if entry is None and (few := _few(groups, copied)) is not None:
        return MappedGroups(groups, few, columns, place)
    if entry is None:
        entry = _copy_into(place, key, schema, lambda: _read_ahead(groups, copied))
    copy = MappedGroups(groups, on_disk(entry.path), columns, place)
    weakref.finalize(copy, _unpin, os.getpid(), entry).atexit = False
    return copy


def _copy_into(
    cache: Cache, key: str, schema: pa.Schema, tables: Callable[[], Iterator[pa.Table]]
) -> Entry:
    def fill(sink: Sink) -> None:
        write_arrow_groups(pa.PythonFile(_SinkFile(sink), mode="w"), schema, tables())

    try:
        return cache.open(key, fill, room="or raise")
    except BlockingIOError as error:
        raise CacheError(
            f"there is no room for {key} in {cache.folder}, where everything is in use: raise "
            "cache_limit, or use shuffle='buffer', which needs no copy"
        ) from error


def _few(groups: Groups, columns: Sequence[str]) -> TablesOfGroups | None:
    """These columns of all groups, if that is little."""
    tables: list[pa.Table] = []
    num_bytes = 0
    with contextlib.closing(_read_ahead(groups, columns)) as ahead:
        for table in ahead:
            tables.append(table)
            num_bytes += table.nbytes
            if num_bytes > _FEW_BYTES:
                return None
    return TablesOfGroups(tables)


def _unpin(pid: int, entry: Entry) -> None:
    """Let the copy go, but not for the process that this one was forked from."""
    if os.getpid() == pid:
        entry.close()


@dataclass(frozen=True, slots=True)
class TablesOfGroups:
    """A copy in memory, a table a group."""

    tables: Sequence[pa.Table]

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """See ``Groups``."""
        return self.tables[group].select(list(columns))


@dataclass(frozen=True, slots=True)
class _SinkFile:
    """A place in the cache as a file, as far as Arrow wants one to write to."""

    sink: Sink
    closed: bool = False

    def write(self, data: Any) -> int:
        self.sink.write(memoryview(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Who gave the place finishes it."""


def _read_ahead(groups: Groups, columns: Sequence[str]) -> Generator[pa.Table, None, None]:
    """All groups in order; where they are small, many are on their way at once."""
    counts = groups.counts.tolist()
    ahead: deque[Future[pa.Table]] = deque()
    num_rows = first = 0
    with ThreadPoolExecutor(_READERS, "shardkit-map") as pool:
        for group, count in enumerate(counts):
            while ahead and (len(ahead) == _READERS or num_rows + count > _ROWS_AHEAD):
                yield ahead.popleft().result()
                num_rows -= counts[first]
                first += 1
            ahead.append(pool.submit(groups.read, group, columns))
            num_rows += count
        while ahead:
            yield ahead.popleft().result()


def _plain(field: pa.Field) -> pa.Field:
    """The field of the copy: an Arrow file can't hold a dictionary that differs between groups."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, kind)
