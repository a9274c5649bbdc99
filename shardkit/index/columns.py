"""Columns of an index that hold files, and how their cells become members."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import ConfigError, IndexDataError
from shardkit.format.arrays import from_numbers, numbers, texts
from shardkit.format.metadata import jsonable
from shardkit.format.sniff import sniff_ext
from shardkit.index.names import last_ext, resolve
from shardkit.index.rows import MemberColumn

__all__ = ["FileColumn", "Kind", "holds_bytes", "is_text_type", "kind_of", "to_list"]

Kind = Literal["url", "bytes", "struct", "list", "range", "text", "json"]
"""What a cell holds: a URL or path; bytes; ``{bytes, path}`` as Hugging Face has it; a list of one
of these; a place in a tar; text or values that become the member's bytes themselves."""

URL_COLUMN = "__url__"
"""Column that the groups of tars add: the tar that a row's ranges are in."""


@dataclass(frozen=True, slots=True)
class FileColumn:
    """One column that holds files.

    Attributes:
        name: of the column.
        kind: what its cells hold (for a list: ``"list"``, and ``element`` says of what).
        ext: of all its members; None: each cell has its own.
        exts: seen in the first rows, for people to read.
        qualified: see ``shardkit.index.rows.member_name``.
        size: column with the sizes in bytes, if there is one.
        offset: column with the first byte in the URL, if there is one.
        xxh3: column with the XXH3-64 of the bytes, if there is one.
        from_cwd: relative paths start in the working directory at the time of opening (this one),
            not in the folder of the index file.
        element: kind of a list's elements.
    """

    name: str
    kind: Kind
    ext: str | None = None
    exts: tuple[str, ...] = ()
    qualified: bool = False
    size: str | None = None
    offset: str | None = None
    xxh3: str | None = None
    from_cwd: str | None = None
    element: Kind | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns to read for this one."""
        extra = (URL_COLUMN,) if self.kind == "range" else ()
        return tuple(c for c in (self.name, self.size, self.offset, self.xxh3) if c) + extra

    def members(self, table: pa.Table, folder: str) -> list[MemberColumn]:
        """Return the members of all rows of ``table``; ``folder`` is where relative paths start."""
        column = table.column(self.name)
        if self.kind == "list":
            return self._from_lists(column, folder)
        if self.kind == "range":
            return [self._from_ranges(column, table.column(URL_COLUMN))]
        member = self._from_cells(self.kind, self.name, column, folder)
        if self.size is None and self.offset is None:
            return [member]
        return [
            MemberColumn(
                name=member.name,
                exts=member.exts,
                urls=member.urls,
                starts=None if self.offset is None else _ints(table.column(self.offset)),
                sizes=None if self.size is None else _ints(table.column(self.size)),
                checksums=None if self.xxh3 is None else table.column(self.xxh3).to_pylist(),
                values=member.values,
                qualified=member.qualified,
            )
        ]

    def _from_cells(
        self, kind: Kind, name: str, column: pa.ChunkedArray, folder: str
    ) -> MemberColumn:
        if kind == "url":
            return self._from_urls(name, to_list(column), folder)
        if kind == "struct":
            return self._from_structs(name, column, folder)
        values = _inline(kind, column)
        exts = (
            [self.ext] * len(values)
            if self.ext is not None
            else ["" if v is None else sniff_ext(v) for v in values]
        )
        return MemberColumn(
            name, exts, [None] * len(values), values=values, qualified=self.qualified
        )

    def _from_urls(self, name: str, cells: Sequence[str | None], folder: str) -> MemberColumn:
        start = self.from_cwd if self.from_cwd is not None else folder
        urls = [resolve(cell, start) if cell else None for cell in cells]
        exts = (
            [self.ext] * len(urls)
            if self.ext is not None
            else [last_ext(url) if url else "" for url in urls]
        )
        return MemberColumn(name, exts, urls, qualified=self.qualified)

    def _from_structs(self, name: str, column: pa.ChunkedArray, folder: str) -> MemberColumn:
        """``{bytes, path}``: the bytes where there are some, else the file that the path names."""
        table = pa.Table.from_batches(
            [
                pa.RecordBatch.from_arrays(
                    [pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path")],
                    names=["bytes", "path"],
                )
                for chunk in column.chunks
            ],
            schema=pa.schema([column.type.field("bytes"), column.type.field("path")]),
        )
        values = _inline("bytes", table.column("bytes"))
        at = self._from_urls(name, to_list(table.column("path")), folder)
        exts = [
            ext or ("" if value is None else sniff_ext(value))
            for ext, value in zip(at.exts, values, strict=True)
        ]
        urls = [url if value is None else None for url, value in zip(at.urls, values, strict=True)]
        return MemberColumn(name, exts, urls, values=values, qualified=self.qualified)

    def _from_lists(self, column: pa.ChunkedArray, folder: str) -> list[MemberColumn]:
        """The k-th elements of all lists are a column ``<name>.<k>``."""
        cells = column.combine_chunks()
        if isinstance(cells, pa.ChunkedArray):  # no rows at all
            return []
        lengths = numbers(pc.list_value_length(cells))
        flat = pa.chunked_array([cells.flatten()])
        starts = np.cumsum(lengths) - lengths
        found = []
        for k in range(int(lengths.max(initial=0))):
            places = from_numbers(starts + k, lengths > k)
            name = f"{self.name}.{k}"
            found.append(self._from_cells(self.element or "url", name, flat.take(places), folder))
        return found

    def _from_ranges(self, column: pa.ChunkedArray, tars: pa.ChunkedArray) -> MemberColumn:
        places = column.combine_chunks()
        present = pc.is_valid(column).to_pylist()
        urls = [
            url if there else None for url, there in zip(tars.to_pylist(), present, strict=True)
        ]
        fields = {f.name for f in column.type}
        checksums: list[int | None] | None = None
        if "xxh3" in fields and len(column):
            checksums = pc.struct_field(places, "xxh3").to_pylist()
        return MemberColumn(
            name=self.name,
            exts=[self.ext or self.name] * len(urls),
            urls=urls,
            starts=_ints(pc.struct_field(places, "offset")) if len(column) else [],
            sizes=_ints(pc.struct_field(places, "size")) if len(column) else [],
            checksums=checksums,
            qualified=self.qualified,
        )


def kind_of(column: str, dtype: pa.DataType) -> tuple[Kind, Kind | None]:
    """Return the kind of cells that a type can hold files in, and of a list's elements.

    Raises:
        ConfigError: no file can be meant by such cells.
    """
    if is_text_type(dtype):
        return "url", None
    if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or _is(dtype, "binary_view"):
        return "bytes", None
    if pa.types.is_struct(dtype) and {"bytes", "path"} <= {f.name for f in dtype}:
        return "struct", None
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return "list", kind_of(column, dtype.value_type)[0]
    raise ConfigError(
        f"the column {column!r} holds {dtype}, which can't name a file: files are text (a URL or "
        "path), bytes, {bytes, path}, or lists of these; --inline puts other values into a member"
    )


def to_list(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """``to_pylist``, by the buffers where that is several times faster."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found: list[Any]
    if is_text_type(column.type):
        plain = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        found = texts(column if plain else column.cast(pa.large_string())).tolist()
    elif pa.types.is_integer(column.type) and column.null_count == 0:
        found = numbers(column).tolist()
    else:
        found = column.to_pylist()
    return found


