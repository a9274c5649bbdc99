"""Small indexes of real photos, in every kind of source, near and far."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.index.build import write_source

__all__ = ["Photos", "make_photos", "source_of"]


@dataclass(frozen=True)
class Photos:
    """Photos in ``folder``/img, and where they are read from.

    Attributes:
        folder: local.
        root: URL of the folder, as clients see it.
        options: of the store.
        data: bytes by key.
    """

    folder: Path
    root: str
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return list(self.data)

    def records(self) -> list[dict[str, Any]]:
        """Rows of an index."""
        return [
            {
                "data_id": key,
                "data_url": f"{self.root}/img/{key}.jpg",
                "aspect": number / 10,
                "label": "cat" if number % 3 else "dog",
            }
            for number, key in enumerate(self.data)
        ]


def make_photos(folder: Path, count: int = 23) -> dict[str, bytes]:
    rng = np.random.default_rng(3)
    (folder / "img").mkdir(parents=True)
    data = {}
    for number in range(count):
        photo = io.BytesIO()
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photo, "JPEG")
        data[f"{number:04d}"] = photo.getvalue()
        (folder / "img" / f"{number:04d}.jpg").write_bytes(photo.getvalue())
    return data


def source_of(kind: str, photos: Photos) -> Any:
    """An index of the photos: a file beside them, or a table."""
    folder, root, records = photos.folder, photos.root, photos.records()
    if kind in ("csv", "json", "jsonl", "parquet", "feather"):
        write_source(folder / f"index.{kind}", records)
        return f"{root}/index.{kind}"
    if kind == "wildcard":
        for number, start in enumerate(range(0, len(records), 9)):
            table = pa.Table.from_pylist(records[start : start + 9])
            (folder / "parts").mkdir(exist_ok=True)
            pq.write_table(table, folder / "parts" / f"{number}.parquet", row_group_size=4)
        return f"{root}/parts/*.parquet"
    if kind == "list":
        source_of("wildcard", photos)
        names = sorted(path.name for path in (folder / "parts").iterdir())
        (folder / "split_file_paths.txt").write_text("".join(f"parts/{n}\n" for n in names))
        return f"{root}/split_file_paths.txt"
    if kind == "folder":
        return f"{root}/img"
    if kind == "table":
        return pa.Table.from_pylist(records)
    if kind == "frame":
        return pa.Table.from_pylist(records).to_pandas()
    if kind == "dicts":
        return json.loads(json.dumps(records))
    raise ValueError(kind)
