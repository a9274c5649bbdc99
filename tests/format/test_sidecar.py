"""The ``.idx`` and the sidecar, as values and as any Parquet tool sees them."""

from __future__ import annotations

import io
import struct

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError, CorruptError
from shardkit.format.sidecar import (
    Failure,
    ShardRecord,
    check_metadata_names,
    decode_offsets,
    encode_offsets,
    encode_sidecar,
    member_column,
    member_exts,
    metadata_names,
    sidecar_record,
)

RECORD = ShardRecord(
    name="shard-000000.tar",
    rows=4,
    samples=3,
    num_bytes=5120,
    tar_xxh3=2**64 - 1,
    idx_xxh3=2**63,
    members={"jpg": 3, "txt": 1},
    failures=(Failure("k", "s3://b/ü.jpg", "missing"),),
)


def sidecar(**changes: object) -> bytes:
    metadata = pa.table({"label": ["x", None, "z"], "score": pa.array([1.5, 2.5, None])})
    places = {
        "txt": [(1, 2048, 3, 2**64 - 1)],
        "jpg": [(i, 512 + i * 1024, 10, i) for i in range(3)],
    }
    values = {"keys": ["a", "b", "c"], "members": places, "metadata": metadata} | changes
    return encode_sidecar(**values, record=RECORD, plan="p1")  # type: ignore[arg-type]


def test_the_idx_is_little_endian_uint64() -> None:
    assert encode_offsets([0, 1024, 5632]) == struct.pack("<3Q", 0, 1024, 5632)


@given(st.lists(st.integers(1, 2**40), max_size=50))
@settings(max_examples=50)
def test_offsets_are_read_back(blocks: list[int]) -> None:
    offsets = np.concatenate([[0], np.cumsum(np.array(blocks, dtype=np.int64) * 512)])
    assert decode_offsets(encode_offsets(offsets)).tolist() == offsets.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, not a positive multiple of 8"),
        (bytes(12), "12 bytes, not"),
        (struct.pack("<2Q", 512, 512), "do not rise"),
        (struct.pack("<2Q", 0, 700), "blocks of 512"),
    ],
)
def test_an_idx_that_cant_be_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=f"x.idx.*{message}"):
        decode_offsets(data, "x.idx")


def test_the_record_in_the_footer_is_read_back() -> None:
    assert sidecar_record(pq.read_schema(io.BytesIO(sidecar())), "x") == (RECORD, "p1")


def test_members_and_metadata_are_told_apart() -> None:
    schema = pq.read_schema(io.BytesIO(sidecar()))
    assert member_exts(schema) == ["jpg", "txt"]
    assert metadata_names(schema) == ["label", "score"]
    assert schema.field("score").type == pa.float64()


def test_duckdb_filters_it_without_shardkit(tmp_path: object) -> None:
    path = f"{tmp_path}/s.parquet"
    with open(path, "wb") as file:
        file.write(sidecar())
    found = duckdb.sql(
        f"SELECT __key__, jpg.offset, txt.xxh3 FROM '{path}' WHERE score > 2 AND txt IS NOT NULL"
    ).fetchall()
    assert found == [("b", 1536, 2**64 - 1)]


def test_a_member_that_no_sample_has_is_a_column_of_nulls() -> None:
    column = member_column([], 2)
    assert column.to_pylist() == [None, None]


def test_equal_values_make_equal_bytes() -> None:
    assert sidecar() == sidecar()


@pytest.mark.parametrize("name", ["jpg", "__key__", "__url__"])
def test_a_column_that_would_hide_a_member_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}'.*rename"):
        check_metadata_names(["ok", name], ["jpg", None])


def test_another_parquet_file_is_no_sidecar() -> None:
    with pytest.raises(CorruptError, match="no sidecar"):
        sidecar_record(pa.schema([("x", pa.int64())]), "x.parquet")