def _is(dtype: pa.DataType, name: str) -> bool:
    return str(dtype) == name


def _ints(column: pa.ChunkedArray | pa.Array) -> list[int]:
    found: list[int] = numbers(pc.cast(column, pa.int64()), absent=-1).tolist()
    return found


def _inline(kind: Kind, column: pa.ChunkedArray) -> list[bytes | None]:
    if kind == "bytes":
        return list(column.to_pylist())
    if kind == "text" and is_text_type(column.type):
        return [None if cell is None else cell.encode() for cell in to_list(column)]
    encode = _json_bytes if kind == "json" else _plain_bytes
    return [None if cell is None else encode(cell) for cell in column.to_pylist()]


def _json_bytes(cell: Any) -> bytes:
    return json.dumps(jsonable(cell), ensure_ascii=False, allow_nan=False).encode()


def _plain_bytes(cell: Any) -> bytes:
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Mapping | list):
        raise IndexDataError(
            f"the value {str(cell)[:60]!r} is nested: inline it as json (--inline COLUMN=json)"
        )
    return str(cell).encode()


def holds_bytes(dtype: pa.DataType) -> bool:
    """Whether cells of the type are, or hold, bytes."""
    if pa.types.is_struct(dtype):
        return any(holds_bytes(f.type) for f in dtype)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return holds_bytes(dtype.value_type)
    return bool(pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype))


def is_text_type(dtype: pa.DataType) -> bool:
    """Whether cells of the type are text, spelled in any of Arrow's ways."""
    if pa.types.is_dictionary(dtype):
        return is_text_type(dtype.value_type)
    return bool(
        pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or str(dtype) == "string_view"
    )
