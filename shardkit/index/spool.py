"""Tables of any schema, one after another, into one mapped Arrow file; in bounded memory.

JSON and CSV show their types only at their end: batches are spooled to disk as they come, then
written again with the types that all of them agree on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128

from shardkit.index.groups import ROWS_PER_GROUP, ArrowFileGroups, HashSink
from shardkit.index.scratch import Scratch

__all__ = [
    "Spool",
    "Tables",
    "Write",
    "as_text",
    "conform",
    "keep_tables",
    "keep_unnamed",
    "unify",
    "write_arrow",
    "write_arrow_groups",
]

_BATCH_BYTES = 64 << 20  # of a group that we cut, however few rows that are (images in cells)

Tables = Iterator[pa.Table]


Write = Callable[[pa.Schema, Tables], None]

_TABLE, _NOTE = "table.arrow", "note.json"


def keep_tables(
    scratch: Scratch, name: str, source: str, make: Callable[[str, Write], None]
) -> ArrowFileGroups:
    """Return the groups of the table ``name`` in ``scratch``, made if it is not there.

    Args:
        scratch: where to keep it.
        name: hash of all that decides the contents.
        source: URL for messages, and where relative paths start.
        make: given a prefix for temporaries and ``write(schema, tables)``, calls the latter once.
    """

    def fill(part: str) -> None:
        make(f"{part}.", lambda schema, tables: _write(part, schema, tables))

    return _mapped(scratch.keep(name, fill), source)


def keep_unnamed(
    scratch: Scratch, source: str, make: Callable[[str, Write], None]
) -> ArrowFileGroups:
    """Like ``keep_tables``, for what must be made to be known (listings): named by its contents."""
    with scratch.temporary() as folder:
        part = os.path.join(folder, "made")
        make(f"{part}.", lambda schema, tables: _write(part, schema, tables))
        identity = _mapped(part, source).identity
        path = scratch.keep(identity, lambda kept: os.rename(part, kept))
    return _mapped(path, source)


def _write(folder: str, schema: pa.Schema, tables: Tables) -> None:
    os.mkdir(folder)
    counts, identity = write_arrow(os.path.join(folder, _TABLE), schema, tables)
    with open(os.path.join(folder, _NOTE), "w", encoding="utf-8") as file:
        json.dump({"counts": counts, "identity": identity}, file)


def _mapped(folder: str, source: str) -> ArrowFileGroups:
    with open(os.path.join(folder, _NOTE), encoding="utf-8") as file:
        note = json.load(file)
    path = os.path.join(folder, _TABLE)
    with pa.memory_map(path) as table:
        schema = pa.ipc.open_file(table).schema
    counts = np.array(note["counts"], dtype=np.int64)
    return ArrowFileGroups(path, source, note["identity"], counts, schema)


def write_arrow(
    path: str, schema: pa.Schema, tables: Tables, *, max_bytes: int = _BATCH_BYTES
) -> tuple[list[int], str]:
    """Write tables as record batches of ``ROWS_PER_GROUP`` rows; return their rows and a hash."""
    counts: list[int] = []
    hasher = xxh3_128()
    schema = schema.remove_metadata()
    with (
        pa.ipc.new_file(path, schema) as file,
        pa.ipc.new_stream(pa.PythonFile(HashSink(hasher), mode="w"), schema) as hashed,
    ):
        for table in _cut(tables, max_bytes):
            for batch in table.replace_schema_metadata(None).combine_chunks().to_batches():
                file.write_batch(batch)
                hashed.write_batch(batch)
                counts.append(batch.num_rows)
    return counts, str(hasher.hexdigest())


def write_arrow_groups(out: str | pa.NativeFile, schema: pa.Schema, tables: Tables) -> None:
    """Write each table as one record batch."""
    with pa.ipc.new_file(out, schema) as file:
        for table in tables:
            whole = table.replace_schema_metadata(None).cast(schema).combine_chunks()
            file.write_batch((whole.to_batches() or schema.empty_table().to_batches())[0])


def _cut(tables: Tables, max_bytes: int) -> Tables:
    """Join and slice, so that each but the last has ``ROWS_PER_GROUP`` rows or is big."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        start = 0
        while start < table.num_rows:
            per_row = max(1, table.nbytes // table.num_rows)
            room = min(ROWS_PER_GROUP - rows, max(1, (max_bytes - size) // per_row))
            part = table.slice(start, room)
            start += part.num_rows
            held.append(part)
            rows += part.num_rows
            size += part.num_rows * per_row
            if rows >= ROWS_PER_GROUP or size >= max_bytes:
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)


class Spool:
    """Tables on disk until all are seen. Use as a context manager: its files go at the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._schemas: list[pa.Schema] = []
        self._paths: list[str] = []
        self._writer: Any = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
        for path in self._paths:
            os.unlink(path)

    def append(self, table: pa.Table) -> None:
        """Put a table on disk."""
        if not self._schemas or table.schema != self._schemas[-1]:
            self._close()
            path = f"{self.path}.spool-{len(self._paths)}"
            self._paths.append(path)
            self._schemas.append(table.schema)
            self._writer = pa.ipc.new_stream(path, table.schema)
        self._writer.write_table(table)

    def schema(self) -> pa.Schema:
        """Return what all tables agree on."""
        return unify(self._schemas)

    def tables(self, schema: pa.Schema) -> Tables:
        """Yield all tables again, with these types; absent columns are null."""
        self._close()
        for path in self._paths:
            with pa.memory_map(path) as mapped, pa.ipc.open_stream(mapped) as reader:
                for batch in reader:
                    yield conform(pa.Table.from_batches([batch]), schema)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def unify(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Merge schemas: columns in order of appearance; types that don't meet become text."""
    found: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            known = found.get(field.name)
            found[field.name] = field.type if known is None else _wider(known, field.type)
    return pa.schema(list(found.items()))


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    if a == b:
        return a
    try:
        merged = pa.unify_schemas(
            [pa.schema([("x", a)]), pa.schema([("x", b)])], promote_options="permissive"
        )
    except pa.ArrowException:
        return pa.string()
    return merged.field("x").type


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return ``table`` with the columns and types of ``schema``."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        columns.append(column if column.type == field.type else _cast(column, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_string(dtype) and not pa.types.is_null(column.type):
        return pa.chunked_array([pa.array([as_text(v) for v in column.to_pylist()], pa.string())])
    return column.cast(dtype)


def as_text(value: Any) -> str | None:
    """Return a value as it stood in the file, as far as that is known: strings as they are."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
