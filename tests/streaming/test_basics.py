"""What ``StreamingDataset`` promises in its first example, and what may go wrong in it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shardkit import StreamingDataset
from shardkit.errors import (
    ConfigError,
    CorruptError,
    DecodeError,
    IndexDataError,
    NotFoundError,
)
from shardkit.storage.cache import Cache
from tests.s3 import Fault, serve_s3
from tests.storage.disk import BLOCK, data_extents
from tests.streaming.build import Photos, source_of


def write_rows(path: Path, rows: list[dict[str, Any]], per_group: int = 3) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=per_group)
    return str(path)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_first_example_works_as_it_reads(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve_s3(photos.folder.parent) as s3:
        far = Photos(photos.folder, "s3://bucket", s3.storage_options, photos.data)
        (photos.folder / "table").mkdir()
        pq.write_table(
            pa.Table.from_pylist(far.records()), photos.folder / "table" / "000000000000.parquet"
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.storage_options["key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.storage_options["secret"])
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        dataset = StreamingDataset(
            src="s3://bucket/table/000000000000.parquet",
            dst="ignore/tmp",
            data_type="image",
            columns_to_load=["data_url"],
            index_col_name="data_id",
            num_downloading_workers=10,
        )
        sample = dataset[0]
        assert sample is not None
        assert sample["__key__"] == "0000"
        assert sample["data_url"].shape == (6, 8, 3)
        assert sample["label"] == "dog"
        loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=3, shuffle=False)
        keys = [batch["__key__"][0] for batch in loader]
    assert sorted(keys) == photos.keys
    assert len(dataset) == len(photos.keys) == len(loader)
    assert Path("ignore/tmp").is_dir()


def test_samples_come_from_anywhere(anywhere: Photos, tmp_path: Path) -> None:
    dataset = StreamingDataset(
        source_of("parquet", anywhere),
        str(tmp_path / "cache"),
        decode=None,
        shuffle="none",
        storage_options=anywhere.options,
    )
    assert {s["__key__"]: s["jpg"] for s in dataset} == anywhere.data
    sample = dataset[7]
    assert sample is not None
    assert sample["jpg"] == anywhere.data["0007"]
    assert sample["__url__"] == f"{anywhere.root}/img/0007.jpg"
    assert list(sample) == ["__key__", "__url__", "data_id", "aspect", "label", "jpg"]


@pytest.mark.parametrize("number", [10**9, 23, -24])
def test_a_sample_that_is_not_there_is_an_index_error(photos: Photos, number: int) -> None:
    dataset = StreamingDataset(source_of("table", photos))
    with pytest.raises(IndexError, match=rf"sample {number} of 23"):
        dataset[number]


def test_a_row_that_fails_is_named_and_nothing_comes_in_its_place(
    photos: Photos, tmp_path: Path
) -> None:
    rows = photos.records()
    rows[5]["data_url"] = str(photos.folder / "gone.jpg")
    src = write_rows(tmp_path / "i.parquet", rows)
    dataset = StreamingDataset(src, shuffle="none")
    with pytest.raises(NotFoundError, match=r"row 5 of .*i\.parquet \(key '0005'\).*gone\.jpg"):
        dataset[5]
    seen = []
    with pytest.raises(NotFoundError, match="row 5"):
        seen.extend(sample["__key__"] for sample in dataset)
    assert seen == photos.keys[:5]


def test_a_file_that_cannot_be_decoded_is_named(photos: Photos, tmp_path: Path) -> None:
    rows = photos.records()
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xffnot a photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    rows[1]["data_url"] = str(tmp_path / "bad.jpg")
    rows[2]["data_url"] = str(tmp_path / "empty.jpg")
    dataset = StreamingDataset(write_rows(tmp_path / "i.parquet", rows), shuffle="none")
    with pytest.raises(DecodeError, match=r"bad\.jpg: key '0001'.*jpg"):
        dataset[1]
    with pytest.raises(CorruptError, match=r"row 2 of .*empty\.jpg is empty"):
        dataset[2]


def test_samples_after_a_long_stretch_of_missing_files_still_come(
    far: Photos, tmp_path: Path
) -> None:
    rows = [
        {"data_id": f"{n:05d}", "data_url": f"{far.root}/img/{n:04d}.jpg", "n": n}
        for n in (0, 1, *range(1000, 1400), 2, 3)
    ]
    dataset = StreamingDataset(
        write_rows(tmp_path / "i.parquet", rows, 100),
        str(tmp_path / "cache"),
        shuffle="none",
        on_error="skip",
        storage_options=far.options,
    )
    assert [sample["n"] for sample in dataset] == [0, 1, 2, 3]
    assert dataset.failures.count == 400


def test_missing_members_are_none_only_if_allowed(photos: Photos, tmp_path: Path) -> None:
    rows = [{**row, "depth": row["data_url"]} for row in photos.records()]
    rows[0]["depth"] = str(photos.folder / "gone.jpg")
    rows[1]["depth"] = None
    src = write_rows(tmp_path / "i.parquet", rows)
    both = ["data_url", "depth"]
    strict = StreamingDataset(src, columns_to_load=both, shuffle="none", on_error="skip")
    assert [s["__key__"] for s in strict] == photos.keys[2:]
    with pytest.raises(IndexDataError, match=r"row 1 .*nothing in column 'depth'"):
        strict[1]
    loose = StreamingDataset(src, columns_to_load=both, shuffle="none", allow_missing=True)
    samples = list(loose)
    assert [s["depth"] is None for s in samples] == [True, True] + [False] * 21
    assert all(s["data_url"] is not None for s in samples)


def test_files_of_one_name_in_two_folders_are_two_files(far: Photos, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (far.folder / name).mkdir(exist_ok=True)
        (far.folder / name / "x.txt").write_text(f"text of {name}")
    rows = [{"id": name, "text": f"{far.root}/{name}/x.txt"} for name in ("a", "b")]
    for _ in range(2):  # cold and warm
        dataset = StreamingDataset(
            pa.Table.from_pylist(rows),
            str(tmp_path / "cache"),
            shuffle="none",
            storage_options=far.options,
        )
        assert [sample["txt"] for sample in dataset] == ["text of a", "text of b"]


def test_order_is_by_position_whatever_the_delays(far: Photos, tmp_path: Path) -> None:
    src = source_of("parquet", far)

    def epoch(number: int, threads: int, faults: list[Fault]) -> list[tuple[str, float]]:
        with serve_s3(far.folder.parent, faults=faults) as s3:
            dataset = StreamingDataset(
                src,
                str(tmp_path / f"cache{number}"),
                num_downloading_workers=threads,
                transforms=[jittered],
                storage_options=s3.storage_options,
            )
            return [(sample["__key__"], sample["jitter"]) for sample in dataset]

    slow = [Fault("slow", path=f"*/{n:04d}.jpg", bytes_per_s=2_000) for n in (1, 5, 11, 12)]
    plain = epoch(0, 1, [])
    assert epoch(1, 16, slow) == plain
    assert [key for key, _ in plain] != far.keys


def jittered(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**sample, "jitter": float(rng.random())}


def test_cache_limit_is_a_limit(tmp_path: Path) -> None:
    """40 files of a block, a limit of ten, 4 epochs and random access, sampled throughout."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(40):
        (folder / f"{n:02d}.bin").write_bytes(rng.bytes(BLOCK))
    rows = [{"id": f"{n:02d}", "url": f"s3://bucket/{n:02d}.bin"} for n in range(40)]
    sizes: list[int] = []
    stop = threading.Event()

    def sample_sizes(root: Path) -> None:
        while not stop.is_set():
            sizes.append(bytes_at_once(root))
            stop.wait(0.001)

    with serve_s3(tmp_path) as s3:
        dataset = StreamingDataset(
            pa.Table.from_pylist(rows),
            str(tmp_path / "cache"),
            cache_limit=10 * BLOCK,
            decode=None,
            storage_options=s3.storage_options,
        )
        watcher = threading.Thread(target=sample_sizes, args=(tmp_path / "cache",))
        watcher.start()
        try:
            for _ in range(4):
                assert len({sample["__key__"] for sample in dataset}) == 40
            for number in range(40):
                assert len(dataset[number]["bin"]) == BLOCK  # type: ignore[index]
        finally:
            stop.set()
            watcher.join()
        keeps = StreamingDataset(
            pa.Table.from_pylist(rows),
            str(tmp_path / "keeps"),
            cache_limit=None,
            storage_options=s3.storage_options,
        )
        list(keeps)
    assert max(sizes) <= 10 * BLOCK
    assert max(sizes) >= 5 * BLOCK  # it is used, too
    cache = Cache(str(tmp_path / "cache"), 10 * BLOCK)
    assert cache.check() == []
    assert bytes_at_once(tmp_path / "keeps") == 40 * BLOCK


