"""A copy of an index's columns on local disk, mapped into memory: any row in microseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from shardkit.index.columns import URL_COLUMN
from shardkit.index.groups import ArrowFileGroups, Groups
from shardkit.index.scratch import Scratch
from shardkit.index.spool import write_arrow_groups
from shardkit.index.tar_groups import PackedGroups

__all__ = ["MappedGroups", "map_groups"]

_VERSION = "2"
_READERS = 16
"""Groups read at once: far sidecars take ~30 ms each, whatever their size."""
_ROWS_AHEAD = 1 << 18
"""Rows of groups that are read ahead: ~30 MB."""


class MappedGroups:
    """The same groups as another source, read from a copy. See ``Groups``.

    Where it is unpickled and the copy is not, on another machine, the copy is made again.
    """

    in_memory = True

    def __init__(
        self, original: Groups, copy: ArrowFileGroups, columns: Sequence[str], scratch: Scratch
    ) -> None:
        self.schema = original.schema
        self.counts = original.counts
        self.identity = original.identity
        self._original = original
        self._copy = copy
        self._columns = tuple(columns)
        self._scratch = scratch
        self._unchanged: set[int] = set()  # groups whose tar was looked at, once a process

    def __reduce__(self) -> tuple[Any, ...]:
        return map_groups, (self._original, self._columns, self._scratch)

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
        if isinstance(self._original, PackedGroups) and group not in self._unchanged:
            self._original.check_unchanged(group)
            self._unchanged.add(group)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return a slice of the first group that has rows."""
        return self._original.head(columns, num_rows)

    def file(self, group: int) -> str:
        """URL of the original's file."""
        return self._original.file(group)


def map_groups(groups: Groups, columns: Sequence[str], scratch: Scratch) -> MappedGroups:
    """Copy these columns of all groups, a few at a time, unless the copy is there already."""
    name = xxh3_128_hexdigest(repr((_VERSION, groups.identity, list(columns))).encode())
    copied = [column for column in columns if column != URL_COLUMN]  # a tar's is that of its group
    schema = pa.schema([_plain(groups.schema.field(column)) for column in copied])

    path = scratch.keep(
        f"{name}.mapped",
        lambda part: write_arrow_groups(part, schema, _read_ahead(groups, copied)),
    )
    copy = ArrowFileGroups(path, groups.file(0), groups.identity, groups.counts, schema)
    return MappedGroups(groups, copy, columns, scratch)


def _read_ahead(groups: Groups, columns: Sequence[str]) -> Iterator[pa.Table]:
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
