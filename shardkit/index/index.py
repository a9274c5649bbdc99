"""The index: findings over row groups, read in batches of ``Rows``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from shardkit.errors import ConfigError
from shardkit.format.arrays import from_numbers
from shardkit.format.sidecar import KEY
from shardkit.index.columns import FileColumn, to_list
from shardkit.index.duplicates import UNIQUE_KEYS, KeyBatches, check_unique, repeats_of
from shardkit.index.findings import Findings
from shardkit.index.groups import Groups
from shardkit.index.kept import Kept
from shardkit.index.mapped import MappedGroups, map_groups
from shardkit.index.names import folder_of
from shardkit.index.rows import MemberColumn, RowError, Rows
from shardkit.index.scratch import Scratch
from shardkit.index.selection import Selection
from shardkit.index.tar_groups import PackedGroups, TarGroups
from shardkit.storage.cache import Cache

__all__ = ["Index"]

_KEPT_BYTES = 128 << 20
"""Decoded groups kept per process, so that a shuffled order, which looks at neighbouring groups
in turn, decodes each once: 30 groups of 65,536 rows of ~64 bytes."""
_FEW_ROWS = 1 << 17  # whose keys are looked at in 30 ms
_KEY_DIGITS = 9  # of made keys: a billion rows before they grow longer


class _Group(NamedTuple):
    """A group's columns, and which of its rows repeat the key of an earlier one."""

    table: pa.Table
    repeats: Mapping[int, int] = {}


