"""Findings: which column of an index is the key, which hold files, which are metadata.

All of it can be said by the user instead; ``Findings.describe`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shardkit.errors import ConfigError, IndexDataError
from shardkit.format.sidecar import KEY
from shardkit.index.columns import URL_COLUMN, FileColumn, Kind, holds_bytes
from shardkit.index.file_columns import (
    chosen_column,
    find_files,
    inline_column,
    is_prose,
    qualify,
    range_columns,
    with_bases,
    with_places,
)
from shardkit.index.groups import Groups
from shardkit.index.key_column import find_key
from shardkit.index.names import known_ext
from shardkit.index.roles import roles_of
from shardkit.storage.protocol import Store

__all__ = ["Choices", "Columns", "Findings", "find"]

Columns = Sequence[str] | Mapping[str, str] | str

_HEAD_ROWS = 4_096  # enough to tell a unique column from one that repeats, read in milliseconds
_HEAD_BYTES_ROWS = 8  # of columns that hold bytes: they are big


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user says instead of leaving it to ``find``; None leaves it.

    ``files`` and ``inline`` take ``"column"`` or ``"column=ext"``, one or many, or a mapping.
    ``metadata`` names columns, none with ``[]``.
    """

    key: str | None = None
    files: Columns | None = None
    inline: Columns | None = None
    metadata: Sequence[str] | str | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What the columns of an index are.

    Attributes:
        key: key column; None: keys are made from the row number.
        files: columns that hold files, then those whose values become members (inline).
        metadata: columns that are metadata.
        could_inline: columns of text that could become members.
        notes: what a user should know about the choice.
    """

    key: str | None
    files: tuple[FileColumn, ...]
    metadata: tuple[str, ...]
    could_inline: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def member_names(self) -> frozenset[str]:
        """Names of the members that the first rows have, where they go by their ext."""
        return frozenset(
            f"{column.name}.{ext}" if column.qualified else ext
            for column in self.files
            for ext in ((column.ext,) if column.ext else column.exts)
        )

    def describe(self) -> str:
        """Return a few lines for people: every finding, and the flag that overrides it."""
        lines = [f"key       {self.key or 'made from the row number'}   (--key)"]
        for column in self.files:
            exts = (column.ext,) if column.ext else column.exts
            of = " or ".join(exts) or "an ext by its bytes"
            where = "" if column.kind in ("url", "range") else f", {_KIND_WORDS[column.kind]}"
            member = f"{column.name}.…" if column.qualified else "its ext"
            flag = "--inline" if column.kind in ("text", "json") else "--files"
            lines.append(f"file      {column.name}: {of}{where}; named by {member}   ({flag})")
        if not self.files:
            lines.append("file      none: rows are metadata alone   (--files)")
        lines.append(f"metadata  {', '.join(self.metadata) or 'none'}   (--meta)")
        if self.could_inline:
            ideas = ", ".join(f"--inline {name}=txt" for name in self.could_inline)
            lines.append(f"text that could become members: {ideas}")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)


_KIND_WORDS: Mapping[Kind, str] = {
    "bytes": "held in the index",
    "struct": "held in the index, or a path",
    "list": "numbered along each list",
    "text": "the text itself",
    "json": "the value itself",
}


def find(groups: Groups, choices: Choices, store: Store) -> Findings:
    """Look at the schema and the first rows, and say what each column is.

    Raises:
        ConfigError: a choice names a column that is not there, or that can't be what it says.
        IndexDataError: the columns found contradict each other.
    """
    schema = groups.schema
    _check_names(schema)
    roles = roles_of(schema)
    if roles and choices.files is None and choices.inline is None:
        return _as_written(roles, choices, schema)
    head = _head(groups)
    notes: list[str] = []
    inline = _parse_columns(choices.inline, "inline", schema)
    ranges = range_columns(schema)
    if choices.files is not None:
        wanted = _parse_columns(choices.files, "files", schema)
        files = [chosen_column(name, ext, schema, head) for name, ext in wanted.items()]
    else:
        files = [FileColumn(name, "range", ext=name) for name in ranges]
        files = files or find_files(head, set(inline) | {choices.key or ""})
    files = with_bases(files, head, groups, store, guessed=choices.files is None, notes=notes)
    files = [with_places(column, schema) for column in files]
    files += [inline_column(name, ext, schema) for name, ext in inline.items()]
    taken = {column.name for column in files} | {
        c for f in files for c in (f.size, f.offset, f.xxh3) if c
    }
    chosen = choices.key or (KEY if ranges else None)  # keys of a tar may repeat: they are its own
    notes += [
        f"the column {column.name!r} is called like a file: is the header line missing?"
        for column in files
        if "/" in column.name and known_ext(column.name)
    ]
    key = find_key(chosen, head, taken, schema, notes)
    if choices.metadata is not None:
        metadata = list(_parse_columns(choices.metadata, "metadata", schema))
    else:
        metadata = [n for n in schema.names if n not in taken | set(ranges) | {URL_COLUMN}]
    texts = [n for n in metadata if n != key and is_prose(head, n)] if not ranges else []
    if choices.metadata is None and ranges and key == KEY:
        metadata = [name for name in metadata if name != KEY]
    return Findings(key, qualify(files), tuple(metadata), tuple(texts), tuple(notes))


def _as_written(
    roles: Mapping[str, Mapping[str, Any]], choices: Choices, schema: pa.Schema
) -> Findings:
    """What ``write_index`` noted in the columns."""
    files = []
    for name, role in roles.items():
        if role["role"] != "file":
            continue
        column = FileColumn(
            name,
            role["kind"],
            ext=role["ext"],
            exts=tuple(role["exts"]),
            qualified=role["qualified"],
            element=role["element"],
        )
        files.append(with_places(column, schema))
    keys = [name for name, role in roles.items() if role["role"] == "key"]
    metadata = [name for name, role in roles.items() if role.get("metadata")]
    if choices.metadata is not None:
        metadata = list(_parse_columns(choices.metadata, "metadata", schema))
    key = choices.key or (keys[0] if keys else None)
    if key is not None:
        _parse_columns([key], "key", schema)
    return Findings(key, tuple(files), tuple(metadata))


def _check_names(schema: pa.Schema) -> None:
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise IndexDataError(f"the index has two columns {name!r}; rename one")
        seen.add(name)


def _head(groups: Groups) -> pa.Table:
    """The first rows: all columns but those of bytes, which come for fewer rows."""
    small = [f.name for f in groups.schema if not holds_bytes(f.type)]
    table = groups.head(small, _HEAD_ROWS)
    big = [name for name in groups.schema.names if name not in set(small)]
    if not big:
        return table
    few = groups.head(big, _HEAD_BYTES_ROWS)
    for name in big:
        column = few.column(name)
        rest = pa.nulls(table.num_rows - len(column), column.type)
        table = table.append_column(name, pa.chunked_array([*column.chunks, rest]))
    return table


def _parse_columns(given: Columns | None, option: str, schema: pa.Schema) -> dict[str, str | None]:
    """Return column → ext (None where none is given)."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs: Iterable[tuple[str, str | None]] = given.items()
    else:
        items = [given] if isinstance(given, str) else given
        pairs = (_parse_item(item, schema) for item in items)
    found: dict[str, str | None] = {}
    for name, ext in pairs:
        if name not in schema.names:
            raise ConfigError(
                f"{option}: the index has no column {name!r}; it has {', '.join(schema.names)}"
            )
        found[name] = ext.lower().lstrip(".") if ext else None
    return found


def _parse_item(item: str, schema: pa.Schema) -> tuple[str, str | None]:
    if item in schema.names:
        return item, None
    name, sign, ext = item.rpartition("=")
    return (name, ext) if sign else (item, None)
