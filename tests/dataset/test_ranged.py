"""Members that are read in parts: a clip of a film in a far shard fetches little of the film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import DataLoader, ShardDataset
from shardkit.pack import LocalExecutor, pack
from tests.media import video
from tests.s3 import serve_s3

NUM_FILMS = 3
TIMES = [1.0, 1.1, 1.2, 1.3, 1.4]


def clip(sample: dict[str, Any]) -> dict[str, Any]:
    found = sample["mp4"].clip(5, start=1.0)
    return {"key": sample["__key__"], "times": np.round(found.frame_times, 3).tolist()}


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Three films of 30 s with a caption each, in one shard below a bucket."""
    source = tmp_path / "source"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 64, 96, 3), dtype=np.uint8)
    film = video(len(noise), 10, frames=noise, gop=10)
    for number in range(NUM_FILMS):
        (source / f"{number}.mp4").write_bytes(film)
    index = str(source / "index.parquet")
    rows = {
        "id": [str(number) for number in range(NUM_FILMS)],
        "film": [f"{number}.mp4" for number in range(NUM_FILMS)],
        "caption": ["a film"] * NUM_FILMS,
    }
    pq.write_table(pa.table(rows), index)
    out = tmp_path / "s3" / "bucket" / "films"
    pack(index, str(out), inline=["caption=txt"], executor=LocalExecutor(1))
    return out


def test_a_clip_of_a_far_film_fetches_a_part_of_it(films: Path, tmp_path: Path) -> None:
    with serve_s3(films.parent.parent) as s3:
        dataset = ShardDataset(
            "s3://bucket/films",
            shuffle="none",
            members=["mp4", "txt"],
            ranged=["mp4"],
            transforms=[clip],
            cache_dir=str(tmp_path / "cache"),
            storage_options=s3.storage_options,
        )
        with DataLoader(dataset, batch_size=NUM_FILMS, num_workers=2) as loader:
            (batch,) = list(loader)
        asked = [r.range for r in s3.requests if r.path.endswith(".tar")]
    assert batch["key"] == ["0", "1", "2"]
    assert batch["times"] == [TIMES] * NUM_FILMS
    bounds = [text.removeprefix("bytes=").split("-") for text in asked if text]
    assert len(bounds) == len(asked), "a whole shard was fetched"
    fetched = sum(int(last) - int(first) + 1 for first, last in bounds)
    assert fetched < 0.5 * (films / "shard-000000.tar").stat().st_size


def test_local_films_are_read_in_parts_too(films: Path) -> None:
    dataset = ShardDataset(str(films), shuffle="none", ranged=["mp4"], transforms=[clip])
    assert [sample["times"] for sample in dataset] == [TIMES] * NUM_FILMS
    assert dataset[1]["key"] == "1"
