"""What ``pack`` makes, read by everything that people read WebDataset shards with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shardkit.cli.demo_data import make_demo_data
from shardkit.pack import LocalExecutor, PackOptions, pack
from tests.interop.readers import READERS, Samples, energon_prepare, read_datasets

# Other libraries' warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

MEDIA = ("jpg", "flac", "mp4")
NUM_SAMPLES = 11


@dataclass(frozen=True)
class Packed:
    """A dataset of photos, sounds, videos and metadata, and what every reader has to give."""

    folder: Path
    tars: list[str]
    brace_url: str
    media: Samples
    """Key → ext → the bytes of the source file."""
    captions: dict[str, str]

    def idx(self) -> list[bytes]:
        return [Path(f"{tar}.idx").read_bytes() for tar in self.tars]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("packed") / "out"
    index = make_demo_data(
        str(source),
        *(NUM_SAMPLES, NUM_SAMPLES, NUM_SAMPLES),
        image_formats=("jpg",),
        audio_formats=("flac",),
        image_size=(72, 96),
    )
    summary = pack(
        index, str(out), options=PackOptions(samples_per_shard=4), executor=LocalExecutor(1)
    )
    rows = pq.read_table(index).to_pylist()
    columns = {"jpg": "image", "flac": "audio", "mp4": "video"}
    media = {
        str(row["id"]): {ext: (source / row[columns[ext]]).read_bytes() for ext in MEDIA}
        for row in rows
    }
    tars = sorted(str(path) for path in out.glob("*.tar"))
    assert len(tars) == 3
    captions = {str(row["id"]): row["caption"] for row in rows}
    return Packed(out, tars, summary.brace_url, media, captions)


def hold(read: Samples, packed: Packed) -> None:
    """Every sample, once, with the bytes of its source files and its metadata."""
    assert read.keys() == packed.media.keys()
    for key, members in read.items():
        assert members.keys() == {*MEDIA, "json"}
        assert {ext: members[ext] for ext in MEDIA} == packed.media[key]
        assert json.loads(members["json"])["caption"] == packed.captions[key]


@pytest.mark.parametrize("reader", READERS)
def test_every_sample_has_the_bytes_of_its_source_files(
    reader: str, packed: Packed, tmp_path: Path
) -> None:
    hold(READERS[reader](packed.tars, str(tmp_path)), packed)


def test_hugging_face_datasets_reads_every_sample(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hold(read_datasets(packed.tars, str(tmp_path)), packed)


def test_webdataset_reads_the_brace_url_that_pack_prints(packed: Packed, tmp_path: Path) -> None:
    hold(READERS["webdataset"](packed.brace_url, str(tmp_path)), packed)


def test_our_tar_idx_is_the_one_that_energon_writes(packed: Packed, tmp_path: Path) -> None:
    for tar in packed.tars:
        os.link(tar, tmp_path / os.path.basename(tar))
    energon_prepare(str(tmp_path))
    theirs = [(tmp_path / f"{os.path.basename(tar)}.idx").read_bytes() for tar in packed.tars]
    assert theirs == packed.idx()


def test_energon_indexes_the_packed_folder_itself_and_leaves_our_files_as_they_were(
    packed: Packed, tmp_path: Path
) -> None:
    """A user runs ``energon prepare`` on the folder that we made; both go on working."""
    for path in packed.folder.iterdir():
        os.link(path, tmp_path / path.name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    energon_prepare(str(tmp_path))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_the_dali_index_is_what_wds2idx_writes(packed: Packed, tmp_path: Path) -> None:
    """Lines as DALI's own tool derives them, from GNU tar's listing of block numbers."""
    tar = tmp_path / "shard.tar"
    os.link(packed.tars[0], tar)
    subprocess.run([sys.executable, "tools/dali_index.py", str(tar)], check=True)
    listing = subprocess.run(
        ["tar", "--list", "--verbose", "--block-number", "--file", str(tar)],
        capture_output=True,
        text=True,
        check=True,
    )
    samples: dict[str, list[str]] = {}
    for line in listing.stdout.splitlines():
        if "Block of NULs" in line:
            continue
        _, block, _, _, size, _, _, name = line.replace(":", " ", 1).split(maxsplit=7)
        key, ext = name.split(".", 1)
        samples.setdefault(key, []).append(f"{ext} {(int(block) + 1) * 512} {size} {name}")
    lines = [f"v1.2 {len(samples)}", *(" ".join(fields) for fields in samples.values())]
    assert (tmp_path / "shard.idx").read_text() == "\n".join(lines) + "\n"
