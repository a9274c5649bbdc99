"""The sidecar of a shard (a Parquet table, one row per sample) and its ``.idx`` of offsets.

The ``.idx`` has Megatron-Energon's layout: N+1 little-endian uint64, where each sample's first
header starts and where the last one ends. The sidecar is ours: ``__key__``, one struct column per
ext with the member's place and checksum, and the metadata columns with their own types. Its
Parquet footer holds a ``ShardRecord``, so that a shard's three files describe each other.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import ConfigError, CorruptError
from shardkit.format.arrays import from_flags, from_numbers, from_texts

__all__ = [
    "KEY",
    "MEMBER_TYPE",
    "Failure",
    "Placed",
    "ShardRecord",
    "check_metadata_names",
    "decode_offsets",
    "encode_offsets",
    "encode_sidecar",
    "member_column",
    "member_exts",
    "metadata_names",
    "sidecar_bytes",
    "sidecar_record",
]

KEY = "__key__"
MEMBER_TYPE = pa.struct([("offset", pa.int64()), ("size", pa.int64()), ("xxh3", pa.uint64())])
"""Start of the data in the tar, its bytes, and the XXH3-64 of it; null where there is no member."""

_ROLE = b"shardkit"
_MEMBER_ROLE = {_ROLE: b"member"}
_RECORD = b"shardkit.shard"
_ROWS_PER_GROUP = 131_072  # a where= skips row groups by their statistics; one group is ~10 MB


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that was skipped: its key, the URL that failed, and what kind of failure it was."""

    key: str
    url: str
    kind: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What is known of a shard besides its rows; the shard table has one line of it per shard."""

    name: str
    """File name of the tar, relative to the dataset's folder."""
    rows: int
    """Index rows that were meant for this shard."""
    samples: int
    """Samples in it: ``rows`` less the skipped ones."""
    num_bytes: int
    """Size of the tar."""
    tar_xxh3: int
    idx_xxh3: int
    sidecar_xxh3: int = 0
    """XXH3-64 of the sidecar file; 0 inside the sidecar, which can't hold its own."""
    members: Mapping[str, int] = field(default_factory=dict)
    """Exts, and how many samples have each."""
    failures: tuple[Failure, ...] = field(default=())

    def to_json(self, plan: str) -> bytes:
        """The footer entry of a sidecar written under the plan with this identity."""
        return json.dumps({"plan": plan, **asdict(self)}, sort_keys=True).encode()


Placed = list[tuple[int, int, int, int]]
"""Members of one ext while a shard is written: sample, data's offset, size, XXH3-64; in order."""


def member_column(placed: Placed, num_samples: int) -> pa.StructArray:
    """The sidecar's column of an ext: ``num_samples`` rows, null where no member is placed."""
    flat = np.fromiter(itertools.chain.from_iterable(placed), np.uint64, 4 * len(placed))
    rows, *values = flat.reshape(-1, 4).T
    at = rows.astype(np.int64)
    there = np.zeros(num_samples, dtype=bool)
    there[at] = True
    children = []
    for numbers, child in zip(values, MEMBER_TYPE, strict=True):
        column = np.zeros(num_samples, dtype=str(child.type))  # Arrow names integers as numpy
        column[at] = numbers
        children.append(from_numbers(column, there))
    return pa.StructArray.from_arrays(children, fields=list(MEMBER_TYPE), mask=from_flags(~there))


def encode_offsets(offsets: Sequence[int] | npt.NDArray[np.int64]) -> bytes:
    """The bytes of an ``.idx`` file."""
    return np.asarray(offsets, dtype="<u8").tobytes()


def decode_offsets(data: bytes, name: str = "idx") -> npt.NDArray[np.int64]:
    """The N+1 offsets of an ``.idx`` file.

    Raises:
        CorruptError: the length is no multiple of 8, or the offsets don't rise in whole blocks.
    """
    if len(data) % 8 or not data:
        raise CorruptError(f"{name} has {len(data)} bytes, not a positive multiple of 8; verify it")
    offsets = np.frombuffer(data, dtype="<u8").astype(np.int64)
    if (np.diff(offsets) <= 0).any() or (offsets % 512).any():
        raise CorruptError(f"{name} holds offsets that do not rise in blocks of 512; verify it")
    return offsets


def check_metadata_names(names: Sequence[str], exts: Collection[str | None]) -> None:
    """Refuse metadata columns that would hide a member or the key of a sample.

    Raises:
        ConfigError: naming the column and how to rename it.
    """
    for name in names:
        if name == KEY or (name.startswith("__") and name.endswith("__")):
            raise ConfigError(
                f"the metadata column {name!r} has a name that shardkit keeps for itself; rename "
                f"it in the index, or leave it out (--meta)"
            )
        if name in exts:
            raise ConfigError(
                f"the metadata column {name!r} would hide the member of that ext; rename the "
                f"column in the index, name the member otherwise (--files COLUMN=EXT), or leave "
                f"the column out (--meta)"
            )


def encode_sidecar(
    keys: Sequence[str],
    members: Mapping[str, Placed],
    metadata: pa.Table,
    record: ShardRecord,
    plan: str,
) -> bytes:
    """The Parquet bytes of a sidecar.

    Args:
        keys: N keys.
        members: by ext.
        metadata: N rows.
        record: what the footer says of the shard.
        plan: identity of the plan that the shard belongs to, so that a resumed pack does not
            take over a shard of another one.
    """
    columns = {ext: member_column(members[ext], len(keys)) for ext in sorted(members)}
    footer = {_RECORD: record.to_json(plan)}
    return sidecar_bytes(from_texts(keys), columns, metadata, footer)


def sidecar_bytes(
    keys: pa.Array | pa.ChunkedArray,
    members: Mapping[str, pa.Array | pa.ChunkedArray],
    metadata: pa.Table,
    footer: Mapping[bytes, bytes],
) -> bytes:
    """The Parquet bytes of a sidecar whose columns are there already; exts in order of name."""
    check_metadata_names(metadata.column_names, list(members))
    columns = [keys, *members.values(), *metadata.columns]
    fields = [pa.field(KEY, pa.string(), nullable=False)]
    fields += [pa.field(ext, MEMBER_TYPE, metadata=_MEMBER_ROLE) for ext in members]
    fields += [pa.field(field.name, field.type) for field in metadata.schema]
    schema = pa.schema(fields, metadata=dict(footer))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        compression="zstd",
        row_group_size=_ROWS_PER_GROUP,
    )
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def member_exts(schema: pa.Schema) -> list[str]:
    """The columns of a sidecar that place members."""
    return [f.name for f in schema if f.metadata and f.metadata.get(_ROLE) == b"member"]


def metadata_names(schema: pa.Schema) -> list[str]:
    """The columns of a sidecar that hold metadata."""
    exts = set(member_exts(schema))
    return [f.name for f in schema if f.name != KEY and f.name not in exts]


def sidecar_record(schema: pa.Schema, name: str) -> tuple[ShardRecord, str]:
    """The shard record in a sidecar's footer, and the identity of its plan.

    Raises:
        CorruptError: the Parquet file is no sidecar.
    """
    raw = (schema.metadata or {}).get(_RECORD)
    if raw is None:
        raise CorruptError(f"{name} is a Parquet file but no sidecar of a shard")
    values = json.loads(raw)
    plan = values.pop("plan")
    failures = tuple(Failure(**item) for item in values.pop("failures"))
    return ShardRecord(**values, failures=failures), plan
