"""The tar dialect: its bytes, as stock readers see them."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError, CorruptError
from shardkit.format.tar import (
    BLOCK,
    END_OF_TAR,
    MAX_MEMBER_BYTES,
    checksum,
    member_header,
    padded,
    padding,
    read_header,
    walk_members,
)

MEMBERS = [
    ("a.txt", b"hello"),
    ("a.seg.png", bytes(range(256)) * 3),
    ("b.txt", b""),
    ("b.bin", b"x" * 512),
]


def make_tar(members: list[tuple[str, bytes]] = MEMBERS) -> bytes:
    blocks = [
        member_header(name.encode(), len(data), checksum(data)) + data + padding(len(data))
        for name, data in members
    ]
    return b"".join([*blocks, END_OF_TAR])


def test_pythons_tarfile_reads_every_name_and_byte() -> None:
    with tarfile.open(fileobj=io.BytesIO(make_tar())) as tar:
        found = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        infos = tar.getmembers()
    assert found == MEMBERS
    assert {(m.mode, m.uid, m.gid, m.mtime, m.uname) for m in infos} == {
        (0o644, 0, 0, 946684800, "")
    }


def test_gnu_tar_lists_and_extracts_it_without_a_word(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(make_tar())
    listed = subprocess.run(["tar", "-tf", tar], capture_output=True, check=True)
    assert (listed.stdout.decode().split(), listed.stderr) == ([name for name, _ in MEMBERS], b"")
    subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
    assert [(tmp_path / name).read_bytes() for name, _ in MEMBERS] == [data for _, data in MEMBERS]


def test_a_tiny_tar_has_these_bytes_for_ever() -> None:
    header = member_header(b"key.txt", 5, checksum(b"hello"))
    assert checksum(b"hello") == 0x9555E8555C62DCFD
    assert header[:8] == b"key.txt\0"
    assert header[100:265] == (
        b"0000644\x000000000\x000000000\x0000000000005\x0007033241600\x00"
        + header[148:156]
        + b"0"
        + bytes(100)
        + b"ustar\x0000"
    )
    assert (
        header[265:345]
        == bytes(32) + b"xxh3:9555e8555c62dcfd" + bytes(11) + b"0000000\x000000000\x00"
    )
    assert header[345:] == bytes(167)
    assert hashlib.sha256(make_tar()).hexdigest() == GOLDEN


GOLDEN = "8ede32230fcd0aeab1cab823f6ee86c8024251b9174d88b72fe32e70df7b8d72"


def test_every_header_carries_the_checksum_of_its_data() -> None:
    data = make_tar()
    members = list(walk_members(data))
    assert [m.name for m in members] == [name for name, _ in MEMBERS]
    assert all(m.checksum == checksum(data[m.start : m.start + m.size]) for m in members)


@given(
    name=st.from_regex(r"[!-.0-~]{1,100}", fullmatch=True),
    size=st.integers(0, MAX_MEMBER_BYTES - 1),
    digest=st.integers(0, 2**64 - 1),
)
@settings(max_examples=100)
def test_what_is_written_is_read_back(name: str, size: int, digest: int) -> None:
    header = member_header(name.encode(), size, digest)
    member = read_header(header)
    assert len(header) == BLOCK
    assert member == (name, 0, BLOCK, size, digest)
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (info.name, info.size) == (name, size)


def test_a_member_of_8_gib_is_refused_with_the_remedy() -> None:
    member_header(b"a.bin", MAX_MEMBER_BYTES - 1, 0)
    with pytest.raises(ConfigError, match=r"8,589,934,592 bytes; .* \(8 GiB\): split the file"):
        member_header(b"a.bin", MAX_MEMBER_BYTES, 0)


def test_a_name_beyond_100_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 101 bytes; .* at most 100"):
        member_header(b"k" * 101, 1, 0)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_padding_fills_whole_blocks(size: int) -> None:
    assert padded(size) == size + len(padding(size))
    assert padded(size) % BLOCK == 0
    assert len(padding(size)) < BLOCK


def test_a_flipped_bit_in_a_header_is_seen() -> None:
    header = member_header(b"a.txt", 5, 7)
    for at in range(0, BLOCK, 7):
        bad = bytearray(header)
        bad[at] ^= 1
        with pytest.raises(CorruptError, match="offset 0"):
            read_header(bytes(bad))


def test_a_tar_cut_inside_a_member_is_seen() -> None:
    data = make_tar()
    with pytest.raises(CorruptError, match="the tar is cut"):
        list(walk_members(data[: BLOCK + 100]))
    with pytest.raises(CorruptError, match="the tar is cut: 100 of 512"):
        read_header(data[:100])


def test_links_and_foreign_headers_are_no_members_of_the_dialect() -> None:
    info = tarfile.TarInfo("a.txt")
    info.type = tarfile.SYMTYPE
    with pytest.raises(CorruptError, match="not a regular file"):
        read_header(info.tobuf(tarfile.USTAR_FORMAT))
    plain = tarfile.TarInfo("a.txt")
    found = read_header(plain.tobuf(tarfile.USTAR_FORMAT))
    assert found is not None
    assert found.checksum is None
