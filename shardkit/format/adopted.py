"""The sidecar of a tar that somebody else wrote, and the record of it in the sidecar's footer.

Columns are those of any sidecar; checksums of members are null where the tar was not read whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64

from shardkit.format.manifest import AdoptedShards, ShardTable
from shardkit.format.sidecar import KEY, sidecar_bytes
from shardkit.format.tar import checksum

__all__ = ["AdoptedRecord", "encode_adopted", "layout_xxh3", "read_adopted", "table_of"]

_RECORD = b"shardkit.adopted"


@dataclass(frozen=True, slots=True)
class AdoptedRecord:
    """What is known of an adopted tar besides its samples."""

    name: str
    """Of the tar, relative to the folder of all of them."""
    samples: int
    num_bytes: int
    version: str
    """What its store called its content: an etag, or size and time."""
    layout_xxh3: int
    idx_xxh3: int
    tar_xxh3: int | None = None
    """None where the tar was not read whole."""
    sidecar_xxh3: int = 0
    """0 inside the sidecar, which can't hold its own."""
    members: Mapping[str, int] = field(default_factory=dict)
    """Exts, and how many samples have each."""
    kinds: Mapping[str, list[str]] = field(default_factory=dict)
    """Metadata columns, and what kinds of values were seen in each."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Their Arrow types in this sidecar."""
    num_without_metadata: int = 0
    """Samples whose metadata could not be read."""
    has_end: bool = True
    """Whether the tar has an end marker; without one it may have been cut between members."""


def layout_xxh3(table: pa.Table) -> int:
    """Identity of which samples a tar has and where: XXH3-64 over keys, offsets and sizes.

    Of all keys in UTF-8, each ended by NUL; then for every ext in order of name the ext in UTF-8,
    NUL, the offsets and then the sizes of its members as little-endian int64, -1 where a sample
    has none.

    Args:
        table: ``__key__`` and a column of places per ext, as in a sidecar.
    """
    digest = xxh3_64()
    for key in table.column(KEY).to_pylist():
        digest.update(key.encode() + b"\0")
    for ext in sorted(name for name in table.column_names if name != KEY):
        digest.update(ext.encode() + b"\0")
        places = table.column(ext).combine_chunks()
        absent = places.is_null().to_numpy(zero_copy_only=False)
        for number in range(2):
            values = places.field(number).fill_null(-1).to_numpy(zero_copy_only=False)
            digest.update(np.where(absent, -1, values).astype("<i8").tobytes())
    return digest.intdigest()


def encode_adopted(
    table: pa.Table, metadata: pa.Table, record: AdoptedRecord, plan: str
) -> tuple[bytes, AdoptedRecord]:
    """The bytes of a sidecar, and the record with their checksum.

    Args:
        table: ``__key__`` and a column of places per ext, N rows.
        metadata: N rows.
        record: what the footer says of the shard.
        plan: identity of what was adopted and how, so that an adoption that goes on takes over
            what is still true.
    """
    exts = sorted(name for name in table.column_names if name != KEY)
    members = {ext: table.column(ext) for ext in exts}
    footer = {_RECORD: json.dumps({"plan": plan, **asdict(record)}).encode()}
    data = sidecar_bytes(table.column(KEY), members, metadata, footer)
    return data, replace(record, sidecar_xxh3=checksum(data))


def read_adopted(data: bytes) -> tuple[AdoptedRecord, str] | None:
    """The record and the plan of a sidecar; None if the bytes are no sidecar of an adopted tar."""
    try:
        schema = pq.read_schema(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        return None
    raw = (schema.metadata or {}).get(_RECORD)
    if raw is None:
        return None
    values = json.loads(raw)
    plan = values.pop("plan")
    return AdoptedRecord(**{**values, "sidecar_xxh3": checksum(data)}), plan


def table_of(records: Sequence[AdoptedRecord]) -> ShardTable:
    """The shard table of these tars, in their order."""

    def texts(values: list[str]) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(values, pa.string())])

    samples = np.array([record.samples for record in records], dtype=np.int64)
    adopted = AdoptedShards(
        np.array([record.layout_xxh3 for record in records], dtype=np.uint64),
        texts([record.version for record in records]),
        np.array([record.tar_xxh3 is not None for record in records], dtype=np.bool_),
    )
    return ShardTable(
        names=texts([record.name for record in records]),
        rows=samples,
        samples=samples,
        num_bytes=np.array([record.num_bytes for record in records], dtype=np.int64),
        tar_xxh3=np.array([record.tar_xxh3 or 0 for record in records], dtype=np.uint64),
        idx_xxh3=np.array([record.idx_xxh3 for record in records], dtype=np.uint64),
        sidecar_xxh3=np.array([record.sidecar_xxh3 for record in records], dtype=np.uint64),
        adopted=adopted,
    )
