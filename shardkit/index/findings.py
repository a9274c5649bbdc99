"""Findings: which column of an index is the key, which hold files, which are metadata.

All of it can be said by the user instead; ``Findings.describe`` prints it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import ConfigError, IndexDataError, NotFoundError
from shardkit.format.sidecar import KEY
from shardkit.format.sniff import sniff_ext
from shardkit.index.columns import URL_COLUMN, FileColumn, Kind, kind_of, to_list
from shardkit.index.groups import Groups
from shardkit.index.names import base_name, folder_of, known_ext, last_ext, resolve
from shardkit.index.roles import roles_of
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["Choices", "Columns", "Findings", "find"]

Columns = Sequence[str] | Mapping[str, str] | str

logger = logging.getLogger(__name__)

_HEAD_ROWS = 4_096  # enough to tell a unique column from one that repeats, read in milliseconds
_HEAD_BYTES_ROWS = 8  # of columns that hold bytes: they are big
_LOOKED_AT = 1_000  # cells that are looked at to tell what a column holds
_TRIED = 8  # relative paths looked for, to know where they start

_KEY_NAMES = [
    "__key__",
    "key",
    "id",
    "data_id",
    "sample_id",
    "uid",
    "uuid",
    "guid",
    "index",
    "idx",
    "image_id",
    "video_id",
    "audio_id",
    "clip_id",
    "file_id",
    "media_id",
    "photo_id",
    "item_id",
    "asset_id",
    "doc_id",
    "hash",
    "sha256",
    "md5",
    "name",
    "image_name",
    "video_name",
]
_NO_KEYS = frozenset(
    [
        "class",
        "label",
        "category",
        "user",
        "author",
        "owner",
        "group",
        "parent",
        "type",
        "lang",
        "language",
        "speaker",
        "cluster",
        "split",
        "source",
        "dataset",
        "shard",
    ]
)
_PAGES = frozenset(
    [
        "page",
        "link",
        "homepage",
        "website",
        "referrer",
        "referer",
        "license",
        "licence",
        "source",
        "origin",
    ]
)


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
    ranges = _range_columns(schema)
    if choices.files is not None:
        wanted = _parse_columns(choices.files, "files", schema)
        files = [_chosen(name, ext, schema, head) for name, ext in wanted.items()]
    else:
        files = [FileColumn(name, "range", ext=name) for name in ranges]
        files = files or _found_files(head, set(inline) | {choices.key or ""})
    files = _with_bases(files, head, groups, store, guessed=choices.files is None, notes=notes)
    files = [_with_places(column, schema) for column in files]
    files += [_inlined(name, ext, schema) for name, ext in inline.items()]
    taken = {column.name for column in files} | {
        c for f in files for c in (f.size, f.offset, f.xxh3) if c
    }
    chosen = choices.key or (KEY if ranges else None)  # keys of a tar may repeat: they are its own
    key = _key(chosen, head, taken, schema, notes)
    if choices.metadata is not None:
        metadata = list(_parse_columns(choices.metadata, "metadata", schema))
    else:
        metadata = [n for n in schema.names if n not in taken | set(ranges) | {URL_COLUMN}]
    texts = [n for n in metadata if n != key and _is_prose(head, n)] if not ranges else []
    if choices.metadata is None and ranges and key == KEY:
        metadata = [name for name in metadata if name != KEY]
    return Findings(key, _qualified(files), tuple(metadata), tuple(texts), tuple(notes))


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
        files.append(_with_places(column, schema))
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
    small = [f.name for f in groups.schema if not _holds_bytes(f.type)]
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


def _holds_bytes(dtype: pa.DataType) -> bool:
    if pa.types.is_struct(dtype):
        return any(_holds_bytes(f.type) for f in dtype)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return _holds_bytes(dtype.value_type)
    return bool(pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype))


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


def _range_columns(schema: pa.Schema) -> list[str]:
    """Columns that place members in the tar of ``URL_COLUMN``: of packed datasets and scans."""
    if URL_COLUMN not in schema.names:
        return []
    return [
        f.name
        for f in schema
        if pa.types.is_struct(f.type) and {"offset", "size"} <= {child.name for child in f.type}
    ]


def _chosen(name: str, ext: str | None, schema: pa.Schema, head: pa.Table) -> FileColumn:
    if name in _range_columns(schema):
        return FileColumn(name, "range", ext=ext or name)
    kind, element = kind_of(name, schema.field(name).type)
    own = ext or _own_ext(name, head)
    return FileColumn(name, kind, ext=own, exts=_seen_exts(head, name, kind), element=element)


def _own_ext(name: str, head: pa.Table) -> str | None:
    """The ext of a column that is named by it, as written indexes have them (``seg.png``)."""
    column = head.column(name)
    if not _is_text_type(column.type):
        return None
    cells = [cell for cell in to_list(column.slice(0, _LOOKED_AT)) if cell]
    suffix = f".{name.lower()}"
    if not cells or not all(base_name(cell).lower().endswith(suffix) for cell in cells):
        return None
    return name.lower()


def _found_files(head: pa.Table, not_these: set[str]) -> list[FileColumn]:
    sure: list[FileColumn] = []
    maybe: list[FileColumn] = []
    for name in head.column_names:
        if name in not_these:
            continue
        verdict, kind, element = _holds_files(head, name)
        if kind is None or verdict == "no":
            continue
        column = FileColumn(
            name, kind, _own_ext(name, head), _seen_exts(head, name, kind), element=element
        )
        (sure if verdict == "yes" else maybe).append(column)
    return sure or maybe[:1]


def _holds_files(head: pa.Table, name: str) -> tuple[str, Kind | None, Kind | None]:
    """Say ``"yes"``, ``"maybe"`` (a web address that names no medium) or ``"no"``."""
    dtype = head.schema.field(name).type
    try:
        kind, element = kind_of(name, dtype)
    except ConfigError:
        return "no", None, None
    if "bytes" in (kind, element) or "struct" in (kind, element):
        return "yes", kind, element
    if kind == "list" and element != "url":
        return "no", None, None
    column = head.column(name)
    if kind == "list":
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], dtype.value_type)
    cells = [cell for cell in to_list(column.slice(0, _LOOKED_AT)) if cell]
    if not cells:
        return "no", None, None
    if _is_int(head.schema, f"size.{name}") and _own_ext(name, head):
        return "yes", kind, element
    verdicts = [_names_file(cell) for cell in cells]
    if verdicts.count("yes") >= 0.9 * len(cells):
        return "yes", kind, element
    words = set(name.lower().replace("-", "_").split("_"))
    if verdicts.count("no") == 0 and not words & _PAGES:
        return "maybe", kind, element
    return "no", None, None


def _names_file(cell: str) -> str:
    if len(cell) > 4_096 or "\n" in cell:
        return "no"
    scheme, sign, rest = cell.partition("://")
    if sign and scheme.isalnum():
        if scheme.lower() in ("http", "https"):
            return "yes" if known_ext(cell) else "maybe"
        return "yes" if rest and not rest.endswith("/") else "no"
    if not known_ext(cell):
        return "no"
    return "yes" if "/" in cell or cell.count(" ") <= 4 else "no"


def _seen_exts(head: pa.Table, name: str, kind: Kind) -> tuple[str, ...]:
    column = head.column(name).slice(0, _LOOKED_AT)
    if kind == "list":
        chunks = [chunk.flatten() for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.value_type).slice(0, _LOOKED_AT)
        kind = kind_of(name, column.type)[0]
    if kind == "url":
        return tuple(sorted({last_ext(cell) for cell in to_list(column) if cell} - {""}))
    cells = [cell for cell in column.slice(0, _HEAD_BYTES_ROWS).to_pylist() if cell is not None]
    if kind == "struct":
        found = {last_ext(cell["path"] or "") or sniff_ext(cell["bytes"] or b"") for cell in cells}
    else:
        found = {sniff_ext(cell) for cell in cells}
    return tuple(sorted(found))


def _with_bases(
    files: Sequence[FileColumn],
    head: pa.Table,
    groups: Groups,
    store: Store,
    *,
    guessed: bool,
    notes: list[str],
) -> list[FileColumn]:
    """Find out where relative paths start; leave out guesses whose files are nowhere."""
    found: list[FileColumn] = []
    nowhere: list[FileColumn] = []
    for column in files:
        paths = _relative_paths(column, head)
        if not paths:
            found.append(column)
            continue
        folder = folder_of(groups.file(0)) if len(groups.counts) else ""
        here = os.getcwd() + "/"
        if not folder:
            found.append(replace(column, from_cwd=here))
        elif any(_exists(store, resolve(path, folder)) for path in paths):
            found.append(column)
        elif any(os.path.exists(os.path.join(here, path)) for path in paths):
            notes.append(
                f"relative paths of {column.name} start in the working directory ({here}): there "
                f"is no {paths[0]} in {folder}"
            )
            found.append(replace(column, from_cwd=here))
        else:
            nowhere.append(column)
    if nowhere and (not guessed or not found):
        found.extend(nowhere)
    elif nowhere:
        names = ", ".join(column.name for column in nowhere)
        notes.append(f"taken as metadata, because no such files were found: {names}")
    if notes:
        logger.info("; ".join(notes))
    order = {name: place for place, name in enumerate(head.column_names)}
    return sorted(found, key=lambda column: order[column.name]) if guessed else found


def _relative_paths(column: FileColumn, head: pa.Table) -> list[str]:
    if column.kind != "url":
        return []
    cells = [cell for cell in to_list(head.column(column.name)) if cell]
    relative = [cell for cell in cells if not cell.startswith("/") and "://" not in cell]
    step = max(1, len(relative) // _TRIED)
    return relative[::step][:_TRIED]


def _exists(store: Store, url: str) -> bool:
    if is_local(url):
        return os.path.exists(local_path(url))
    try:
        store.stat(url)
    except NotFoundError:
        return False
    return True


def _with_places(column: FileColumn, schema: pa.Schema) -> FileColumn:
    """Find the columns of sizes and offsets that a written index has beside its URLs."""
    size, offset, xxh3 = (f"{place}.{column.name}" for place in ("size", "offset", "xxh3"))
    return replace(
        column,
        size=size if _is_int(schema, size) else None,
        offset=offset if _is_int(schema, offset) and _is_int(schema, size) else None,
        xxh3=xxh3 if _is_int(schema, xxh3) and _is_int(schema, size) else None,
    )


def _is_int(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and bool(pa.types.is_integer(schema.field(name).type))


def _inlined(name: str, ext: str | None, schema: pa.Schema) -> FileColumn:
    dtype = schema.field(name).type
    if _holds_bytes(dtype) and not pa.types.is_nested(dtype):
        return FileColumn(name, "bytes", ext=ext)
    text = _is_text_type(dtype)
    ext = ext or ("txt" if text or not pa.types.is_nested(dtype) else "json")
    kind: Kind = "json" if ext.rpartition(".")[2] == "json" and not text else "text"
    return FileColumn(name, kind, ext=ext, exts=(ext,))


def _qualified(files: Sequence[FileColumn]) -> tuple[FileColumn, ...]:
    """Columns that share an ext, or whose exts are both unknown, are named by column."""
    found = []
    for column in files:
        mine = _possible_exts(column)
        others = [_possible_exts(other) for other in files if other is not column]
        shared = any(mine & theirs or not (mine or theirs) for theirs in others)
        found.append(replace(column, qualified=shared or column.kind == "list"))
    return tuple(found)


def _possible_exts(column: FileColumn) -> set[str]:
    return {column.ext} if column.ext else set(column.exts)


def _key(
    chosen: str | None, head: pa.Table, taken: set[str], schema: pa.Schema, notes: list[str]
) -> str | None:
    if chosen is not None:
        if chosen not in schema.names:
            raise ConfigError(
                f"key: the index has no column {chosen!r}; it has {', '.join(schema.names)}"
            )
        return chosen
    for name in _key_candidates(schema.names):
        column = head.column(name)
        if name in taken or not _can_be_key(column.type):
            continue
        if column.null_count:
            notes.append(f"{name} is not the key: it is null in some rows")
        elif pc.count_distinct(column).as_py() < len(column):
            notes.append(f"{name} is not the key: it repeats")
        else:
            return name
    return None


def _key_candidates(names: Sequence[str]) -> list[str]:
    lower = {name.lower(): name for name in reversed(names)}
    known = [lower[name] for name in _KEY_NAMES if name in lower]
    others = [
        name
        for name in names
        if name.lower().endswith(("_id", "_key", "_uid", "_uuid"))
        and name.lower().rpartition("_")[0] not in _NO_KEYS
        and name not in known
    ]
    return known + others


def _can_be_key(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype)) or _is_text_type(dtype)


def _is_text_type(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        return _is_text_type(dtype.value_type)
    return bool(
        pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or str(dtype) == "string_view"
    )


def _is_prose(head: pa.Table, name: str) -> bool:
    column: Any = head.column(name)
    if not _is_text_type(column.type):
        return False
    cells = [cell for cell in to_list(column.slice(0, _LOOKED_AT)) if cell]
    return bool(cells) and sum(cell.count(" ") for cell in cells) >= 2 * len(cells)
