"""Far indexes and far files: what is asked of the far end, when, and by whom."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shardkit import DataLoader, StreamingDataset
from shardkit.cli.demo_data import encode_video
from shardkit.errors import CacheError, ConfigError, NotFoundError
from shardkit.storage.cache import Cache
from tests.faulty_proxy import LoggedRequest
from tests.index.test_lazy import column_bytes, wide_table
from tests.s3 import Fault, S3Endpoint, serve_s3
from tests.streaming.build import Photos, source_of

# -- the index ---------------------------------------------------------------------------------

RANK = r"""
import json, sys
import torch
from shardkit import StreamingDataset, World
if __name__ == "__main__":
    rank, cache, options = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    dataset = StreamingDataset(
        "s3://bucket/i.parquet", cache, columns_to_load=[], index_col_name="id",
        metadata=["score"], storage_options=options, world=World(rank=rank, world_size=2),
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="forkserver"
    )
    print(sum(1 for _ in loader))
"""


def test_all_processes_of_a_node_together_read_an_index_once(tmp_path: Path) -> None:
    """Two ranks with two worker processes each: at most 1.2 times the columns that are wanted.

    Opening, which looks at the first rows of all columns, is once for all too.
    """
    (tmp_path / "bucket").mkdir()
    path = tmp_path / "bucket" / "i.parquet"
    pq.write_table(wide_table(200_000), path, row_group_size=66_000)
    projected = column_bytes(path, {"id", "score"})
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    with serve_s3(tmp_path) as s3:
        StreamingDataset(
            "s3://bucket/i.parquet", str(tmp_path / "other"), storage_options=s3.storage_options
        )
        opening = bytes_asked(s3.requests)
        options = str(s3.storage_options).replace("'", '"')
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(tmp_path / "cache"), options],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        counts = [int(rank.communicate()[0]) for rank in ranks]
        assert sum(counts) == 200_000
        assert bytes_asked(s3.requests) - 2 * opening <= 1.2 * projected
    assert Cache(str(tmp_path / "cache")).check() == []


def bytes_asked(requests: Iterable[LoggedRequest]) -> int:
    """Bytes of the ranges that were asked for; every GET must have one."""
    asked = [r.range or "bytes=0-999999999999" for r in requests if r.method == "GET"]
    bounds = [text.removeprefix("bytes=").split("-") for text in asked]
    return sum(int(last) - int(first) + 1 for first, last in bounds)


def test_an_index_never_fills_a_small_cache(far: Photos, tmp_path: Path) -> None:
    dataset = StreamingDataset(
        source_of("parquet", far),
        str(tmp_path / "cache"),
        cache_limit=4_000,
        decode=None,
        storage_options=far.options,
    )
    assert {sample["__key__"]: sample["jpg"] for sample in dataset} == far.data
    kept = Cache(str(tmp_path / "cache"), 4_000).entries()
    assert kept
    assert all("parquet" not in entry.key for entry in kept)


# -- files that change -------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Four texts in a bucket."""
    folder = tmp_path / "s3" / "bucket"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"text {number}")
    return folder


def open_texts(s3: S3Endpoint, cache: Path, **options: Any) -> StreamingDataset:
    rows = [{"id": str(n), "text": f"s3://bucket/{n}.txt"} for n in range(4)]
    return StreamingDataset(
        rows, str(cache), shuffle="none", storage_options=s3.storage_options, **options
    )


def test_a_file_that_was_overwritten_is_seen_when_the_dataset_is_opened_again(
    texts: Path, tmp_path: Path
) -> None:
    """Of the same size, so that nothing but its version tells; others are not fetched again."""
    with serve_s3(texts.parent) as s3:
        assert [s["txt"] for s in open_texts(s3, tmp_path / "c")] == [f"text {n}" for n in range(4)]
        (texts / "2.txt").write_text("TEXT 2")
        time.sleep(0.05)
        first = s3.count("GET", "*.txt")
        again = open_texts(s3, tmp_path / "c")
        for _ in range(2):
            assert [s["txt"] for s in again] == ["text 0", "text 1", "TEXT 2", "text 3"]
        assert s3.count("GET", "*.txt") == first + 1
        assert s3.count("HEAD", "*.txt") == 4  # one a file, not one an epoch
    assert Cache(str(tmp_path / "c")).check() == []