class Index:
    """Rows of any source: how many there are, in which groups, and each as key, members, metadata.

    Made by ``open_index``. Thread-safe; picklable (files are opened again where it arrives).
    Nothing but counts is held; ``read`` and ``take`` decode, and keep the last few groups.

    Attributes:
        source: what was opened, for messages.
        findings: which column is what; ``findings.describe()`` prints it.
        counts: int64 [num_groups]; rows per group, filtered ones not counted.
        fingerprint: identity of the contents, the findings and the filter, the same in every
            process and run, another when any of them changes.
        selection: the rows that a filter left; None where all rows are.
        scratch: where what was converted or filtered is kept.
    """

    def __init__(
        self,
        source: str,
        groups: Groups,
        findings: Findings,
        *,
        selection: Selection | None = None,
        scratch: Scratch,
    ) -> None:
        self.source = source
        self.findings = findings
        self.selection = selection
        self._groups = groups
        self.scratch = scratch
        self._raw_counts = groups.counts
        self.counts: npt.NDArray[np.int64] = (
            self._raw_counts if selection is None else selection.counts
        )
        self._metadata_sources = _metadata_sources(findings)
        self.fingerprint = _fingerprint(groups, findings, selection)
        self._kept: Kept[_Group] = Kept(_KEPT_BYTES, lambda group: int(group.table.nbytes))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.source, self._groups, self.findings, self.selection, self.scratch)

    def __repr__(self) -> str:
        return f"<Index of {self.num_rows:,} rows in {self.num_groups:,} groups: {self.source}>"

    def __len__(self) -> int:
        return self.num_rows

    @property
    def num_rows(self) -> int:
        """Rows in all groups."""
        return int(self.counts.sum())

    @property
    def num_groups(self) -> int:
        """Groups, empty ones included."""
        return len(self.counts)

    @property
    def key_column(self) -> str | None:
        """Name of the key column among the metadata; None where keys are made from row numbers."""
        if self.findings.key is None:
            return None
        return self._metadata_sources_inverse().get(self.findings.key)

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Names of ``Rows.metadata``'s columns."""
        return tuple(self._metadata_sources)

    @property
    def metadata_schema(self) -> pa.Schema:
        """Schema of ``Rows.metadata``."""
        return pa.schema(
            [
                pa.field(name, self._groups.schema.field(source).type)
                for name, source in self._metadata_sources.items()
            ]
        )

    def read(self, group: int, start: int = 0, stop: int | None = None) -> Rows:
        """Return rows ``[start, stop)`` of a group, counted among those that a filter left.

        Raises:
            RowError: the key of one of these rows is null, or stands earlier in the group, or the
                row has two members of one name.
        """
        count = int(self.counts[group])
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise ConfigError(f"rows {start} to {stop} of group {group}, which has {count}")
        if self.selection is not None:
            return self._picked(group, self.selection.rows(group)[start:stop])
        read = self._group(group)
        return self._rows(
            read._replace(table=read.table.slice(start, stop - start)), group, range(start, stop)
        )

    def take(self, group: int, rows: npt.NDArray[np.int64]) -> Rows:
        """Return these rows of a group, in this order.

        Raises:
            RowError: as of ``read``.
        """
        picked = np.asarray(rows, dtype=np.int64)
        count = int(self.counts[group])
        if len(picked) and not (picked.min() >= 0 and picked.max() < count):
            raise ConfigError(
                f"row {picked.min()} or {picked.max()} of group {group}: it has {count}"
            )
        if self.selection is not None:
            picked = self.selection.rows(group)[picked]
        return self._picked(group, picked)

    def batches(self, num_rows: int = 8_192) -> Iterator[Rows]:
        """Yield all rows in order, at most ``num_rows`` at a time."""
        for group in range(self.num_groups):
            for start in range(0, int(self.counts[group]), num_rows):
                yield self.read(group, start, min(start + num_rows, int(self.counts[group])))

    def describe_row(self, group: int, row: int) -> str:
        """Return words for a message: ``row 17 of /data/x.parquet`` (from 0, over all groups)."""
        if self.selection is not None:
            row = int(self.selection.rows(group)[row])
        return self._row_words(group, row)

    def describe(self) -> str:
        """Return the findings for people to read, with the number of rows."""
        filtered = ""
        if self.selection is not None:
            filtered = f" of {int(self._raw_counts.sum()):,}"
        rows = "row" if not filtered and self.num_rows == 1 else "rows"
        return f"{self.num_rows:,}{filtered} {rows} in {self.source}\n{self._described()}"

    def _described(self) -> str:
        return replace(self.findings, metadata=self.metadata_columns).describe()

    def mapped(self, cache: Cache | None = None) -> Index:
        """Return the same index over a copy of its columns on local disk, mapped into memory.

        For orders that jump between groups (``"global"``): a row then costs microseconds instead
        of a group's decoding. The copy is made once a node, a group at a time.

        Args:
            cache: where it is kept, under its limit and in use as long as the index is; by default
                it stays in scratch.

        Raises:
            CacheError: the cache has no room for it.
        """
        if self._groups.in_memory:
            return self
        groups = map_groups(self._groups, self._columns, cache or self.scratch)
        return _restore(self.source, groups, self.findings, self.selection, self.scratch)

    def check_keys(self) -> None:
        """Look at all keys, in bounded memory.

        Raises:
            IndexDataError: a key is null or empty, or two rows have the same; names rows and value.
        """
        if self.findings.key is not None:
            check_unique(self._key_batches, self._where, self.scratch, self.findings.key)

    def check_near_keys(self) -> None:
        """Look at all keys of a table that is here; those of other groups are seen when read.

        Once a node: that they are well is kept in scratch. Of tars nothing is looked at: in many
        sets of others, names repeat from tar to tar.

        Raises:
            IndexDataError: as of ``check_keys``.
        """
        if self.findings.key is None or not self._groups.in_memory or self._is_of_tars:
            return
        if self.num_rows <= _FEW_ROWS:
            self.check_keys()
            return

        def make(path: str) -> None:
            self.check_keys()
            with open(path, "x"):
                pass

        self.scratch.keep(f"{self.fingerprint}.keys", make)

    @property
    def _is_of_tars(self) -> bool:
        groups = self._groups
        if isinstance(groups, MappedGroups):
            groups = groups.original
        return isinstance(groups, TarGroups | PackedGroups)

    def _key_batches(self) -> KeyBatches:
        """Yield (row numbers, keys as text) per group; filtered rows left out."""
        key = self.findings.key
        starts = np.cumsum(self._raw_counts) - self._raw_counts
        for group in range(self.num_groups):
            if key is None or not self.counts[group]:
                continue
            column = self._groups.read(group, [key]).column(key)
            rows = np.arange(len(column), dtype=np.int64)
            if self.selection is not None:
                rows = self.selection.rows(group)
                column = column.take(from_numbers(rows))
            yield rows + starts[group], _as_text(column)

    def _where(self, row: int) -> str:
        ends = np.cumsum(self._raw_counts)
        group = int(np.searchsorted(ends, row, side="right"))
        return self._row_words(group, int(row - (ends[group] - self._raw_counts[group])))

    def _row_words(self, group: int, row: int) -> str:
        first = group  # rows are counted within a file where there are several
        while first and self._groups.file(first - 1) == self._groups.file(group):
            first -= 1
        number = int(self._raw_counts[first:group].sum()) + row
        return f"row {number:,} of {self._groups.file(group) or self.source}"

    def _picked(self, group: int, raw: npt.NDArray[np.int64]) -> Rows:
        """Rows of a group by their places in it, filtered ones counted."""
        read = self._group(group)
        return self._rows(read._replace(table=read.table.take(from_numbers(raw))), group, raw)

    def _group(self, group: int) -> _Group:
        """All needed columns of a whole group, from memory if it was just read."""
        if self._groups.in_memory:  # see check_near_keys
            return _Group(self._groups.read(group, self._columns))
        return self._kept.get(group, lambda: self._decoded(group))

    def _decoded(self, group: int) -> _Group:
        table = self._groups.read(group, self._columns)
        return _Group(table, self._repeats(table, group))

    def _repeats(self, table: pa.Table, group: int) -> Mapping[int, int]:
        """Rows of a group whose key another one has, too, that is earlier and not filtered out."""
        if self.findings.key is None:
            return {}
        keys = table.column(self.findings.key)
        if self.selection is None:
            return repeats_of(keys)
        rows = self.selection.rows(group)
        found = repeats_of(keys.take(from_numbers(rows)))
        return {int(rows[at]): int(rows[first]) for at, first in found.items()}

    @property
    def _columns(self) -> list[str]:
        findings = self.findings
        names = [c for column in findings.files for c in column.sources]
        if findings.key is not None:
            names.append(findings.key)
        names.extend(self._metadata_sources.values())
        return list(dict.fromkeys(names))

    def _rows(self, read: _Group, group: int, raw: Sequence[int] | npt.NDArray[np.int64]) -> Rows:
        """Rows from a group's table that was cut to those at the places ``raw``."""
        table = read.table
        if read.repeats:
            self._check_repeats(read, group, raw)
        folder = folder_of(self._groups.file(group))
        members = tuple(
            member
            for column in self.findings.files
            for member in self._members(column, table, folder)
        )
        self._check_names(members, group, raw)
        metadata = pa.Table.from_arrays(
            [table.column(source) for source in self._metadata_sources.values()],
            schema=self.metadata_schema,
        )
        return Rows(self._keys(table, group, raw), members, metadata)

    def _check_repeats(
        self, read: _Group, group: int, raw: Sequence[int] | npt.NDArray[np.int64]
    ) -> None:
        for place, row in enumerate(np.asarray(raw).tolist()):
            if row in read.repeats:
                key = read.table.column(self.findings.key)[place].as_py()
                raise RowError(
                    f"the key {key!r} repeats: {self._row_words(group, read.repeats[row])} and "
                    f"{self._row_words(group, row)}; {UNIQUE_KEYS}"
                )

    def _members(self, column: FileColumn, table: pa.Table, folder: str) -> list[MemberColumn]:
        return column.members(table, folder)

    def _keys(
        self, table: pa.Table, group: int, raw: Sequence[int] | npt.NDArray[np.int64]
    ) -> list[str]:
        if self.findings.key is None:
            before = int(self._raw_counts[:group].sum())
            digits = max(_KEY_DIGITS, len(str(int(self._raw_counts.sum()) - 1)))
            numbers = raw if isinstance(raw, range) else np.asarray(raw).tolist()
            return [f"{before + row:0{digits}d}" for row in numbers]
        keys = to_list(_as_text(table.column(self.findings.key)))
        if None in keys or "" in keys:
            row = keys.index(None) if None in keys else keys.index("")
            raise RowError(
                f"the key column {self.findings.key!r} is empty in "
                f"{self._row_words(group, int(raw[row]))}; fill it, or name another column (--key)"
            )
        return keys

    def _check_names(
        self,
        members: Sequence[MemberColumn],
        group: int,
        raw: Sequence[int] | npt.NDArray[np.int64],
    ) -> None:
        """Two members of a row must differ in name, also where the first rows didn't show it."""
        loose = [m for m in members if not m.qualified]
        seen: dict[str, MemberColumn] = {}
        mixed = any(_share(a, b) for i, a in enumerate(loose) for b in loose[:i])
        for row in range(len(raw)) if mixed else ():
            seen.clear()
            for member in loose:
                name = member.exts[row]
                if not name or not member.has(row):
                    continue
                if name in seen:
                    raise RowError(
                        f"{seen[name].name!r} and {member.name!r} both are {name} in "
                        f"{self._row_words(group, int(raw[row]))}, and the first rows did not show "
                        f"it: name them apart (--files {seen[name].name}=… {member.name}=…)"
                    )
                seen[name] = member

    def _metadata_sources_inverse(self) -> dict[str, str]:
        return {source: name for name, source in self._metadata_sources.items()}


