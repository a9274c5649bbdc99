"""Tars as img2dataset writes them: photos' bytes, captions, and a json of fields for each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.index.tar_zoo import member, write_tar

__all__ = ["fields_of", "make_tars", "tree"]


def fields_of(tar: int, row: int) -> dict[str, Any]:
    """What the json of a sample holds."""
    return {
        "caption": f"a photo of {'cat' if row % 3 else 'dog'} {row}",
        "url": f"https://example.com/{tar}/{row}.jpg",
        "key": f"{tar:03d}{row:04d}",
        "width": 100 + row,
        "similarity": row / 8,
        "error_message": None,
        "exif": {"Make": "x"} if row == 1 else None,
    }


def make_tars(
    folder: Path, num_tars: int = 3, rows: int = 20, num_bytes: int = 700, beside: bool = False
) -> Path:
    """Write ``00000.tar`` … with a jpg, txt and json a sample; perhaps a table beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for tar in range(num_tars):
        entries, records = [], []
        for row in range(rows):
            fields = fields_of(tar, row)
            data = random.Random(tar * 1000 + row).randbytes(num_bytes)
            entries += [
                member(f"{fields['key']}.jpg", data),
                member(f"{fields['key']}.txt", fields["caption"].encode()),
                member(f"{fields['key']}.json", json.dumps(fields).encode()),
            ]
            records.append({**fields, "exif": json.dumps(fields["exif"]), "status": "success"})
        write_tar(folder / f"{tar:05d}.tar", entries)
        if beside:
            lost = {**fields_of(tar, 9_999), "exif": None, "status": "failed_to_download"}
            table = pa.Table.from_pylist([lost, *reversed(records)])
            pq.write_table(table, folder / f"{tar:05d}.parquet")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
