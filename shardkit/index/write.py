"""Writing an index down: any source as one Parquet file that reads back as the same rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import ConfigError
from shardkit.format.sidecar import KEY
from shardkit.index.columns import FileColumn
from shardkit.index.groups import ROWS_PER_GROUP
from shardkit.index.index import Index
from shardkit.index.roles import with_role
from shardkit.index.rows import MemberColumn, Rows
from shardkit.storage.protocol import Store
from shardkit.storage.store import open_store
from shardkit.storage.urls import given_url

__all__ = ["write_index"]

_BATCH = 8_192
_PLACES = (("offset", pa.int64()), ("size", pa.int64()), ("xxh3", pa.uint64()))


def write_index(
    index: Index,
    url: str,
    *,
    store: Store | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """Write ``index`` as a Parquet file: its key, its members, its metadata.

    A member is a column of full URLs, with ``size.<name>``, and ``offset.<name>`` and
    ``xxh3.<name>`` for members of tars, where these are known; values that the index itself holds
    are written into the column. Notes in the columns' field metadata make ``open_index`` read the
    file back as the same rows. Memory is bounded by a row group.

    Args:
        index: any.
        url: ``.parquet`` file, local or far; appears whole or not at all.
        store: writes it.
        on_rows: called with the number of rows written so far.

    Raises:
        ConfigError: ``url`` does not end in ``.parquet``, or a member and a metadata column have
            one name.
    """
    url = given_url(url)
    if not url.lower().endswith((".parquet", ".pq")):
        raise ConfigError(f"{url}: an index is written as Parquet; let its name end in .parquet")
    schema = _schema(index)
    with tempfile.TemporaryDirectory(prefix="shardkit-index-") as folder:
        path = os.path.join(folder, "index.parquet")
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            done = 0
            held: list[pa.Table] = []
            for rows in index.batches(_BATCH):
                held.append(_table(index, rows, schema))
                done += len(rows)
                if sum(part.num_rows for part in held) >= ROWS_PER_GROUP:
                    writer.write_table(pa.concat_tables(held))
                    held = []
                if on_rows is not None:
                    on_rows(done)
            if held:
                writer.write_table(pa.concat_tables(held))
        (store or open_store()).put_file(url, path)


def _schema(index: Index) -> pa.Schema:
    fields: list[pa.Field] = []
    if index.key_column is None:
        fields.append(with_role(pa.field(KEY, pa.string()), {"role": "key", "metadata": False}))
    for column in index.findings.files:
        fields.extend(_member_fields(column))
    taken = {field.name for field in fields}
    for field in index.metadata_schema:
        if field.name in taken:
            raise ConfigError(
                f"the column {field.name!r} is a file and metadata at once; leave it out of either "
                "(--files, --meta)"
            )
        is_key = field.name == index.key_column
        fields.append(with_role(field, {"role": "key" if is_key else "metadata", "metadata": True}))
    return pa.schema(fields)


def _member_fields(column: FileColumn) -> list[pa.Field]:
    role = {
        "role": "file",
        "kind": _written_kind(column),
        "ext": column.ext,
        "exts": list(column.exts),
        "qualified": column.qualified,
        "element": column.element,
    }
    found = [with_role(pa.field(column.name, _cell_type(column)), role)]
    for place, dtype in _PLACES:
        if _knows(column, place):
            name = f"{place}.{column.name}"
            found.append(with_role(pa.field(name, dtype), {"role": place}))
    return found


def _knows(column: FileColumn, place: str) -> bool:
    own = {"offset": column.offset, "size": column.size, "xxh3": column.xxh3}
    return column.kind == "range" or own[place] is not None


def _written_kind(column: FileColumn) -> str:
    return {"range": "url", "json": "text"}.get(column.kind, column.kind)


def _cell_type(column: FileColumn) -> pa.DataType:
    one: dict[str, pa.DataType] = {
        "bytes": pa.binary(),
        "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    }
    if column.kind == "list":
        return pa.list_(one.get(column.element or "", pa.string()))
    return one.get(column.kind, pa.string())


def _table(index: Index, rows: Rows, schema: pa.Schema) -> pa.Table:
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: rows.metadata.column(name) for name in rows.metadata.column_names
    }
    if index.key_column is None:
        columns[KEY] = pa.array(rows.keys, pa.string())
    for column in index.findings.files:
        if column.kind == "list":
            parts = [m for m in rows.members if m.name.rpartition(".")[0] == column.name]
            cells = [_list(column, parts, row) for row in range(len(rows))]
            columns[column.name] = pa.array(cells, _cell_type(column))
            continue
        member = next(m for m in rows.members if m.name == column.name)
        cells = [_cell(column.kind, member, row) for row in range(len(rows))]
        columns[column.name] = pa.array(cells, _cell_type(column))
        known = {"offset": member.starts, "size": member.sizes, "xxh3": member.checksums}
        for place, dtype in _PLACES:
            if _knows(column, place):
                columns[f"{place}.{column.name}"] = _numbers(known[place], len(rows), dtype)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _list(column: FileColumn, parts: Sequence[MemberColumn], row: int) -> list[Any]:
    there = [part for part in parts if part.has(row)]
    return [_cell(column.element or "url", part, row) for part in there]


def _cell(kind: str, member: MemberColumn, row: int) -> Any:
    value = member.values[row] if member.values is not None else None
    if kind == "struct":
        if not member.has(row):
            return None
        return {"bytes": value, "path": member.urls[row] or f"x.{member.exts[row]}"}
    if kind == "bytes":
        return value
    if kind in ("text", "json"):
        return None if value is None else value.decode()
    return member.urls[row]


def _numbers(values: Sequence[int | None] | None, count: int, dtype: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(count, dtype)
    return pa.array([None if v is None or v < 0 else v for v in values], dtype)
