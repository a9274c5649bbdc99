"""The manifest of a packed dataset, its table of shards, and the fingerprint of its contents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128, xxh3_128_hexdigest

from shardkit.errors import ConfigError, CorruptError
from shardkit.format.arrays import flags, from_numbers, from_texts, numbers
from shardkit.format.sidecar import Failure, ShardRecord
from shardkit.format.tar import checksum

__all__ = [
    "FAILED_NAME",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "SHARDS_NAME",
    "Adopted",
    "AdoptedShards",
    "Manifest",
    "ShardTable",
    "encode_failures",
    "extends",
    "fingerprint",
    "idx_name",
    "sidecar_name",
]

FORMAT_VERSION = 2
"""What this shardkit reads; packed datasets are written as version 1, adopted tars as version 2."""
MANIFEST_NAME = "manifest.json"
SHARDS_NAME = "shards.parquet"
FAILED_NAME = "failed.parquet"

_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("name", pa.string()),
    ("rows", pa.int64()),
    ("samples", pa.int64()),
    ("bytes", pa.int64()),
    ("tar_xxh3", pa.uint64()),
    ("idx_xxh3", pa.uint64()),
    ("sidecar_xxh3", pa.uint64()),
)
_ADOPTED_COLUMNS = (("layout_xxh3", pa.uint64()), ("version", pa.string()))


def idx_name(tar: str) -> str:
    """Where the offsets of a shard lie: beside it."""
    return tar + ".idx"


def sidecar_name(tar: str, *, adopted: bool = False) -> str:
    """Where the sidecar of a shard lies: beside it.

    That of an adopted tar has a name of its own, since a ``.parquet`` of the tar's name often is
    somebody else's: img2dataset writes one.
    """
    return f"{tar}.parquet" if adopted else tar.removesuffix(".tar") + ".parquet"


def fingerprint(checksums: npt.NDArray[np.uint64]) -> str:
    """Identity of a dataset's contents: XXH3-128 over its shards' checksums, in order.

    These are of whole tars where they were packed, of layouts (keys, places and sizes) where tars
    were adopted.
    """
    return xxh3_128_hexdigest(np.ascontiguousarray(checksums, dtype="<u8").tobytes())


def extends(checksums: npt.NDArray[np.uint64], earlier: str) -> bool:
    """Whether ``earlier`` is the fingerprint of the first of these shards, and others came later.

    Nothing has to be noted for that: a fingerprint is a hash over checksums in order, so that of a
    shorter dataset is met on the way (10^6 shards: under a second).
    """
    data = np.ascontiguousarray(checksums, dtype="<u8").tobytes()
    hasher = xxh3_128()
    for start in range(0, len(data) - 8, 8):
        hasher.update(data[start : start + 8])
        if hasher.hexdigest() == earlier:
            return True
    return False


@dataclass(frozen=True)
class AdoptedShards:
    """What the shard table knows of tars that others wrote; arrays of shape [num_shards].

    Attributes:
        layout_xxh3: checksum of each shard's layout.
        versions: what the store called each tar's content (etag, or size and time) when it was
            adopted.
        proved: whether the tar was read whole, so that ``tar_xxh3`` and the checksums of its
            members are known; where not, ``tar_xxh3`` is 0.
    """

    layout_xxh3: npt.NDArray[np.uint64]
    versions: pa.ChunkedArray
    proved: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ShardTable:
    """One row per shard, columnar: 10^6 shards are a few arrays, not objects.

    ``names`` stays an Arrow array; the rest are arrays of shape [num_shards].
    """

    names: pa.ChunkedArray
    rows: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    tar_xxh3: npt.NDArray[np.uint64]
    idx_xxh3: npt.NDArray[np.uint64]
    sidecar_xxh3: npt.NDArray[np.uint64]
    adopted: AdoptedShards | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, shard: int) -> str:
        """File name of a shard's tar."""
        return self.names[shard].as_py()  # type: ignore[no-any-return]

    def sidecar(self, shard: int) -> str:
        """File name of a shard's sidecar."""
        return sidecar_name(self.name(shard), adopted=self.adopted is not None)

    @property
    def fingerprint(self) -> str:
        """Identity of the contents."""
        return fingerprint(self._identities)

    def extends(self, earlier: str) -> bool:
        """Whether the dataset of that fingerprint is the first of these shards."""
        return extends(self._identities, earlier)

    @property
    def _identities(self) -> npt.NDArray[np.uint64]:
        return self.tar_xxh3 if self.adopted is None else self.adopted.layout_xxh3

    @classmethod
    def from_records(cls, records: Sequence[ShardRecord]) -> ShardTable:
        """The table of these shards, in their order."""

        def ints(name: str, dtype: type = np.int64) -> npt.NDArray[Any]:
            return np.array([getattr(record, name) for record in records], dtype=dtype)

        return cls(
            pa.chunked_array([from_texts([record.name for record in records])]),
            ints("rows"),
            ints("samples"),
            ints("num_bytes"),
            ints("tar_xxh3", np.uint64),
            ints("idx_xxh3", np.uint64),
            ints("sidecar_xxh3", np.uint64),
        )

    def encode(self) -> bytes:
        """The bytes of ``shards.parquet``."""
        arrays = [self.names, *(from_numbers(column) for column in self._numbers())]
        schema = _COLUMNS
        if self.adopted is not None:
            arrays[4] = from_numbers(self.tar_xxh3, self.adopted.proved)
            arrays += [from_numbers(self.adopted.layout_xxh3), self.adopted.versions]
            schema += _ADOPTED_COLUMNS
        table = pa.Table.from_arrays(arrays, schema=pa.schema(schema))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> ShardTable:
        """The table in the bytes of a ``shards.parquet``.

        Raises:
            CorruptError: the bytes are no such table.
        """
        try:
            file = pq.ParquetFile(pa.BufferReader(data))

            def column(name: str) -> pa.ChunkedArray:  # one at a time: half the memory
                return file.read([name], use_threads=False).column(name)

            def array(name: str, kind: pa.DataType) -> npt.NDArray[Any]:
                return _array(column(name).cast(kind))

            adopted = None
            if _ADOPTED_COLUMNS[0][0] in file.schema_arrow.names:
                proved = flags(column("tar_xxh3").is_valid())
                layouts = array("layout_xxh3", pa.uint64())
                adopted = AdoptedShards(layouts, column("version"), proved)
            return cls(
                names=column("name"),
                rows=array("rows", pa.int64()),
                samples=array("samples", pa.int64()),
                num_bytes=array("bytes", pa.int64()),
                tar_xxh3=numbers(column("tar_xxh3").cast(pa.uint64())),
                idx_xxh3=array("idx_xxh3", pa.uint64()),
                sidecar_xxh3=array("sidecar_xxh3", pa.uint64()),
                adopted=adopted,
            )
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise CorruptError(f"{SHARDS_NAME} is no table of shards: {error}") from error

    def _numbers(self) -> tuple[npt.NDArray[Any], ...]:
        return (
            self.rows,
            self.samples,
            self.num_bytes,
            self.tar_xxh3,
            self.idx_xxh3,
            self.sidecar_xxh3,
        )


