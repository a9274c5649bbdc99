"""Small indexes of real files, in every kind of source."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from shardkit.index import Index, Rows

__all__ = ["Record", "all_keys", "make_files", "same_rows", "summary", "write_source"]

Record = dict[str, Any]


def make_files(folder: Path, count: int = 10, ext: str = "jpg") -> list[Record]:
    """Files ``img/0000.jpg`` …, and a record for each with a relative path."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(count):
        path = f"img/{i:04d}.{ext}"
        (folder / path).write_bytes(b"\xff\xd8\xff" + f"{ext} {i}".encode())
        records.append(
            {
                "id": f"{i:04d}",
                "image": path,
                "caption": f"a photo of thing {i}, quite nice",
                "width": 100 + i,
                "score": i / 4,
            }
        )
    return records


def write_source(path: Path, records: Sequence[Record]) -> Path:
    """Write records in the format that the path's ext says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ext = path.suffix
    table = pa.Table.from_pylist(list(records))
    if ext == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif ext in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            delimiter = "\t" if ext == ".tsv" else ","
            writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    elif ext == ".json":
        path.write_text(json.dumps(list(records)))
    elif ext == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif ext == ".feather":
        feather.write_feather(table, str(path))
    elif ext == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        raise ValueError(ext)
    return path


def all_keys(index: Index) -> list[str]:
    """Keys of all rows, in order."""
    return [key for rows in index.batches(7) for key in rows.keys]


def summary(index: Index) -> list[dict[str, Any]]:
    """Each row as key, members by name (URL and place, or bytes) and metadata."""
    return [row for rows in index.batches(7) for row in _rows(rows)]


def _rows(rows: Rows) -> list[dict[str, Any]]:
    found = []
    metadata = rows.metadata.to_pylist() if rows.metadata.num_columns else [{}] * len(rows)
    for i, key in enumerate(rows.keys):
        members = {}
        for column in rows.members:
            if column.has(i):
                value = column.values[i] if column.values is not None else None
                start = column.starts[i] if column.starts is not None else None
                size = column.sizes[i] if column.sizes is not None else None
                members[column.names[i]] = (column.urls[i], start, size, value)
        found.append({"key": key, "members": members, "metadata": metadata[i]})
    return found


def same_rows(a: Index, b: Index) -> bool:
    """Whether two indexes have the same rows, in the same order."""
    return summary(a) == summary(b)
