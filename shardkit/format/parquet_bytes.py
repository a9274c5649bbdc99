"""Parquet files that are in memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["parquet_table"]


def parquet_table(data: bytes) -> pa.Table:
    """All of a Parquet file, read by this thread alone.

    ``pq.read_table`` leaves the work to threads of Arrow that may still be letting go of ``data``
    after it has returned. To do so they ask for the interpreter, and if it is ending meanwhile
    the whole process aborts.

    Raises:
        pa.ArrowException: the bytes are no Parquet file.
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
