"""CSV and TSV → tables whose types keep the text: a column is numbers only if they print alike."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from shardkit.errors import IndexDataError
from shardkit.index.spool import Spool
from shardkit.index.streams import native_buffer, native_path

__all__ = ["csv_tables"]

_BLOCK = 16 << 20  # a row must fit in a block; captions of megabytes do
_INT = r"^(0|-?[1-9][0-9]{0,18})$"
# Of whole numbers only those of 15 digits: all of them are doubles, which holds up to 2^53.
_FLOAT = (
    r"^(-?(0|[1-9][0-9]{0,14})|-?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)"
    r"|[nN]a[nN]|-?inf)$"
)
_BOOL = r"^([tT]rue|[fF]alse|TRUE|FALSE)$"
_TYPES = ((_INT, pa.int64()), (_FLOAT, pa.float64()), (_BOOL, pa.bool_()))


def csv_tables(file: BinaryIO, url: str, spool: Spool) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Read all cells as text into ``spool``, then give each column a type that keeps its text.

    ``0001`` stays text, and so do dates, ``NA`` and numbers beyond 64 bits; an empty cell is null,
    a quoted empty one is ``""``. Quoted cells may hold line breaks. The delimiter is the one of
    ``, ; tab |`` that the header line has most of.

    Raises:
        IndexDataError: rows of different lengths, a repeated column, quotes that are never closed,
            or text that is not UTF-8.
    """
    head = file.peek(1 << 16)[: 1 << 16]  # type: ignore[attr-defined]
    if not head.strip():
        raise IndexDataError(f"{url} is empty; a CSV index has a header line and a line per row")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise IndexDataError(f"{url} is UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8)")
    with native_path(file, f"{spool.path}.text") as path:
        try:
            names, fits = _spooled(path, head, url, spool)
        except pa.ArrowException as error:
            raise IndexDataError(f"{url}: {_words(error)}") from error
    types: dict[str, pa.DataType] = {}
    for name, known in fits.items():
        chosen = [dtype for (_, dtype), fit in zip(_TYPES, known, strict=True) if fit]
        types[name] = chosen[0] if chosen else pa.string()
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    text = pa.schema([(name, pa.string()) for name in names])
    return schema, (_typed(table, schema) for table in spool.tables(text))


def _spooled(
    path: str, head: bytes, url: str, spool: Spool
) -> tuple[list[str], dict[str, list[bool]]]:
    """Put all cells into the spool as text; return the columns, and which types fit each."""
    fits: dict[str, list[bool]] = {}
    with _open(path, head) as reader:
        _check_names(reader.schema.names, url)
        table = reader.schema.empty_table()
        for batch in reader:
            table = pa.Table.from_batches([batch])
            for name in table.column_names:
                known = fits.setdefault(name, [True] * len(_TYPES))
                _narrow(known, table.column(name))
            spool.append(table)
        if not fits:
            spool.append(table)
        _check_closed(table, path, url)
        return reader.schema.names, fits


def _open(path: str, head: bytes) -> pa_csv.CSVStreamingReader:
    first = re.split(rb"[\r\n]", head.removeprefix(b"\xef\xbb\xbf"), maxsplit=1)[0]
    outside = re.sub(rb'"[^"]*"', b"", first)
    delimiter = max((b",", b"\t", b";", b"|"), key=outside.count).decode()
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = _header(first, delimiter)
    return pa_csv.open_csv(
        pa.OSFile(path),
        read_options=pa_csv.ReadOptions(block_size=_BLOCK, use_threads=True),
        parse_options=parse,
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _header(line: bytes, delimiter: str) -> list[str]:
    """Column names, by the same parser as the rows'."""
    options = pa_csv.ReadOptions(autogenerate_column_names=True)
    parse = pa_csv.ParseOptions(delimiter=delimiter)
    convert = pa_csv.ConvertOptions(
        column_types={f"f{i}": pa.string() for i in range(line.count(delimiter.encode()) + 1)}
    )
    row = pa_csv.read_csv(
        pa.BufferReader(native_buffer(line + b"\n")),
        read_options=options,
        parse_options=parse,
        convert_options=convert,
    )
    return [column[0].as_py() or "" for column in row.columns]


def _check_names(names: list[str], url: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise IndexDataError(f"{url} has two columns {name!r}; rename one")
        seen.add(name)


def _check_closed(last: pa.Table, path: str, url: str) -> None:
    """Refuse a last cell of several lines that is not closed: it has swallowed rows."""
    cell = last.column(-1)[-1].as_py() if last.num_rows else None
    if cell is None or not re.search(r"[\r\n]", cell):
        return
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        if file.read().rstrip().endswith(b'"'):
            return
    raise IndexDataError(
        f"{url}: the quotes before {cell[:40]!r} are never closed, so that the rest of the file is "
        "one cell; close them, or double them where they are part of the text"
    )


def _narrow(fits: list[bool], column: pa.ChunkedArray) -> None:
    """Strike out the types that this part of a column does not fit."""
    if column.null_count == len(column):
        return
    for i, (pattern, _) in enumerate(_TYPES):
        if fits[i]:
            matches = pc.match_substring_regex(column, pattern)
            fits[i] = bool(pc.all(pc.fill_null(matches, True)).as_py())
    fits[0] = fits[0] and _holds_int64(column)


def _holds_int64(column: pa.ChunkedArray) -> bool:
    """Whether whole numbers of up to 19 digits are all below 2^63."""
    try:
        column.cast(pa.int64())
    except pa.ArrowInvalid:
        return False
    return True


def _typed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        column if field.type == pa.string() else _parsed(column, field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _parsed(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_boolean(dtype):
        return pc.equal(pc.utf8_lower(column), "true")
    return column.cast(dtype)


def _words(error: BaseException) -> str:
    text = str(error).splitlines()[0]
    if "UTF8" in text or "UTF-8" in text:
        return f"{text}; save it as UTF-8 (iconv -f latin1 -t utf-8)"
    return f"{text}; every line needs as many cells as the header (quote cells that hold commas)"
