"""Foreign tars yield exactly the samples that webdataset yields; hostile ones do no harm."""

from __future__ import annotations

import os
import random
import re
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import CorruptError
from shardkit.format.tar import END_OF_TAR, checksum, member_header, padding
from shardkit.index import open_index, scan_tar
from shardkit.index.names import is_meta, split_key
from shardkit.storage.store import open_store
from tests.index.tar_zoo import FOREIGN, member, write_tar
from tests.s3 import S3Endpoint, serve_s3

Sample = dict[str, Any]


def samples_of_webdataset(path: Path) -> list[Sample]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        found = [dict(sample) for sample in dataset]
    for sample in found:
        del sample["__url__"]
        sample.pop("__local_path__", None)
        sample.pop("", None)  # a member without an ext has no name with us
    return found


def samples_of_scan(path: Path) -> list[Sample]:
    data = path.read_bytes()
    scan = scan_tar(lambda start, stop: data[start:stop], len(data), str(path))
    return [_sample(row, data) for row in scan.table.to_pylist()]


def samples_of_index(url: str, scratch: Path, **options: Any) -> list[Sample]:
    index = open_index(url, scratch=str(scratch), **options)
    store = open_store(options.get("storage_options"))
    found = []
    for rows in index.batches():
        for row, key in enumerate(rows.keys):
            sample: Sample = {"__key__": key}
            for column in rows.members:
                if (at := column.urls[row]) is not None:
                    assert column.starts is not None and column.sizes is not None
                    start = column.starts[row]
                    sample[column.exts[row]] = store.get_range(at, start, start + column.sizes[row])
            found.append(sample)
    return found


def bytes_asked(s3: S3Endpoint) -> int:
    """Bytes of all ranges that were asked for; whole objects count as a gigabyte."""
    total = 0
    for request in s3.requests:
        if request.method == "GET" and request.path.endswith((".tar", ".parquet")):
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or "")
            total += int(found[2]) - int(found[1]) + 1 if found else 1 << 30
    return total


def _sample(row: dict[str, Any], data: bytes) -> Sample:
    places = {ext: place for ext, place in row.items() if ext != "__key__" and place is not None}
    members = {
        ext: data[place["offset"] : place["offset"] + place["size"]]
        for ext, place in places.items()
    }
    return {"__key__": row["__key__"], **members}


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "gzipped"])
def test_a_scan_finds_the_samples_that_webdataset_yields(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    FOREIGN[name](path)
    assert samples_of_scan(path) == samples_of_webdataset(path)


@pytest.mark.parametrize("name", ["ustar", "GNU tar PAX", "uneven", "gzipped", "PAX long names"])
def test_an_index_over_a_tar_reads_the_bytes_that_webdataset_yields(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    FOREIGN[name](path)
    assert samples_of_index(str(path), tmp_path / "scratch") == samples_of_webdataset(path)


def test_tars_on_s3_are_scanned_by_ranges_and_only_once(tmp_path: Path) -> None:
    """Members of 3 MB: the scan fetches headers, not data; a second opening fetches nothing."""
    folder = tmp_path / "s3" / "bucket"
    folder.mkdir(parents=True)
    for shard in range(3):
        entries = [
            member(f"{shard}{i}.{ext}", os.urandom(size))
            for i in range(4)
            for ext, size in (("mp4", 3_000_000), ("json", 100))
        ]
        write_tar(folder / f"t-{shard:03d}.tar", entries)
    with serve_s3(tmp_path / "s3") as s3:
        options = s3.storage_options
        url = "s3://bucket/t-{000..002}.tar"
        index = open_index(url, storage_options=options, scratch=str(tmp_path / "scratch"))
        assert index.counts.tolist() == [4, 4, 4]
        fetched = bytes_asked(s3)
        assert fetched < 3 * 1_000_000
        before = len([r for r in s3.requests if r.method == "GET"])
        again = open_index(url, storage_options=options, scratch=str(tmp_path / "scratch"))
        assert again.fingerprint == index.fingerprint
        assert len([r for r in s3.requests if r.method == "GET"]) == before


@pytest.mark.parametrize("jump_bytes", [0, 512, 16 << 10, 1 << 20])
def test_the_scan_does_not_depend_on_how_much_is_read_at_once(
    jump_bytes: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    entries = [member(f"{i:04d}.bin", b"x" * (i * 37 % 9000)) for i in range(300)]
    write_tar(path, entries, tarfile.PAX_FORMAT)
    data = path.read_bytes()
    scan = scan_tar(lambda a, b: data[a:b], len(data), "x", jump_bytes=jump_bytes)
    assert [_sample(row, data) for row in scan.table.to_pylist()] == samples_of_webdataset(path)


def test_sample_offsets_cover_headers_and_records_of_a_sample(tmp_path: Path) -> None:
    """From offsets[i] to offsets[i+1] lies a tar of its own with that sample alone."""
    path = tmp_path / "x.tar"
    FOREIGN["PAX unicode names"](path)
    data = path.read_bytes()
    scan = scan_tar(lambda a, b: data[a:b], len(data), "x")
    expected = samples_of_webdataset(path)
    for i, sample in enumerate(expected):
        piece = tmp_path / "piece.tar"
        piece.write_bytes(data[scan.offsets[i] : scan.offsets[i + 1]] + END_OF_TAR)
        assert samples_of_webdataset(piece) == [sample]


def test_our_own_checksums_are_found_in_the_headers(tmp_path: Path) -> None:
    parts = []
    for i in range(5):
        body = os.urandom(1000 + i)
        parts += [member_header(b"%d.bin" % i, len(body), checksum(body)), body, padding(len(body))]
    data = b"".join([*parts, END_OF_TAR])
    scan = scan_tar(lambda a, b: data[a:b], len(data), "x")
    for place in scan.table.column("bin").to_pylist():
        body = data[place["offset"] : place["offset"] + place["size"]]
        assert place["xxh3"] == checksum(body)


def test_members_beyond_8_gib_are_found(tmp_path: Path) -> None:
    """Sizes in base 256, in a sparse file of 9 GiB on disk."""
    path = tmp_path / "big.tar"
    big = tarfile.TarInfo("a.bin")
    big.size = 9 << 30
    small, data = member("b.txt", b"after")
    with path.open("wb") as file:
        file.write(big.tobuf(tarfile.GNU_FORMAT))
        file.seek(big.size, os.SEEK_CUR)
        file.write(small.tobuf() + data + padding(len(data)) + END_OF_TAR)
    index = open_index(str(path), scratch=str(tmp_path / "scratch"))
    rows = index.read(0)
    assert rows.keys == ["a", "b"]
    assert [m.sizes for m in rows.members if m.name == "bin"] == [[9 << 30, -1]]


# --- hostile


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(bytes(data))


def scan(path: Path) -> None:
    samples_of_scan(path)


def test_a_tar_cut_inside_a_member_is_refused_and_names_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [member("a.jpg"), member("b.jpg", b"x" * 5000)])
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(CorruptError, match=r"x\.tar.*'b\.jpg'.*the file has 4,000"):
        scan(path)


def test_a_tar_cut_inside_a_header_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [member("a.jpg"), member("b.jpg")])
    path.write_bytes(path.read_bytes()[: 1024 + 100])
    with pytest.raises(CorruptError, match="is cut: 100 of 512 header bytes"):
        scan(path)


def test_a_tar_without_an_end_marker_is_read_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.tar"
    FOREIGN["no end marker"](path)
    scan(path)
    assert "has no end-of-tar marker" in caplog.text


def test_tars_joined_by_cat_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.tar"
    FOREIGN["two joined"](path)
    scan(path)
    assert "goes on after its end-of-tar marker" in caplog.text


def test_a_flipped_byte_in_any_header_is_found(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [member(f"{i}.jpg") for i in range(20)])
    whole = path.read_bytes()
    draw = random.Random(1)
    for _ in range(60):
        path.write_bytes(whole)
        _flip(path, draw.randrange(20) * 1024 + draw.randrange(512))
        with pytest.raises(CorruptError):
            scan(path)


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0"]
)
def test_absurd_sizes_are_refused(size: bytes, tmp_path: Path) -> None:
    head = bytearray(member("a.jpg")[0].tobuf())
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(head) + bytes(512) + END_OF_TAR)
    with pytest.raises(CorruptError, match=r"should end at byte|header at byte 0 is broken"):
        scan(path)


