"""The tar dialect by itself: what the format room writes, read by every stock tar reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardkit.format.keys import MAX_EXT, MAX_KEY, fit_key, tar_name
from shardkit.format.tar import END_OF_TAR, checksum, member_header, padding
from tests.interop.readers import READERS, Samples, energon_prepare

# Other libraries' warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = (0, 1, 511, 512, 513, 10_240, 1_000_003)


def awkward_samples() -> Samples:
    """Sizes around a block; the longest key and ext; keys that had to be rewritten."""
    samples = {f"size{size}": {"bin": bytes([size % 251]) * size, "cls": b"7"} for size in SIZES}
    samples["k" * MAX_KEY] = {"e" * MAX_EXT: b"the longest name", "txt": b"a"}
    for key in ("cat/000", "a b", "naïve", "x.y", "__meta__", "." * 200):
        samples[fit_key(key)] = {"seg.png": b"two suffixes", "txt": key.encode()}
    return samples


def write_tar(path: Path, samples: Samples) -> list[int]:
    """Write the samples with the format room's headers; return the layout of ``.tar.idx``."""
    offsets = []
    with path.open("wb") as file:
        for key, members in samples.items():
            offsets.append(file.tell())
            for ext, data in members.items():
                file.write(member_header(tar_name(key, ext), len(data), checksum(data)))
                file.write(data + padding(len(data)))
        offsets.append(file.tell())
        file.write(END_OF_TAR)
    return offsets


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_bytes_that_were_written(reader: str, tmp_path: Path) -> None:
    samples = awkward_samples()
    write_tar(tmp_path / "a.tar", samples)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert READERS[reader]([str(tmp_path / "a.tar")], str(scratch)) == samples


def test_energons_indexer_finds_every_sample_where_it_starts(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", awkward_samples())
    energon_prepare(str(tmp_path))
    assert (tmp_path / "a.tar.idx").read_bytes() == b"".join(
        n.to_bytes(8, "little") for n in offsets
    )


def test_tars_end_as_gnu_tar_wants_them(tmp_path: Path) -> None:
    """Two zero blocks; GNU tar would warn of "a lone zero block" otherwise."""
    write_tar(tmp_path / "a.tar", {"a": {"txt": b"x"}})
    assert os.path.getsize(tmp_path / "a.tar") == 512 + 512 + 1024
    assert (tmp_path / "a.tar").read_bytes()[-1024:] == bytes(1024)
