"""A copy of an index's columns on local disk, mapped into memory: any row in microseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from shardkit.index.groups import ArrowFileGroups, Groups
from shardkit.index.scratch import Scratch
from shardkit.index.spool import write_arrow_groups

__all__ = ["MappedGroups", "map_groups"]

_VERSION = "1"


class MappedGroups:
    """The same groups as another source, read from a copy. See ``Groups``."""

    in_memory = True

    def __init__(self, original: Groups, copy: ArrowFileGroups) -> None:
        self.schema = original.schema
        self.counts = original.counts
        self.identity = original.identity
        self._original = original
        self._copy = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedGroups, (self._original, self._copy)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Map, without a copy."""
        return self._copy.read(group, columns)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return a slice of the first group that has rows."""
        return self._original.head(columns, num_rows)

    def file(self, group: int) -> str:
        """URL of the original's file."""
        return self._original.file(group)


def map_groups(groups: Groups, columns: Sequence[str], scratch: Scratch) -> MappedGroups:
    """Copy these columns of all groups, one group at a time, unless the copy is there already."""
    name = xxh3_128_hexdigest(repr((_VERSION, groups.identity, list(columns))).encode())
    schema = pa.schema([groups.schema.field(column) for column in columns]).remove_metadata()

    def tables() -> Iterator[pa.Table]:
        for group in range(len(groups.counts)):
            yield groups.read(group, columns)

    path = scratch.keep(f"{name}.mapped", lambda part: write_arrow_groups(part, schema, tables()))
    copy = ArrowFileGroups(path, groups.file(0), groups.identity, groups.counts, schema)
    return MappedGroups(groups, copy)