def test_two_members_of_one_name_in_a_sample_are_refused_as_by_webdataset(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [member("a.jpg"), member("a.JPG")])
    with pytest.raises(ValueError, match="duplicate file name"):
        samples_of_webdataset(path)
    with pytest.raises(CorruptError, match=r"sample 'a' has two members 'jpg'"):
        scan(path)


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    holes = tmp_path / "a.bin"
    with holes.open("wb") as file:
        file.truncate(10 << 20)
        file.write(b"x")
    path = tmp_path / "x.tar"
    assert os.system(f"tar --sparse -cf {path} -C {tmp_path} a.bin") == 0
    with pytest.raises(CorruptError, match="stored sparse"):
        scan(path)


def test_endless_extra_headers_are_refused(tmp_path: Path) -> None:
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2
    path = tmp_path / "x.tar"
    path.write_bytes((name.tobuf() + b"a\0" + bytes(510)) * 1000 + END_OF_TAR)
    with pytest.raises(CorruptError, match="extra header"):
        scan(path)
    name.size = 1 << 40
    path.write_bytes(name.tobuf(tarfile.GNU_FORMAT) + END_OF_TAR)
    with pytest.raises(CorruptError, match="extra header"):
        scan(path)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match="is no tar: it has 0 bytes"):
        scan(path)
    path.write_bytes(os.urandom(5000))
    with pytest.raises(CorruptError):
        scan(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_never_does_more_than_raise_corrupt_error(data: st.DataObject) -> None:
    """Any bytes overwritten in a tar with PAX and GNU records: right samples, or CorruptError."""
    whole = bytearray(_mixed_tar())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    stop = data.draw(st.integers(0, len(whole)))
    cut = bytes(whole[:stop])
    try:
        found = scan_tar(lambda a, b: cut[a:b], len(cut), "x")
    except CorruptError:
        return
    for row in found.table.to_pylist():
        for ext, place in row.items():
            if ext != "__key__" and place is not None:
                assert place["offset"] >= 0 and place["offset"] + place["size"] <= len(cut)


def _mixed_tar() -> bytes:
    parts = []
    for i, tar_format in enumerate([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]):
        info, body = member(
            ("ü" if i == 0 else "n") * (120 if i < 2 else 9) + f"/{i}.jpg", b"x" * 700
        )
        parts += [info.tobuf(tar_format), body, padding(len(body))]
    return b"".join([*parts, END_OF_TAR])


_names = st.text(st.sampled_from("ab./_é-"), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(_names)
def test_names_are_parted_as_webdataset_parts_them(name: str) -> None:
    key, ext = webdataset.tariterators.base_plus_ext(name)
    found = split_key(name)
    if key is None:
        assert found == ("", "")
    else:
        assert found == (key, ext.lower())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("_a"), max_size=6), min_size=1, max_size=3).map("/".join))
def test_meta_entries_are_those_that_webdataset_skips(name: str) -> None:
    skipped = bool(re.match(r"__[^/]*__($|/)", name)) or (
        "/" not in name and name.startswith("__") and name.endswith("__")
    )
    assert is_meta(name) == skipped
