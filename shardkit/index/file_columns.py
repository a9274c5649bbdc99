"""Which columns hold files, what they hold, and where their relative paths start."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from shardkit.errors import ConfigError, NotFoundError
from shardkit.format.sniff import sniff_ext
from shardkit.index.columns import (
    URL_COLUMN,
    FileColumn,
    Kind,
    holds_bytes,
    is_text_type,
    kind_of,
    to_list,
)
from shardkit.index.groups import Groups
from shardkit.index.names import base_name, folder_of, known_ext, last_ext, resolve
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local, local_path

__all__ = [
    "chosen_column",
    "find_files",
    "inline_column",
    "is_prose",
    "qualify",
    "range_columns",
    "with_bases",
    "with_places",
]

logger = logging.getLogger(__name__)

_LOOKED_AT = 1_000  # cells that are looked at to tell what a column holds
_BYTES_CELLS = 8  # of cells that hold bytes
_TRIED = 8  # relative paths looked for, to know where they start
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


def range_columns(schema: pa.Schema) -> list[str]:
    """Columns that place members in the tar of ``URL_COLUMN``: of packed datasets and scans."""
    if URL_COLUMN not in schema.names:
        return []
    return [
        f.name
        for f in schema
        if pa.types.is_struct(f.type) and {"offset", "size"} <= {child.name for child in f.type}
    ]


def chosen_column(name: str, ext: str | None, schema: pa.Schema, head: pa.Table) -> FileColumn:
    """The file column that the user named."""
    if name in range_columns(schema):
        return FileColumn(name, "range", ext=ext or name)
    kind, element = kind_of(name, schema.field(name).type)
    own = ext or _own_ext(name, head)
    return FileColumn(name, kind, ext=own, exts=_seen_exts(head, name, kind), element=element)


def _own_ext(name: str, head: pa.Table) -> str | None:
    """The ext of a column that is named by it, as written indexes have them (``seg.png``)."""
    column = head.column(name)
    if not is_text_type(column.type):
        return None
    cells = [cell for cell in to_list(column.slice(0, _LOOKED_AT)) if cell]
    suffix = f".{name.lower()}"
    if not cells or not all(base_name(cell).lower().endswith(suffix) for cell in cells):
        return None
    return name.lower()


def find_files(head: pa.Table, not_these: set[str]) -> list[FileColumn]:
    """Columns whose first cells look like files; failing that, the first that may be one."""
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
    cells = [cell for cell in column.slice(0, _BYTES_CELLS).to_pylist() if cell is not None]
    if kind == "struct":
        found = {last_ext(cell["path"] or "") or sniff_ext(cell["bytes"] or b"") for cell in cells}
    else:
        found = {sniff_ext(cell) for cell in cells}
    return tuple(sorted(found))


def with_bases(
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


def with_places(column: FileColumn, schema: pa.Schema) -> FileColumn:
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


def inline_column(name: str, ext: str | None, schema: pa.Schema) -> FileColumn:
    """The column whose values become members themselves."""
    dtype = schema.field(name).type
    if holds_bytes(dtype) and not pa.types.is_nested(dtype):
        return FileColumn(name, "bytes", ext=ext)
    text = is_text_type(dtype)
    ext = ext or ("txt" if text or not pa.types.is_nested(dtype) else "json")
    kind: Kind = "json" if ext.rpartition(".")[2] == "json" and not text else "text"
    return FileColumn(name, kind, ext=ext, exts=(ext,))


def qualify(files: Sequence[FileColumn]) -> tuple[FileColumn, ...]:
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


def is_prose(head: pa.Table, name: str) -> bool:
    """Whether a column holds text of several words."""
    column = head.column(name)
    if not is_text_type(column.type):
        return False
    cells = [cell for cell in to_list(column.slice(0, _LOOKED_AT)) if cell]
    return bool(cells) and sum(cell.count(" ") for cell in cells) >= 2 * len(cells)