@dataclass(frozen=True)
class Adopted:
    """What the manifest says of tars that were adopted and not packed.

    Attributes:
        tars: URL of the folder that the names of shards are relative to, with ``/`` at its end;
            ``""``: the manifest's own.
        unique_keys: whether no key repeats.
    """

    tars: str = ""
    unique_keys: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Adopted:
        """From the manifest's JSON."""
        return cls(values["tars"], values["unique_keys"])


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says: small, written last, and enough to check all the rest."""

    num_samples: int
    num_shards: int
    num_bytes: int
    fingerprint: str
    shards_xxh3: int
    members: Mapping[str, int]
    """Exts, and how many samples have each (the metadata member included)."""
    metadata: Mapping[str, str]
    """Metadata columns and their Arrow types."""
    metadata_ext: str | None
    """The ext under which the metadata lies in the tars too; None if it does not."""
    num_failed: int = 0
    plan: str = ""
    """Identity of the plan that the shards were packed by."""
    packed: Mapping[str, Any] = field(default_factory=dict)
    """That plan: fingerprint of the index, its columns, the options. With the shard table's
    ``rows`` it makes any shard again."""
    adopted: Adopted | None = None

    def encode(self) -> bytes:
        """The bytes of ``manifest.json``."""
        values = {
            "format": "shardkit",
            "format_version": 1 if self.adopted is None else 2,
            "num_samples": self.num_samples,
            "num_shards": self.num_shards,
            "num_bytes": self.num_bytes,
            "num_failed": self.num_failed,
            "fingerprint": self.fingerprint,
            "shards": {"file": SHARDS_NAME, "xxh3": f"{self.shards_xxh3:016x}"},
            "members": dict(self.members),
            "metadata": dict(self.metadata),
            "metadata_ext": self.metadata_ext,
            "plan": self.plan,
            "packed": dict(self.packed),
        }
        if self.adopted is not None:
            values["adopted"] = asdict(self.adopted)
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes, url: str) -> Manifest:
        """The manifest in these bytes; ``url`` is for messages.

        Raises:
            ConfigError: the format version is newer than this shardkit knows.
            CorruptError: the bytes are no manifest of ours.
        """
        try:
            values = json.loads(data)
            if values["format"] != "shardkit":
                raise ValueError(f"its format is {values['format']!r}")
            if values["format_version"] > FORMAT_VERSION:
                raise ConfigError(
                    f"{url} has format version {values['format_version']}; this shardkit reads up "
                    f"to {FORMAT_VERSION}: install a newer shardkit"
                )
            return cls(
                num_samples=values["num_samples"],
                num_shards=values["num_shards"],
                num_bytes=values["num_bytes"],
                num_failed=values["num_failed"],
                fingerprint=values["fingerprint"],
                shards_xxh3=int(values["shards"]["xxh3"], 16),
                members=values["members"],
                metadata=values["metadata"],
                metadata_ext=values["metadata_ext"],
                plan=values["plan"],
                packed=values["packed"],
                adopted=Adopted.of(values["adopted"]) if "adopted" in values else None,
            )
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(
                f"{url} is no manifest of a packed dataset ({error!r}); pack again, or name the "
                "tars themselves"
            ) from error

    def check_shards(self, data: bytes, url: str) -> ShardTable:
        """The shard table in ``data``, held against this manifest.

        Raises:
            CorruptError: the bytes or the counts are others than the manifest says.
        """
        if checksum(data) != self.shards_xxh3:
            raise CorruptError(
                f"{url} does not match its manifest (xxh3 {checksum(data):016x} instead of "
                f"{self.shards_xxh3:016x}): copy the dataset again, or pack again"
            )
        table = ShardTable.decode(data)
        counts = (len(table), int(table.samples.sum()), int(table.num_bytes.sum()))
        if counts != (self.num_shards, self.num_samples, self.num_bytes):
            raise CorruptError(f"{url} has other counts than its manifest; pack again")
        if table.fingerprint != self.fingerprint:
            raise CorruptError(f"{url} has another fingerprint than its manifest; pack again")
        return table


def _array(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if column.null_count:
        raise ValueError("it has nulls")
    return numbers(column)


def encode_failures(failures: Sequence[Failure]) -> bytes:
    """The bytes of ``failed.parquet``: key, url and kind of every skipped row, in index order."""
    table = pa.table(
        {
            "key": from_texts([f.key for f in failures]),
            "url": from_texts([f.url for f in failures]),
            "kind": from_texts([f.kind for f in failures]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
