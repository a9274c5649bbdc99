"""Keys that repeat anywhere in an index, found in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import IndexDataError
from shardkit.format.arrays import from_numbers, numbers
from shardkit.index.columns import to_list
from shardkit.index.repeats import repeated
from shardkit.index.scratch import Scratch
from shardkit.index.sql import Batches, connect

if TYPE_CHECKING:
    import duckdb

__all__ = ["UNIQUE_KEYS", "KeyBatches", "check_unique", "find_repeated", "repeats_of"]

KeyBatches = Iterator[tuple[npt.NDArray[np.int64], pa.ChunkedArray]]
"""(row numbers, keys as text), group by group."""

UNIQUE_KEYS = "make keys unique, or name another column (--key, index_col_name=)"
"""What to do about keys that repeat."""

_SCHEMA = pa.schema([("row", pa.int64()), ("key", pa.string())])
_FEW_BYTES = 16 << 20  # of keys that are compared in memory: a million take 0.2 s and 200 MB
_HASHES = 1 << 20  # a batch
_SUSPECTS = 1_000  # equal hashes that are looked at as text; unequal keys among them are a rarity


def check_unique(
    batches: Callable[[], KeyBatches], where: Callable[[int], str], scratch: Scratch, column: str
) -> None:
    """Raise if a key is missing or repeats.

    Keys that fit in memory are compared there. Of more, hashes of 64 bits are sorted, in parts on
    disk where memory does not suffice; keys of equal hash are then looked at as text.

    Args:
        batches: yields all keys, as often as it is called.
        where: words for a row number.
        scratch: has room for what does not fit in memory.
        column: the key column, for the message.

    Raises:
        IndexDataError: naming value and rows.
    """
    found = find_repeated(batches, where, scratch, column)
    if found is not None:
        key, *rows = found
        raise IndexDataError(
            f"the key {key!r} repeats: {where(rows[0])} and {where(rows[1])}; {UNIQUE_KEYS}"
        )


def find_repeated(
    batches: Callable[[], KeyBatches], where: Callable[[int], str], scratch: Scratch, column: str
) -> tuple[str, int, int] | None:
    """Return a key that repeats and its first two rows, or None. See ``check_unique``.

    Raises:
        IndexDataError: a key is missing.
    """
    if _are_few_and_differ(_checked(batches(), where, column)):
        return None
    keys = Batches(_SCHEMA, lambda: _checked(batches(), where, column))
    with connect(scratch, keys=keys) as connection, scratch.temporary() as folder:
        suspects = repeated(_hashes(connection, keys), folder, _SUSPECTS)
        if not len(suspects):
            return None
        listed = ", ".join(map(str, suspects.tolist()))
        found = connection.sql(
            "SELECT key, list(row ORDER BY row)[:2] FROM keys "  # noqa: S608
            f"WHERE hash(key) IN ({listed}) GROUP BY key HAVING count(*) > 1 "
            "ORDER BY min(row) LIMIT 1"
        ).fetchall()
    return (found[0][0], *found[0][1]) if found else None


def repeats_of(keys: pa.ChunkedArray) -> dict[int, int]:
    """Return the places whose key stands earlier, too, with that earlier place; all in memory."""
    if pc.count_distinct(keys, mode="all").as_py() == len(keys):
        return {}
    first: dict[Any, int] = {}
    places = enumerate(to_list(keys))
    return {at: known for at, key in places if (known := first.setdefault(key, at)) != at}


def _are_few_and_differ(batches: Iterator[pa.RecordBatch]) -> bool:
    """Whether all keys fit in memory and none repeats: then nothing has to be asked of DuckDB."""
    chunks: list[pa.Array] = []
    num_bytes = 0
    for batch in batches:
        chunks.append(batch.column("key"))
        num_bytes += chunks[-1].nbytes
        if num_bytes > _FEW_BYTES:
            return False
    keys = pa.chunked_array(chunks, pa.string())
    return bool(pc.count_distinct(keys, mode="all").as_py() == len(keys))


def _hashes(
    connection: duckdb.DuckDBPyConnection, keys: Batches
) -> Iterator[npt.NDArray[np.uint64]]:
    """Hashes of all keys, streamed."""
    reader: Any = connection.sql("SELECT hash(key) FROM keys").to_arrow_reader(_HASHES)
    try:
        for batch in reader:
            column = batch.column(0)
            yield np.frombuffer(
                column.buffers()[1], np.uint64, count=len(column), offset=8 * column.offset
            )
    except (pa.ArrowException, OSError) as error:
        if keys.error is not None:
            raise keys.error from error
        raise


def _checked(
    batches: KeyBatches, where: Callable[[int], str], column: str
) -> Iterator[pa.RecordBatch]:
    for rows, keys in batches:
        lengths = numbers(pc.binary_length(keys))
        if not lengths.all():
            row = int(rows[lengths.argmin()])
            raise IndexDataError(
                f"the key column {column!r} is empty in {where(row)}; fill it, or name another "
                "column (--key)"
            )
        table = pa.Table.from_arrays([from_numbers(rows), keys], schema=_SCHEMA)
        yield from table.combine_chunks().to_batches()
