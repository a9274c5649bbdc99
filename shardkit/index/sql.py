"""DuckDB over streams of Arrow batches, in bounded memory.

The one module that imports it, when it is asked: that takes 0.2 s, and most processes that hold an
index never ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.index.scratch import Scratch

if TYPE_CHECKING:
    import duckdb

__all__ = ["MEMORY_LIMIT", "Batches", "QueryError", "connect", "parsed", "version"]

MEMORY_LIMIT = "512MB"
"""Of one query; beyond it DuckDB goes to disk, as far as it can."""


class QueryError(Exception):
    """What DuckDB says of a query that it can't do."""


class Batches:
    """A table for DuckDB to scan as often as it likes: every scan asks ``make`` anew.

    An error that ``make``'s batches raise would reach the caller as words in DuckDB's own; it is
    kept in ``error`` so that ``connect`` raises the original.
    """

    def __init__(self, schema: pa.Schema, make: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self.schema = schema
        self.error: BaseException | None = None
        self._make = make

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        reader = pa.RecordBatchReader.from_batches(self.schema, self._guarded())
        return reader.__arrow_c_stream__(requested_schema)

    def _guarded(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._make()
        except Exception as error:
            self.error = error
            raise


@contextmanager
def connect(scratch: Scratch, **tables: Batches) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection of its own that sees ``tables``; what does not fit goes to ``scratch``.

    One thread and a fixed seed, so that equal queries give equal rows in equal order on every rank.

    Raises:
        QueryError: the block asked for what DuckDB can't do.
    """
    import duckdb  # noqa: PLC0415 - see above

    with scratch.temporary() as spill:
        connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": spill,
                "threads": 1,
                "python_enable_replacements": False,
            },
        )
        try:
            connection.execute("SET enable_progress_bar = false").fetchall()
            connection.execute("SELECT setseed(0.5)").fetchall()
            for name, table in tables.items():
                connection.register(name, table)
            yield connection
        except duckdb.Error as error:
            for table in tables.values():
                if table.error is not None:
                    raise table.error from error
            raise QueryError(str(error)) from error
        finally:
            connection.close()


def parsed(query: str) -> dict[str, Any]:
    """The tree of a query as DuckDB parses it; with a true ``error`` if it doesn't."""
    import duckdb  # noqa: PLC0415 - see above

    quoted = query.replace("'", "''")
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        (text,) = connection.execute(f"SELECT json_serialize_sql('{quoted}')").fetchone() or ("",)
    tree: dict[str, Any] = json.loads(text)
    return tree


def version() -> str:
    """DuckDB's."""
    import duckdb  # noqa: PLC0415 - see above

    return duckdb.__version__
