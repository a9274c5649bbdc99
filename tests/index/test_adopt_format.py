"""A second reader, written from docs/format.md alone, reads adopted tars and proves what it can."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from xxhash import xxh3_64, xxh3_128

from shardkit.executors import LocalExecutor
from shardkit.index import AdoptOptions, MetadataChoice, adopt
from shardkit.index.adopt_tar import Reading
from tests.index.foreign import fields_of, make_tars
from tests.index.tar_zoo import FOREIGN


def digest(data: bytes) -> int:
    return xxh3_64(data).intdigest()


def read_adopted(folder: Path) -> Iterator[tuple[str, dict[str, bytes], dict[str, Any]]]:
    """Key, members and metadata of every sample."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format_version"] == 2
    data = (folder / manifest["shards"]["file"]).read_bytes()
    assert f"{digest(data):016x}" == manifest["shards"]["xxh3"]
    shards = pq.read_table(folder / manifest["shards"]["file"]).to_pylist()
    layouts = b"".join(struct.pack("<Q", shard["layout_xxh3"]) for shard in shards)
    assert xxh3_128(layouts).hexdigest() == manifest["fingerprint"]
    tars = Path(manifest["adopted"]["tars"] or folder)
    for shard in shards:
        path = tars / shard["name"]
        tar = path.read_bytes()
        assert shard["bytes"] == len(tar)
        assert shard["version"] == f"{len(tar)}-{path.stat().st_mtime_ns}"
        assert shard["tar_xxh3"] in (None, digest(tar))
        idx = (folder / f"{shard['name']}.idx").read_bytes()
        sidecar = (folder / f"{shard['name']}.parquet").read_bytes()
        assert (shard["idx_xxh3"], shard["sidecar_xxh3"]) == (digest(idx), digest(sidecar))
        offsets = struct.unpack(f"<{shard['samples'] + 1}Q", idx)
        table = pq.read_table(folder / f"{shard['name']}.parquet")
        assert b"shardkit.adopted" in table.schema.metadata
        exts = [f.name for f in table.schema if (f.metadata or {}).get(b"shardkit") == b"member"]
        rows = table.to_pylist()
        layout = b"".join(row["__key__"].encode() + b"\0" for row in rows)
        for ext in exts:
            layout += ext.encode() + b"\0"
            for name in ("offset", "size"):
                values = [-1 if row[ext] is None else row[ext][name] for row in rows]
                layout += struct.pack(f"<{len(rows)}q", *values)
        assert digest(layout) == shard["layout_xxh3"]
        for row, start, stop in zip(rows, offsets[:-1], offsets[1:], strict=True):
            members = {}
            for ext in exts:
                if (place := row[ext]) is not None:
                    assert start < place["offset"] <= place["offset"] + place["size"] <= stop
                    members[ext] = tar[place["offset"] : place["offset"] + place["size"]]
                    assert (place["xxh3"] is None) == (shard["tar_xxh3"] is None)
                    assert place["xxh3"] in (None, digest(members[ext]))
            metadata = {name: row.get(name) for name in manifest["metadata"]}
            yield row["__key__"], members, metadata


@pytest.mark.parametrize("reading", ["headers", "whole"])
def test_a_reader_written_from_the_specification_reads_adopted_tars(
    reading: Reading, tmp_path: Path
) -> None:
    tars = make_tars(tmp_path / "tars", 2, 10)
    FOREIGN["PAX long names"](tars / "zoo.tar")
    options = AdoptOptions(reading, MetadataChoice("json", ("caption", "width")))
    adopt(
        str(tars),
        str(tmp_path / "out"),
        executor=LocalExecutor(1),
        options=options,
    )
    found = list(read_adopted(tmp_path / "out"))
    assert len(found) == 25
    for number, (key, members, metadata) in enumerate(found[:20]):
        fields = fields_of(number // 10, number % 10)
        assert key == fields["key"]
        assert json.loads(members["json"]) == fields
        assert members["txt"].decode() == fields["caption"]
        assert metadata == {"caption": fields["caption"], "width": fields["width"]}
    assert found[20][0] == "d" * 300 + "/000"
    assert found[20][1]["jpg"] == b"0 jpg"