def test_an_open_dataset_stays_as_it_was(texts: Path, tmp_path: Path) -> None:
    with serve_s3(texts.parent) as s3:
        dataset = open_texts(s3, tmp_path / "c")
        before = [sample["txt"] for sample in dataset]
        (texts / "2.txt").write_text("TEXT 2")
        assert [sample["txt"] for sample in dataset] == before
        assert dataset[2]["txt"] == "text 2"  # type: ignore[index]
        assert s3.count("HEAD", "*.txt") == 0


def test_a_cache_may_be_taken_as_it_is(texts: Path, tmp_path: Path) -> None:
    with serve_s3(texts.parent) as s3:
        before = [sample["txt"] for sample in open_texts(s3, tmp_path / "c")]
        (texts / "2.txt").write_text("TEXT 2")
    again = open_texts(s3, tmp_path / "c", revalidate="never")  # nobody is there to be asked
    assert [sample["txt"] for sample in again] == before
    with pytest.raises(ConfigError, match="revalidate='sometimes'"):
        open_texts(s3, tmp_path / "c", revalidate="sometimes")


def test_a_file_that_is_gone_is_not_taken_from_the_cache(texts: Path, tmp_path: Path) -> None:
    with serve_s3(texts.parent) as s3:
        list(open_texts(s3, tmp_path / "c"))
        (texts / "1.txt").unlink()
        time.sleep(0.05)
        with pytest.raises(NotFoundError, match=r"row 1 .*1\.txt"):
            list(open_texts(s3, tmp_path / "c"))


def test_a_cache_that_is_too_small_is_no_fault_of_the_samples_and_is_not_skipped(
    texts: Path, tmp_path: Path
) -> None:
    (texts / "2.txt").write_text("a longer text")
    with serve_s3(texts.parent) as s3:
        dataset = open_texts(s3, tmp_path / "c", cache_limit=8, on_error="skip")
        with pytest.raises(CacheError, match="cache_limit=8 bytes is smaller than one object"):
            list(dataset)
        assert dataset.failures.count == 0


# -- looking ahead -----------------------------------------------------------------------------


def test_a_loader_fetches_across_the_ends_of_batches_and_epochs(
    texts: Path, tmp_path: Path
) -> None:
    """While the first batch of one sample is waited for, all files of the epoch are asked for."""
    stall = Fault("stall", path="*/0.txt", seconds=2.0, at=1)
    with serve_s3(texts.parent, faults=[stall]) as s3:
        dataset = open_texts(s3, tmp_path / "c", cache_limit=8)  # one of them is kept
        with DataLoader(dataset, batch_size=1, num_workers=1) as loader:
            epoch = iter(loader)
            first: list[Any] = []
            thread = threading.Thread(target=lambda: first.append(next(epoch)))
            thread.start()
            while s3.count("GET", "*.txt") < 4 and thread.is_alive():
                thread.join(0.01)
            assert thread.is_alive(), "the others were asked for only behind it"
            thread.join()
            batches = first + [next(epoch) for _ in range(3)]
            assert [batch["txt"] for batch in batches] == [[f"text {n}"] for n in range(4)]
            for _ in range(500):
                if s3.count("GET", "*.txt") > 4:
                    break
                time.sleep(0.01)
            assert s3.count("GET", "*.txt") > 4  # of the epoch that has not begun
            assert next(epoch, None) is None
            assert [batch["txt"] for batch in loader] == [[f"text {n}"] for n in range(4)]


