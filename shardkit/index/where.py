"""``where=``: a condition, or a whole SELECT, in DuckDB's SQL over the table ``dataframe``.

One meaning however the index is read: the query always sees the whole table. A condition is
evaluated once, streaming, into a bitmap; a SELECT is written out as a new table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128, xxh3_128_hexdigest

from shardkit.errors import ConfigError, ShardkitError
from shardkit.index.groups import ArrowFileGroups, Groups
from shardkit.index.scratch import Scratch
from shardkit.index.selection import Selection
from shardkit.index.spool import Tables, Write, keep_tables
from shardkit.index.sql import Batches, QueryError, connect, parsed, version

__all__ = ["is_select", "run_select", "select_rows"]

TABLE = "dataframe"
_ROW = "__row__"
_VERSION = "1"
_QUOTED = re.compile(r"""['"]([^'"]+)['"]""")
_SELECT = re.compile(r"\s*(select|with|from)\b", re.IGNORECASE)


def is_select(where: str) -> bool:
    """Is this a whole query rather than a condition?"""
    return _SELECT.match(where) is not None


def select_rows(groups: Groups, where: str, scratch: Scratch) -> Selection:
    """Evaluate a condition over all rows, into a bitmap that is kept in ``scratch``.

    Only the columns that the condition names are read, group by group. It may hold subqueries
    over ``dataframe``, which see all rows too.

    Raises:
        ConfigError: DuckDB does not take the condition; says why.
    """
    name = _name(groups, where)
    counts = groups.counts

    def make(part: str) -> None:
        bits = _Bits(part, counts)
        query = f"SELECT {_ROW} FROM {TABLE} WHERE ({where}\n)"  # noqa: S608 - the user's own query
        columns = _named_columns(query, groups.schema)
        for table in _run(query, _numbered(groups, columns), where, scratch, groups.schema.names):
            bits.set(table.column(0).to_numpy())
        bits.close()

    path = scratch.keep(f"{name}.bits", make)
    with open(path, "rb") as file:
        packed = np.frombuffer(file.read(), dtype=np.uint8)
    selected = _count(packed, counts)
    identity = xxh3_128(packed.tobytes()).hexdigest()
    return Selection(path, counts, selected, f"{identity}")


def run_select(groups: Groups, query: str, scratch: Scratch, source: str) -> ArrowFileGroups:
    """Run a SELECT over ``dataframe`` and keep its result, a new table, in ``scratch``.

    Raises:
        ConfigError: the query does not name ``dataframe``, or DuckDB does not take it.
    """
    if not re.search(rf"\b{TABLE}\b", query, re.IGNORECASE):
        raise ConfigError(f"where={query!r} is a query that does not name the table {TABLE!r}")
    name = _name(groups, query)
    file = groups.file(0) if len(groups.counts) else ""

    def make(part: str, write: Write) -> None:
        del part
        columns = _named_columns(query, groups.schema)
        tables = _run(query, _plain(groups, columns), query, scratch, groups.schema.names)
        write(next(tables).schema, tables)

    return keep_tables(scratch, name, file or source, make)


def _name(groups: Groups, asked: str) -> str:
    """What a result is kept under: all that decides it, files that the query names included."""
    files = []
    for path in sorted(set(_QUOTED.findall(asked))):
        if os.path.isfile(path):
            status = os.stat(path)
            files.append((path, status.st_size, status.st_mtime_ns))
    return xxh3_128_hexdigest(repr((_VERSION, version(), groups.identity, asked, files)).encode())


def _run(
    query: str, batches: Batches, asked: str, scratch: Scratch, names: Sequence[str]
) -> Tables:
    """Yield the result in parts, at least an empty one."""
    try:
        with connect(scratch, **{TABLE: batches}) as connection:
            relation = connection.sql(query)
            if relation is None:
                raise ConfigError(f"where={asked!r} selects nothing: give a condition or a SELECT")
            reader: Any = relation.to_arrow_reader(65_536)
            yield reader.schema.empty_table()
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except ShardkitError:
        raise
    except (QueryError, pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"where={asked!r} can't be evaluated: {error} (its columns are {', '.join(names)})"
        ) from error


def _plain(groups: Groups, columns: Sequence[str]) -> Batches:
    schema = pa.schema([groups.schema.field(name) for name in columns]).remove_metadata()

    def make() -> Iterator[pa.RecordBatch]:
        for group in range(len(groups.counts)):
            table = groups.read(group, columns).cast(schema)
            yield from table.combine_chunks().to_batches()

    return Batches(schema, make)


def _numbered(groups: Groups, columns: Sequence[str]) -> Batches:
    """The columns, and the number of each row: streams need keep no order then."""
    fields = [groups.schema.field(name) for name in columns]
    schema = pa.schema([pa.field(_ROW, pa.int64()), *fields]).remove_metadata()
    starts = np.cumsum(groups.counts) - groups.counts

    def make() -> Iterator[pa.RecordBatch]:
        for group, count in enumerate(groups.counts.tolist()):
            rows = pa.array(np.arange(starts[group], starts[group] + count))
            table = groups.read(group, columns)
            arrays = [rows, *table.columns]
            numbered = pa.Table.from_arrays(arrays, names=[_ROW, *columns]).cast(schema)
            yield from numbered.combine_chunks().to_batches()

    return Batches(schema, make)


def _named_columns(query: str, schema: pa.Schema) -> list[str]:
    """The columns that a query may read: those that it names, or all where it has a star.

    Only a saving: whatever is not understood means all columns.
    """
    tree = parsed(query)
    names: set[str] = set()
    if tree.get("error") or not _collect(tree, names):
        return list(schema.names)
    found = [name for name in schema.names if name.lower() in names]
    return found or list(schema.names[:1])


def _collect(node: Any, names: set[str]) -> bool:
    """Add all column names below a node of a parse tree; False if there is a star."""
    if isinstance(node, list):
        return _collect_all(node, names)
    if not isinstance(node, dict):
        return True
    kind = str(node.get("class", ""))
    if kind in ("STAR", "POSITIONAL_REFERENCE") or node.get("type") == "STAR":
        return False
    if kind == "COLUMN_REF":
        names.update(str(name).lower() for name in node.get("column_names", []))
    if node.get("using_columns"):
        names.update(str(name).lower() for name in node["using_columns"])
    return _collect_all(node.values(), names)


def _collect_all(nodes: Iterable[Any], names: set[str]) -> bool:
    stars = [not _collect(node, names) for node in nodes]
    return not any(stars)


class _Bits:
    """A bitmap on disk: a bit a row, groups padded to whole bytes, low bit first."""

    def __init__(self, path: str, counts: npt.NDArray[np.int64]) -> None:
        self._ends = np.cumsum(counts)
        widths = (counts + 7) // 8
        self._starts = np.cumsum(widths) - widths
        self._counts = counts
        size = int(widths.sum())
        with open(path, "wb") as file:
            file.truncate(size)
        self._map = np.memmap(path, dtype=np.uint8, mode="r+") if size else None

    def set(self, rows: npt.NDArray[np.int64]) -> None:
        """Set the bits of these rows, counted over all groups."""
        if self._map is None or not len(rows):
            return
        groups = np.searchsorted(self._ends, rows, side="right")
        within = rows - (self._ends[groups] - self._counts[groups])
        places = self._starts[groups] + within // 8
        bits = np.left_shift(1, within % 8).astype(np.uint8)
        np.bitwise_or.at(self._map, places, bits)

    def close(self) -> None:
        """Have everything on disk."""
        if self._map is not None:
            self._map.flush()
            self._map = None


def _count(packed: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bits set per group."""
    ends = np.cumsum((counts + 7) // 8)
    totals = np.concatenate([[0], np.cumsum(np.bitwise_count(packed), dtype=np.int64)])
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    counts_set: npt.NDArray[np.int64] = totals[ends] - totals[starts]
    return counts_set