def bytes_at_once(root: Path) -> int:
    """Bytes of entries that were all there at one instant: those of two listings in a row."""
    before, after = sizes_in(root), sizes_in(root)
    return sum(size for name, size in before.items() if after.get(name) == size)


def sizes_in(root: Path) -> dict[str, int]:
    """Files by path and inode, and the blocks that packed entries take."""
    sizes = {}
    for path in root.rglob("*"):
        try:
            if path.parent.name == "segments":
                for start, end in data_extents(path):
                    sizes |= {f"{path} {at}": BLOCK for at in range(start, end, BLOCK)}
            elif len(path.name) >= 32 and path.is_file():
                sizes[f"{path} {path.stat().st_ino}"] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_two_instances_and_two_processes_share_one_cache(far: Photos, tmp_path: Path) -> None:
    with serve_s3(far.folder.parent) as s3:
        datasets = [
            StreamingDataset(
                source_of("parquet", far),
                str(tmp_path / "cache"),
                storage_options=s3.storage_options,
            )
            for _ in range(2)
        ]
        pairs = list(zip(datasets[0], datasets[1], strict=True))
        assert all(a["__key__"] == b["__key__"] for a, b in pairs)
        loader = torch.utils.data.DataLoader(
            datasets[0], batch_size=None, num_workers=1, multiprocessing_context="forkserver"
        )
        assert len(list(loader)) == 23
        assert s3.count("GET", "*.jpg") == 23
    assert Cache(str(tmp_path / "cache")).check() == []