def test_one_object_that_stalls_for_ten_seconds_holds_up_no_other(
    far: Photos, tmp_path: Path
) -> None:
    stall = Fault("stall", path="*/0000.jpg", seconds=10.0, at=10)
    with serve_s3(far.folder.parent, faults=[stall]) as s3:
        dataset = StreamingDataset(
            source_of("parquet", far),
            str(tmp_path / "cache"),
            shuffle="none",
            storage_options={**s3.storage_options},
        )
        began = time.monotonic()
        samples = iter(dataset)
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(next(samples)["__key__"]))
        thread.start()
        while s3.count("GET", "*.jpg") < 23 and thread.is_alive():
            thread.join(0.01)
        assert thread.is_alive(), "the others were asked for only behind it"
        thread.join()
        assert time.monotonic() - began > 9  # it was that long
        assert first + [sample["__key__"] for sample in samples] == far.keys


# -- members in parts --------------------------------------------------------------------------


def one_second(sample: dict[str, Any]) -> dict[str, Any]:
    clip = sample["film"].clip(10, start=31.0)
    off = np.abs(clip.frame_times - clip.timestamps).max()
    return {"key": sample["__key__"], "frames": clip.frames.shape[0], "off": float(off)}


def film(container: str, movflags: str | None) -> bytes:
    """60 s of noise, a keyframe every second: 12 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (1_200, 96, 128, 3), dtype=np.uint8)
    return encode_video(
        noise,
        20,
        container_format=container,
        options={"preset": "ultrafast", "g": "20"},
        container_options={"movflags": movflags} if movflags else {},
    )


def test_a_clip_of_a_far_film_fetches_a_part_of_it(tmp_path: Path) -> None:
    """At most 12 % for 1 s of 60 s, 50 % of a fragmented mp4."""
    kinds = {
        "plain.mp4": ("mp4", None, 0.12),
        "film.mkv": ("matroska", None, 0.12),
        "parts.mp4": ("mp4", "frag_keyframe+empty_moov", 0.5),
    }
    folder = tmp_path / "s3" / "bucket"
    folder.mkdir(parents=True)
    for name, (container, movflags, _) in kinds.items():
        (folder / name).write_bytes(film(container, movflags))
    rows = [{"id": str(n), "film": f"s3://bucket/{name}"} for n, name in enumerate(kinds)]
    with serve_s3(folder.parent) as s3:
        dataset = StreamingDataset(
            rows,
            str(tmp_path / "cache"),
            columns_to_load=["film"],
            ranged=["film"],
            shuffle="none",
            transforms=[one_second],
            storage_options=s3.storage_options,
        )
        with DataLoader(dataset, batch_size=3, num_workers=2) as loader:
            (batch,) = list(loader)
        asked = {
            name: bytes_asked(r for r in s3.requests if r.path.endswith(name)) for name in kinds
        }
    assert batch["frames"].tolist() == [10, 10, 10]
    assert batch["off"].max() < 0.1
    for name, (_, _, share) in kinds.items():
        size = (folder / name).stat().st_size
        assert 0 < asked[name] <= share * size, (name, asked[name] / size)
    with pytest.raises(ConfigError, match="no paths to give"):
        StreamingDataset(rows, columns_to_load=["film"], ranged=["film"], decode="path")


def test_local_films_are_read_in_parts_too(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(film("mp4", None))
    dataset = StreamingDataset(
        [{"id": "a", "film": str(tmp_path / "a.mp4")}],
        columns_to_load=["film"],
        ranged=["mp4"],
        transforms=[one_second],
    )
    assert dataset[0]["frames"] == 10  # type: ignore[index]


# -- data providers ----------------------------------------------------------------------------


class Slow:
    """A provider that waits until so many are asked at once; the first is the last to answer."""

    def __init__(self, together: int) -> None:
        self.together = threading.Barrier(together)
        self.after = threading.Event()

    def __call__(self, row: dict[str, Any]) -> bytes:
        self.together.wait(60)
        if row["id"] == "0":
            self.after.wait(60)
        else:
            self.after.set()
        return f"text {row['id']}".encode()


def test_slow_providers_are_asked_at_once_and_answer_in_order() -> None:
    rows = [{"id": str(number)} for number in range(8)]
    dataset = StreamingDataset(
        rows,
        columns_to_load=[],
        shuffle="none",
        data_providers={"txt": Slow(8)},
        num_downloading_workers=8,
    )
    assert [sample["txt"] for sample in dataset] == [f"text {n}" for n in range(8)]
