"""Arrow files, streams and tables of other libraries → tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from shardkit.errors import ConfigError, IndexDataError
from shardkit.index.spool import Spool

__all__ = ["arrow_tables", "as_table"]


def arrow_tables(file: BinaryIO, url: str, spool: Spool) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Read an Arrow IPC file (``.arrow``, Feather 2) or stream, from front to back.

    A file is a stream with a header of 8 bytes and a footer, so far ones need no seeking.

    Raises:
        IndexDataError: it is neither, or breaks off.
    """
    del spool
    magic = file.peek(8)[:8]  # type: ignore[attr-defined]
    if magic.startswith(b"ARROW1"):
        file.read(8)
    elif magic.startswith(b"FEA1"):
        raise IndexDataError(
            f"{url} is a Feather file of version 1; write it again as Feather 2 or Parquet"
        )
    try:
        reader = pa.ipc.open_stream(pa.PythonFile(file, mode="r"))
    except (pa.ArrowException, OSError) as error:
        raise IndexDataError(f"{url} is no Arrow file or stream: {error}") from error
    return reader.schema.remove_metadata(), _batches(reader, url)


def _batches(reader: Any, url: str) -> Iterator[pa.Table]:
    try:
        for batch in reader:
            yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise IndexDataError(f"{url} breaks off: {error}") from error


def as_table(source: Any) -> pa.Table:
    """Return an Arrow table of a table, DataFrame or list of dicts.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(source, pa.Table):
        table = source
    elif isinstance(source, pa.RecordBatch):
        table = pa.Table.from_batches([source])
    elif type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        table = _from_pandas(source)
    elif hasattr(source, "__arrow_c_stream__"):
        table = pa.table(source)
    elif isinstance(source, list) and source and all(isinstance(row, dict) for row in source):
        names = list(dict.fromkeys(name for row in source for name in row))
        table = pa.table({name: [row.get(name) for row in source] for name in names})
    else:
        raise ConfigError(
            f"a {type(source).__name__} is no index: give a path or URL, an Arrow table, a "
            "DataFrame or a list of dicts"
        )
    return table.replace_schema_metadata(None)


def _from_pandas(frame: Any) -> pa.Table:
    """Keep the frame's index where it says something: it has a name, or is no plain count."""
    try:
        table = pa.Table.from_pandas(frame.rename(columns=str))
    except pa.ArrowException as error:
        raise IndexDataError(f"the DataFrame holds what Arrow can't: {error}") from error
    names = ["index" if name == "__index_level_0__" else name for name in table.column_names]
    return table.rename_columns(names)
