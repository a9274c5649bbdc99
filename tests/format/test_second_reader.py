"""A second reader, written from docs/format.md alone, reads a packed dataset and proves it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from xxhash import xxh3_64, xxh3_128

from tests.pack.data import make_files, pack_files


def read_dataset(folder: Path) -> Iterator[tuple[str, dict[str, bytes], dict[str, object]]]:
    """Key, members and metadata of every sample; every checksum is held against its bytes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "shardkit"
    assert manifest["format_version"] == 1
    shards_file = folder / manifest["shards"]["file"]
    assert f"{xxh3_64(shards_file.read_bytes()).intdigest():016x}" == manifest["shards"]["xxh3"]
    shards = pq.read_table(shards_file).to_pylist()
    digest = xxh3_128(b"".join(struct.pack("<Q", shard["tar_xxh3"]) for shard in shards))
    assert digest.hexdigest() == manifest["fingerprint"]
    assert len(shards) == manifest["num_shards"]
    for shard in shards:
        stem = shard["name"].removesuffix(".tar")
        tar = (folder / shard["name"]).read_bytes()
        idx = (folder / f"{stem}.tar.idx").read_bytes()
        sidecar = (folder / f"{stem}.parquet").read_bytes()
        assert (shard["bytes"], shard["tar_xxh3"]) == (len(tar), xxh3_64(tar).intdigest())
        assert shard["idx_xxh3"] == xxh3_64(idx).intdigest()
        assert shard["sidecar_xxh3"] == xxh3_64(sidecar).intdigest()
        offsets = struct.unpack(f"<{shard['samples'] + 1}Q", idx)
        assert tar[offsets[-1] :] == bytes(1024)
        table = pq.read_table(folder / f"{stem}.parquet")
        exts = [f.name for f in table.schema if (f.metadata or {}).get(b"shardkit") == b"member"]
        for row, start, stop in zip(table.to_pylist(), offsets[:-1], offsets[1:], strict=True):
            sample = dict(walk(tar[start:stop]))
            members = {name.partition(".")[2]: data for name, data in sample.items()}
            assert {name.partition(".")[0] for name in sample} == {row["__key__"]}
            for ext in exts:
                place = row[ext]
                assert (place is not None) == (ext in members)
                if place is not None:
                    data = tar[place["offset"] : place["offset"] + place["size"]]
                    assert data == members[ext]
                    assert place["xxh3"] == xxh3_64(data).intdigest()
            metadata = {name: row[name] for name in row if name not in {"__key__", *exts}}
            assert list(metadata) == list(manifest["metadata"])
            yield row["__key__"], members, metadata


def walk(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and data of every member of a range of a tar, the header's checksums checked."""
    while data:
        head = data[:512]
        size = int(head[124:135], 8)
        body = data[512 : 512 + size]
        assert int(head[148:154], 8) == sum(head[:148]) + 8 * 32 + sum(head[156:])
        assert re.fullmatch(rb"xxh3:[0-9a-f]{16}\0+", head[297:329])
        assert int(head[302:318], 16) == xxh3_64(body).intdigest()
        yield head[:100].rstrip(b"\0").decode("ascii"), body
        data = data[512 + -(-size // 512) * 512 :]


@pytest.mark.parametrize("metadata_member", ["auto", "none", "about.json"])
def test_a_reader_written_from_the_specification_reads_everything(
    tmp_path: Path, metadata_member: str
) -> None:
    index = make_files(tmp_path / "src", 20)
    pack_files(index, tmp_path / "out", metadata_member=metadata_member)
    found = list(read_dataset(tmp_path / "out"))
    rows = pq.read_table(index).to_pylist()
    assert [key for key, _, _ in found] == [row["id"] for row in rows]
    for (_, members, metadata), row in zip(found, rows, strict=True):
        assert members["bin"] == (tmp_path / "src" / row["data"]).read_bytes()
        assert ("note" in members) == (row["note"] is not None)
        assert members.get("txt") == (None if row["caption"] is None else row["caption"].encode())
        assert metadata == {name: row[name] for name in ("id", "score", "big", "tags")}
        ext = {"auto": "json", "none": "", "about.json": "about.json"}[metadata_member]
        if ext:
            assert json.loads(members[ext]) == metadata | {"big": str(row["big"])}
