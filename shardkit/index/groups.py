"""Row groups of Arrow: what every source of an index becomes, and three of its kinds.

``TableGroups`` slices a table in memory, ``ArrowFileGroups`` maps a file of ours (or an
uncompressed ``.arrow`` of the user's) into memory; ``shardkit.index.parquet`` reads in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128

from shardkit.errors import IndexDataError
from shardkit.index.kept import Kept
from shardkit.index.scratch import Carried

__all__ = ["ROWS_PER_GROUP", "ArrowFileGroups", "Groups", "HashSink", "TableGroups", "hash_batches"]

ROWS_PER_GROUP = 65_536
"""Rows of a group that we cut ourselves: the block in which the order looks at rows."""
_KEPT_TABLES = 256  # views of mapped batches, ~1 KB each; making one takes 0.2 ms


class Groups(Protocol):
    """Row groups with one schema. Thread-safe; picklable; opens lazily, anew in every process."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of every group."""
        ...

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows per group."""
        ...

    @property
    def identity(self) -> str:
        """Hash of the contents: the same in every process and run, another when they change."""
        ...

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Return these columns of a whole group, in this order."""
        ...

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return the first rows; cheap where a whole group is not."""
        ...

    def file(self, group: int) -> str:
        """URL of the file that a group comes from; relative paths start in its folder.

        ``""`` where there is no file.
        """
        ...

    @property
    def in_memory(self) -> bool:
        """Whether a read costs nothing, so that there is no point in keeping its result."""
        ...


@dataclass(frozen=True)
class TableGroups:
    """A table in memory, cut into groups."""

    table: pa.Table
    source: str = ""
    in_memory: bool = True
    _identity: list[str] = field(default_factory=list, repr=False)  # computed once

    @property
    def schema(self) -> pa.Schema:
        """The table's."""
        return self.table.schema

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """``ROWS_PER_GROUP`` each, and the rest."""
        starts = np.arange(0, self.table.num_rows, ROWS_PER_GROUP, dtype=np.int64)
        counts: npt.NDArray[np.int64] = np.minimum(ROWS_PER_GROUP, self.table.num_rows - starts)
        return counts

    @property
    def identity(self) -> str:
        """Hash of the table's values, however it is chunked."""
        if not self._identity:
            groups = (self.read(group, self.schema.names) for group in range(len(self.counts)))
            self._identity.append(hash_batches(self.schema, groups))
        return self._identity[0]

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Slice, without a copy."""
        table = self.table.select(list(columns))
        return table.slice(group * ROWS_PER_GROUP, ROWS_PER_GROUP)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Slice, without a copy."""
        return self.table.select(list(columns)).slice(0, num_rows)

    def file(self, group: int) -> str:
        """The file that the table was read from, if any."""
        del group
        return self.source


class ArrowFileGroups:
    """An uncompressed Arrow IPC file on local disk, mapped into memory; a group a record batch."""

    def __init__(
        self,
        path: str,
        source: str,
        identity: str,
        counts: npt.NDArray[np.int64],
        schema: pa.Schema,
    ) -> None:
        """Args say what is known of the file, so that nothing is opened before the first read.

        Args:
            path: of the file.
            source: URL of what it was made from.
            identity: hash of its contents.
            counts: rows per record batch.
            schema: of the file.
        """
        self.path = path
        self.source = source
        self.identity = identity
        self.counts = counts
        self.schema = schema
        self.in_memory = True
        self._tables: Kept[pa.Table] = Kept(_KEPT_TABLES)

    def __reduce__(self) -> tuple[Any, ...]:
        file = Carried.of(self.path)
        return _arrived, (file, self.source, self.identity, self.counts, self.schema)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Map, without a copy."""
        return self._tables.get(group, lambda: self._map(group)).select(list(columns))

    def _map(self, group: int) -> pa.Table:
        try:
            reader = pa.ipc.open_file(pa.memory_map(self.path))
        except FileNotFoundError as error:
            raise IndexDataError(
                f"{self.path}, where the index of {self.source or 'a table'} was kept, is gone; "
                "open the index again (and give scratch= a folder that stays and every node sees)"
            ) from error
        return pa.Table.from_batches([reader.get_batch(group)])

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return a slice of the first batch."""
        if not len(self.counts):
            return self.schema.empty_table().select(list(columns))
        return self.read(0, columns).slice(0, num_rows)

    def file(self, group: int) -> str:
        """URL of what the file was made from."""
        del group
        return self.source


def _arrived(file: Carried, *known: Any) -> ArrowFileGroups:
    return ArrowFileGroups(file.arrive(), *known)


def hash_batches(schema: pa.Schema, groups: Iterator[pa.Table]) -> str:
    """Hash columns and values of tables, each as one batch; chunks and offsets don't matter."""
    hasher = xxh3_128()
    plain = schema.remove_metadata()
    with pa.ipc.new_stream(pa.PythonFile(HashSink(hasher), mode="w"), plain) as writer:
        for group in groups:
            for batch in group.replace_schema_metadata(None).combine_chunks().to_batches():
                writer.write_batch(batch)
    return str(hasher.hexdigest())


class HashSink:
    """A file to write to, as far as Arrow wants one, that only hashes."""

    closed = False

    def __init__(self, hasher: Any) -> None:
        self._hasher = hasher

    def write(self, data: Any) -> int:
        """Hash."""
        self._hasher.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""
