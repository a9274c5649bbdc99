"""JSON in any of its shapes → tables: lines, an array of records, columns, a mapping by key.

Streaming: lines go through Arrow's own reader in blocks, everything else through Python's decoder
value by value, so that memory holds a block and not the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from shardkit.errors import IndexDataError
from shardkit.index.spool import Spool, as_text
from shardkit.index.streams import native_buffer

__all__ = ["json_tables"]

_CHUNK = 4 << 20
_LINE = 64 << 20  # bytes that one record may have
_ROWS = 8_192  # records that become one table
_SPACE = re.compile(r"[ \t\n\r]*")


def json_tables(file: BinaryIO, url: str, spool: Spool) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Read any JSON that lists records, whatever its file is called, into ``spool``.

    Raises:
        IndexDataError: no records can be found in it, or a record is no valid JSON (with its line).
    """
    head = file.peek(1 << 16)  # type: ignore[attr-defined]
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if not start:
        raise IndexDataError(f"{url} is empty; a JSON index has an object per row")
    tables = _lines(file, url) if start == b"{" and _is_lines(head) else _values(file, url, spool)
    for table in tables:
        spool.append(table)
    schema = spool.schema()
    if not schema.names:
        raise IndexDataError(f"{url} holds no records; a JSON index has an object per row")
    return schema, spool.tables(schema)


def _is_lines(head: bytes) -> bool:
    """Is the first line one whole object, and another thing follows or nothing at all?"""
    first, _, rest = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    try:
        json.loads(first)
    except ValueError:
        return False
    return rest.lstrip()[:1] == b"{"


def _lines(file: BinaryIO, url: str) -> Iterator[pa.Table]:
    rest = b""
    number = 1
    hints = pa.schema([])
    while True:
        chunk = file.read(_CHUNK)
        block = rest + chunk
        cut = block.rfind(b"\n") + 1 if chunk else len(block)
        block, rest = block[:cut], block[cut:]
        if len(rest) > _LINE:
            raise IndexDataError(f"{url}, line {number}: more than {_LINE:,} bytes without an end")
        if block.strip():
            table, hints = _parsed_block(block.removeprefix(codecs.BOM_UTF8), hints, url, number)
            yield table
        number += block.count(b"\n")
        if not chunk:
            return


def _parsed_block(
    block: bytes, hints: pa.Schema, url: str, number: int
) -> tuple[pa.Table, pa.Schema]:
    """Parse lines by Arrow where it keeps every value, else by Python."""
    options = pa_json.ReadOptions(block_size=max(len(block) + 1, 1 << 16), use_threads=False)
    for _ in range(2):
        try:
            table = pa_json.read_json(
                pa.BufferReader(native_buffer(block)),
                read_options=options,
                parse_options=pa_json.ParseOptions(
                    explicit_schema=hints, unexpected_field_behavior="infer"
                ),
            )
        except pa.ArrowException:
            break
        plain = pa.schema([(f.name, _no_times(f.type)) for f in table.schema])
        if plain == table.schema.remove_metadata():
            if _lossy(table):
                break
            return table, hints
        # Arrow takes text like 2024-01-01 for a time: ask again, for text
        hints = pa.schema([f for f in plain if f.type != table.schema.field(f.name).type])
    return _table(_line_records(block, url, number)), pa.schema([])


