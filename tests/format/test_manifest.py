"""The manifest, the shard table, the fingerprint."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from xxhash import xxh3_128

from shardkit.errors import ConfigError, CorruptError
from shardkit.format.manifest import (
    FORMAT_VERSION,
    Manifest,
    ShardTable,
    fingerprint,
    idx_name,
    sidecar_name,
)
from shardkit.format.sidecar import ShardRecord
from shardkit.format.tar import checksum


def record(number: int) -> ShardRecord:
    return ShardRecord(f"shard-{number:06d}.tar", 10, 9, 10_240, 2**64 - 1 - number, number, number)


TABLE = ShardTable.from_records([record(0), record(1)])
MANIFEST = Manifest(
    num_samples=18,
    num_shards=2,
    num_bytes=20_480,
    fingerprint=fingerprint(TABLE.tar_xxh3),
    shards_xxh3=checksum(TABLE.encode()),
    members={"jpg": 18, "json": 4},
    metadata={"label": "string"},
    metadata_ext=None,
    num_failed=2,
    plan="p",
    packed={"index": "i"},
)


def test_manifest_and_table_are_read_back_and_agree() -> None:
    assert Manifest.decode(MANIFEST.encode(), "m") == MANIFEST
    table = MANIFEST.check_shards(TABLE.encode(), "s")
    assert (len(table), table.name(1), table.tar_xxh3.tolist()) == (
        2,
        "shard-000001.tar",
        [2**64 - 1, 2**64 - 2],
    )


def test_the_fingerprint_is_the_hash_of_the_tars_checksums_in_order() -> None:
    sums = np.array([1, 2**63], dtype=np.uint64)
    assert (
        fingerprint(sums)
        == xxh3_128((1).to_bytes(8, "little") + (2**63).to_bytes(8, "little")).hexdigest()
    )
    assert fingerprint(sums) != fingerprint(sums[::-1])


def test_neighbours_of_a_tar_are_named_after_it() -> None:
    assert idx_name("shard-000000.tar") == "shard-000000.tar.idx"
    assert sidecar_name("shard-000000.tar") == "shard-000000.parquet"


def test_a_newer_format_is_refused_with_the_remedy() -> None:
    values = json.loads(MANIFEST.encode()) | {"format_version": FORMAT_VERSION + 1}
    with pytest.raises(ConfigError, match=r"format version 3; .* install a newer shardkit"):
        Manifest.decode(json.dumps(values).encode(), "m")


def test_fields_that_a_later_shardkit_adds_are_ignored() -> None:
    values = json.loads(MANIFEST.encode()) | {"later": 1}
    assert Manifest.decode(json.dumps(values).encode(), "m") == MANIFEST


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"format": "other"}', MANIFEST.encode()[:-30]]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError, match=r"out/manifest.json is no manifest"):
        Manifest.decode(data, "out/manifest.json")


def test_another_shard_table_is_refused() -> None:
    other = ShardTable.from_records([record(1), record(0)])
    with pytest.raises(CorruptError, match="does not match its manifest"):
        MANIFEST.check_shards(other.encode(), "s")
    forged = replace(MANIFEST, shards_xxh3=checksum(other.encode()))
    with pytest.raises(CorruptError, match="another fingerprint"):
        forged.check_shards(other.encode(), "s")
    with pytest.raises(CorruptError, match="other counts"):
        replace(MANIFEST, num_samples=19).check_shards(TABLE.encode(), "s")


def test_what_is_no_table_of_shards_is_refused() -> None:
    with pytest.raises(CorruptError, match="no table of shards"):
        ShardTable.decode(b"PAR1")
    with pytest.raises(CorruptError, match="no table of shards"):
        ShardTable.decode(pa.BufferOutputStream().getvalue().to_pybytes())
