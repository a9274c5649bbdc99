"""A packed data set of real small photos, with captions, classes, arrays and metadata."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_SAMPLES = 101


@dataclass(frozen=True)
class Packed:
    """A packed data set, and the files that went into it."""

    url: str
    index: str
    files: dict[str, dict[str, bytes]]

    @property
    def keys(self) -> list[str]:
        return list(self.files)


def make_files(folder: Path, num_samples: int) -> tuple[str, dict[str, dict[str, bytes]]]:
    rng = np.random.default_rng(7)
    files: dict[str, dict[str, bytes]] = {}
    rows = []
    os.makedirs(folder, exist_ok=True)
    for number in range(num_samples):
        key = f"{number:04d}"
        photo, array = io.BytesIO(), io.BytesIO()
        pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(photo, "JPEG", quality=90)
        np.save(array, np.arange(number % 5 + 1, dtype=np.float32))
        members = {
            "jpg": photo.getvalue(),
            "cls": str(number % 10).encode(),
            "npy": array.getvalue(),
            "json": json.dumps({"number": number}).encode(),
        }
        for ext, data in members.items():
            (folder / f"{key}.{ext}").write_bytes(data)
        files[key] = members | {"txt": f"a photo of {number}".encode()}
        rows.append(
            {
                "id": key,
                **{f"{ext}_path": f"{key}.{ext}" for ext in members},
                "caption": f"a photo of {number}",
                "aspect": number / 50,
                "label": "cat" if number % 3 else "dog",
            }
        )
    index = str(folder / "index.parquet")
    pq.write_table(pa.Table.from_pylist(rows), index)
    return index, files