def _no_times(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_temporal(dtype):
        return pa.string()
    if pa.types.is_struct(dtype):
        return pa.struct([(f.name, _no_times(f.type)) for f in dtype])
    if pa.types.is_list(dtype):
        return pa.list_(_no_times(dtype.value_type))
    return dtype


def _lossy(table: pa.Table) -> bool:
    """Did Arrow make doubles of whole numbers that doubles can't hold?"""
    for column in table.columns:
        if pa.types.is_floating(column.type):
            largest = pc.max(pc.abs(column)).as_py()
            if largest is not None and largest >= 2**53:
                return True
        elif pa.types.is_nested(column.type) and "double" in str(column.type):
            return True  # rare; Python keeps them
    return False


def _line_records(block: bytes, url: str, number: int) -> Iterator[Any]:
    for line in block.split(b"\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise IndexDataError(
                    f"{url}, line {number}: not valid JSON ({error}); mend or remove the line"
                ) from error
        number += 1


def _values(file: BinaryIO, url: str, spool: Spool) -> Iterator[pa.Table]:
    pull = _Pull(file, url)
    if pull.peek() == "[":
        yield from _tables(pull.elements())
        return
    if pull.peek() != "{":
        raise IndexDataError(f"{url} holds no objects; a JSON index has an object per row")
    first = pull.small_value()
    if first is None:
        yield from _big_object(pull, spool)
    elif pull.peek():
        yield from _tables(_chain(first, pull.concatenated()))
    else:
        yield from _tables(_records_of(first, url))


def _chain(first: Any, rest: Iterable[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _records_of(whole: dict[str, Any], url: str) -> Iterator[Any]:
    """Find the records in one object: columns, a mapping by key, or a list under a name."""
    values = list(whole.values())
    if set(whole) >= {"columns", "data"} and all(isinstance(row, list) for row in whole["data"]):
        return (dict(zip(whole["columns"], row, strict=True)) for row in whole["data"])
    lists = [value for value in values if isinstance(value, list)]
    tabular = [value for value in lists if value and all(isinstance(v, dict) for v in value)]
    if len(tabular) == 1 and len(lists) == 1:
        return iter(tabular[0])
    if values and len(lists) == len(values):
        if len({len(value) for value in lists}) != 1:
            raise IndexDataError(
                f"{url} has lists of different lengths under {', '.join(list(whole)[:5])}: which "
                "of them are the rows? Write the records as JSON lines"
            )
        return (dict(zip(whole, row, strict=True)) for row in zip(*lists, strict=True))
    if values and all(isinstance(value, dict) for value in values):
        if _numbered(values[0]):
            names = list(dict.fromkeys(row for value in values for row in value))
            return ({name: column.get(row) for name, column in whole.items()} for row in names)
        return ({"key": key, **record} for key, record in whole.items())
    return iter([whole])


def _numbered(column: dict[str, Any]) -> bool:
    """Are these the rows of a column, as pandas writes them?"""
    return bool(column) and all(name.isdecimal() for name in islice(column, 100))


def _big_object(pull: _Pull, spool: Spool) -> Iterator[pa.Table]:
    """An object too big to hold: a list of records, or columns, one after another."""
    columns: dict[str, Spool] = {}
    path = spool.path
    try:
        for name in pull.names():
            opener = pull.peek()
            if opener == "[":
                values: Iterator[Any] = pull.elements()
            elif opener == "{":
                values = (value for _, value in pull.pairs())
            else:
                pull.value()
                continue
            column = columns[name] = Spool(f"{path}.column-{len(columns)}")
            for part in _parts(values):
                if isinstance(part[0], dict) and opener == "[":
                    yield _table(part)
                else:
                    column.append(pa.table({name: _array(part)}))
        yield from _zipped(columns, pull.url)
    finally:
        for column in columns.values():
            column.__exit__()


def _zipped(columns: dict[str, Spool], url: str) -> Iterator[pa.Table]:
    filled = {name: column for name, column in columns.items() if column.schema().names}
    streams = [column.tables(column.schema()) for column in filled.values()]
    for parts in zip(*streams, strict=False):
        if len({part.num_rows for part in parts}) != 1:
            break
        yield pa.Table.from_arrays([part.column(0) for part in parts], names=list(filled))
    else:
        if all(next(stream, None) is None for stream in streams):
            return
    raise IndexDataError(f"{url}: its columns {', '.join(filled)} have different lengths")


def _tables(records: Iterable[Any]) -> Iterator[pa.Table]:
    for part in _parts(iter(records)):
        yield _table(part)


def _parts(values: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(values, _ROWS)):
        yield part


def _table(records: Iterable[Any]) -> pa.Table:
    columns: dict[str, list[Any]] = {}
    for count, record in enumerate(records):
        if not isinstance(record, dict):
            raise IndexDataError(f"record {count} is {str(record)[:60]!r}, not an object")
        for name in record:
            if name not in columns:
                columns[name] = [None] * count
        for name, values in columns.items():
            values.append(record.get(name))
    return pa.table({name: _array(values) for name, values in columns.items()})


def _array(values: list[Any]) -> pa.Array:
    """Values as Arrow types them; those of several types as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.array([as_text(value) for value in values], pa.string())


class _Pull:
    """A JSON text, pulled value by value."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self.url = url
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is no blank; ``""`` at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """Return the next value."""
        size = _CHUNK
        while True:
            self.peek()
            try:
                found, stop = self._decoder.raw_decode(self._text, self._at)
            except ValueError as error:
                if self._more(size):
                    size *= 2
                    continue
                raise IndexDataError(f"{self.url} is not valid JSON: {error}") from error
            if stop == len(self._text) and self._more():
                continue  # a number may go on
            self._at = stop
            return found

    def small_value(self) -> Any:
        """Return the next value if it is small, else None and stay where it starts."""
        self.peek()
        while len(self._text) - self._at < 4 * _CHUNK and self._more():
            pass
        try:
            found, stop = self._decoder.raw_decode(self._text, self._at)
        except ValueError as error:
            if self._ended:
                raise IndexDataError(f"{self.url} is not valid JSON: {error}") from error
            return None
        self._at = stop
        return found

    def concatenated(self) -> Iterator[Any]:
        """Yield values up to the end of the text, whatever parts them."""
        while self.peek():
            yield self.value()

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the array that starts here."""
        self._expect("[")
        while self.peek() != "]":
            yield self.value()
            self._comma("]")
        self._expect("]")

    def names(self) -> Iterator[str]:
        """Yield the names of the object that starts here; the caller takes each value."""
        self._expect("{")
        while self.peek() != "}":
            name = self.value()
            self._expect(":")
            yield str(name)
            self._comma("}")
        self._expect("}")

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Yield names and values of the object that starts here."""
        for name in self.names():
            yield name, self.value()

    def _comma(self, closer: str) -> None:
        if self.peek() != closer:
            self._expect(",")

    def _expect(self, char: str) -> None:
        if self.peek() != char:
            raise IndexDataError(
                f"{self.url} is not valid JSON: {self.peek()!r} where {char!r} should stand"
            )
        self._at += 1

    def _more(self, size: int = _CHUNK) -> bool:
        if self._ended:
            return False
        data = self._file.read(size)
        self._ended = not data
        try:
            text = self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise IndexDataError(f"{self.url} is not UTF-8: {error}") from error
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(text) or not self._ended