def _restore(
    source: str, groups: Groups, findings: Findings, selection: Selection | None, scratch: Scratch
) -> Index:
    return Index(source, groups, findings, selection=selection, scratch=scratch)


def _share(a: MemberColumn, b: MemberColumn) -> bool:
    return bool((set(a.exts) & set(b.exts)) - {""})


def _metadata_sources(findings: Findings) -> dict[str, str]:
    """Metadata column → source column: ``__key__``, which samples have anyway, becomes ``key``."""
    names = {name: name for name in findings.metadata if name != KEY}
    taken = {*names, *(column.name for column in findings.files)}
    if KEY in findings.metadata and "key" not in taken:
        names = {"key": KEY, **names}
    return names


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise ConfigError(
            f"a key column holds text or whole numbers, not {column.type}: name another (--key)"
        )
    return column.cast(pa.string())


def _fingerprint(groups: Groups, findings: Findings, selection: Selection | None) -> str:
    """Contents, what was made of them, and which rows: all that decides the samples."""
    files = [
        (c.name, c.kind, c.ext, c.qualified, c.size, c.offset, c.element) for c in findings.files
    ]
    parts = [
        groups.identity,
        findings.key,
        files,
        list(findings.metadata),
        selection.identity if selection is not None else None,
    ]
    return xxh3_128_hexdigest(repr(parts).encode())