def test_many_threads_read_at_random_while_iterators_run(far: Photos, tmp_path: Path) -> None:
    dataset = StreamingDataset(
        source_of("parquet", far),
        str(tmp_path / "cache"),
        cache_limit=6_000,
        decode=None,
        storage_options=far.options,
    )
    wrong: list[Any] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 23, 30).tolist():
            sample = dataset[number]
            if sample is None or sample["jpg"] != far.data[f"{number:04d}"]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    assert len(list(dataset)) == 23
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_makes_no_sense_is_refused(photos: Photos) -> None:
    table = source_of("table", photos)
    with pytest.raises(ConfigError, match="num_downloading_workers=0"):
        StreamingDataset(table, num_downloading_workers=0)
    with pytest.raises(ConfigError, match="no column"):
        StreamingDataset(table, columns_to_load=["nothing"])
    with pytest.raises(ConfigError, match="decode='maybe'"):
        StreamingDataset(table, decode="maybe")


def test_a_copy_in_another_process_is_the_same_dataset(photos: Photos) -> None:
    dataset = StreamingDataset(source_of("parquet", photos))
    copy = pickle.loads(pickle.dumps(dataset))
    assert [s["__key__"] for s in copy] == [s["__key__"] for s in dataset]


def test_a_process_that_leaves_an_iterator_half_way_ends_in_silence(
    far: Photos, tmp_path: Path
) -> None:
    """Its generator is closed when modules are half gone; the threads have ended before."""
    index = write_rows(tmp_path / "i.parquet", far.records())
    script = f"""
from shardkit import StreamingDataset
dataset = StreamingDataset(
    {index!r}, {str(tmp_path / "cache")!r}, decode=None,
    storage_options={far.options!r},
)
iterator = iter(dataset)
next(iterator)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
