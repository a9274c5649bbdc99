"""Several sources of groups as one: files of different kinds in one index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from shardkit.index.groups import Groups
from shardkit.index.spool import conform, unify

__all__ = ["join_groups"]


def join_groups(parts: Sequence[Groups]) -> Groups:
    """Return the groups of all parts in order; types that don't meet become text."""
    return parts[0] if len(parts) == 1 else JoinedGroups(parts)


class JoinedGroups:
    """See ``Groups``."""

    def __init__(self, parts: Sequence[Groups]) -> None:
        self._parts = parts
        self._stops = np.cumsum([len(part.counts) for part in parts])
        self.schema: pa.Schema = unify([part.schema for part in parts])
        self.counts: npt.NDArray[np.int64] = np.concatenate([part.counts for part in parts])
        self.identity = xxh3_128_hexdigest("".join(part.identity for part in parts).encode())
        self.in_memory = all(part.in_memory for part in parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedGroups, (self._parts,)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read from the part that has the group."""
        part, within = self._find(group)
        return self._conform(part.read(within, self._own(part, columns)), columns)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Read from the first part."""
        part = next((p for p in self._parts if p.counts.sum()), self._parts[0])
        return self._conform(part.head(self._own(part, columns), num_rows), columns)

    def file(self, group: int) -> str:
        """URL of the group's file."""
        part, within = self._find(group)
        return part.file(within)

    def _find(self, group: int) -> tuple[Groups, int]:
        number = int(np.searchsorted(self._stops, group, side="right"))
        before = int(self._stops[number - 1]) if number else 0
        return self._parts[number], group - before

    def _own(self, part: Groups, columns: Sequence[str]) -> list[str]:
        own = set(part.schema.names)
        return [name for name in columns if name in own]

    def _conform(self, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        return conform(table, pa.schema([self.schema.field(name) for name in columns]))
