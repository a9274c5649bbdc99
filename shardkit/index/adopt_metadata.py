"""Metadata for adopted samples: the fields of a JSON member, or a table beside the tar.

A column has one of four types, chosen by the values of all tars together and never by which came
first: bool, int64, double, or string; whatever these don't hold is kept as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shardkit.errors import ConfigError, CorruptError, IndexDataError, NotFoundError
from shardkit.format.parquet_bytes import parquet_table
from shardkit.format.sidecar import KEY
from shardkit.index.adopt_tar import AdoptedTar
from shardkit.index.spool import as_text
from shardkit.storage.protocol import Store

__all__ = ["Kinds", "MetadataChoice", "kinds_of", "merge_kinds", "metadata_table", "types_of"]

Kinds = Mapping[str, list[str]]
"""By column, the kinds of values seen: null, bool, int, big, float, str, json; sorted."""

_TABLE = "parquet"
_KEY_COLUMNS = ("__key__", "key")  # as img2dataset and others call them
_EXACT = 2**53  # whole numbers up to this are doubles too
_MOST_COLUMNS = 1_000
_ROWS = 4_096  # members fetched at once


@dataclass(frozen=True)
class MetadataChoice:
    """Where metadata comes from.

    Attributes:
        source: ext of a JSON member, or ``"parquet"``: the table beside the tar, of the same
            name, whose ``key`` column names samples (img2dataset writes one); None: no metadata.
        columns: fields to keep; None: all.
    """

    source: str | None = None
    columns: tuple[str, ...] | None = None

    def records(self, tar: AdoptedTar, url: str, store: Store) -> list[dict[str, Any] | None]:
        """The fields of each of the tar's samples; None where they can't be read."""
        if self.source is None:
            return [{}] * tar.scan.table.num_rows
        found = _beside(tar, url, store) if self.source == _TABLE else _members(tar, self.source)
        if self.columns is None:
            return found
        wanted = self.columns
        return [r if r is None else {n: r[n] for n in wanted if n in r} for r in found]


def _members(tar: AdoptedTar, ext: str) -> list[dict[str, Any] | None]:
    table = tar.scan.table
    if ext not in table.column_names:
        return [None] * table.num_rows
    places = table.column(ext).combine_chunks()
    starts, sizes = places.field(0).to_pylist(), places.field(1).to_pylist()
    rows = [row for row, start in enumerate(starts) if start is not None]
    found: list[dict[str, Any] | None] = [None] * len(starts)
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        datas = tar.get_ranges([(starts[row], starts[row] + sizes[row]) for row in part])
        for row, data in zip(part, datas, strict=True):
            found[row] = _object(data)
    return found


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _beside(tar: AdoptedTar, url: str, store: Store) -> list[dict[str, Any] | None]:
    """The rows of the Parquet file beside a tar, by key."""
    name = url.removesuffix(".tar") + ".parquet"
    try:
        table = parquet_table(store.get(name))
    except NotFoundError as error:
        raise NotFoundError(
            f"{name} is not there, so {url} has no metadata beside it; take it from the tar's own "
            "members (--metadata-from json), or from none"
        ) from error
    except pa.ArrowException as error:
        raise CorruptError(f"{name} can't be read as Parquet: {error}") from error
    column = next((c for c in _KEY_COLUMNS if c in table.column_names), None)
    if column is None:
        raise ConfigError(
            f"{name} has no column {' or '.join(_KEY_COLUMNS)} that names samples; it has "
            f"{', '.join(table.column_names)}"
        )
    rows = {str(row[column]): row for row in table.to_pylist()}
    return [rows.get(key) for key in tar.scan.table.column(KEY).to_pylist()]


def kinds_of(records: Iterable[Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """What kinds of values each field has; fields in order of appearance.

    Raises:
        IndexDataError: there are too many different fields for columns.
    """
    found: dict[str, set[str]] = {}
    for record in records:
        for name, value in (record or {}).items():
            found.setdefault(name, set()).add(_kind(value))
        if len(found) > _MOST_COLUMNS:
            raise IndexDataError(
                f"the metadata has more than {_MOST_COLUMNS:,} different fields "
                f"({', '.join(list(found)[:4])} …); name those to keep (--meta)"
            )
    return {name: sorted(kinds) for name, kinds in found.items()}


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "str"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "float"
    if isinstance(value, int):
        return "int" if abs(value) <= _EXACT else "big" if -(2**63) <= value < 2**63 else "json"
    return "json"


def merge_kinds(parts: Iterable[Kinds]) -> dict[str, list[str]]:
    """What all tars have seen together."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for name, kinds in part.items():
            found.setdefault(name, set()).update(kinds)
    return {name: sorted(kinds) for name, kinds in found.items()}


def types_of(kinds: Kinds) -> dict[str, str]:
    """The Arrow type of each column, by name."""
    return {name: _type(set(seen) - {"null"}) for name, seen in kinds.items()}


def _type(kinds: set[str]) -> str:
    if kinds == {"bool"}:
        return "bool"
    if kinds and kinds <= {"int", "big"}:
        return "int64"
    if kinds and kinds <= {"int", "float"}:
        return "double"
    return "string"


def metadata_table(
    records: Sequence[Mapping[str, Any] | None], types: Mapping[str, str]
) -> pa.Table:
    """The records as columns of these types, null where a record has no such field."""
    columns = {}
    for name, kind in types.items():
        values: list[Any] = [None if record is None else record.get(name) for record in records]
        if kind == "string":
            values = [_utf8(as_text(value)) for value in values]
        elif kind == "double":
            values = [None if value is None else float(value) for value in values]
        columns[name] = pa.array(values, pa.type_for_alias(kind))
    if not columns:  # a table without columns has no rows of its own
        return pa.table({})
    return pa.table(columns)


def _utf8(text: str | None) -> str | None:
    """The text without halves of surrogate pairs, which JSON may spell and UTF-8 can't hold."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
