"""A packed dataset, opened: the manifest, the shard table, and each shard's layout on demand.

Data's path: ``manifest.json`` → ``shards.parquet`` (checked against it) → a shard's sidecar →
``ShardLayout``: one array a column, ready to gather any rows of the shard in a few numpy calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import ConfigError, CorruptError, NotFoundError
from shardkit.format.manifest import (
    MANIFEST_NAME,
    SHARDS_NAME,
    Manifest,
    ShardTable,
    idx_name,
    sidecar_name,
)
from shardkit.format.sidecar import KEY, decode_offsets, member_exts, metadata_names
from shardkit.format.tar import checksum
from shardkit.storage.protocol import Store

__all__ = ["PackedDataset", "ShardLayout", "is_packed"]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where everything of one shard's N samples lies.

    Attributes:
        keys: object array [N] of str.
        starts: by ext, int64 [N]: offset of the member's data in the tar; -1 where it has none.
        stops: by ext, int64 [N]: the offset after the data.
        checksums: by ext, uint64 [N]: XXH3-64 of the data; empty where nothing is known.
        metadata: by column, array [N]: numbers as they are, anything else as Python objects.
        uneven: whether some sample lacks a member that others have.
    """

    keys: npt.NDArray[np.object_]
    starts: Mapping[str, npt.NDArray[np.int64]]
    stops: Mapping[str, npt.NDArray[np.int64]]
    checksums: Mapping[str, npt.NDArray[np.uint64]]
    metadata: Mapping[str, npt.NDArray[Any]]
    uneven: bool

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class PackedDataset:
    """The shards of a folder that ``pack`` wrote; picklable and small per shard."""

    url: str
    manifest: Manifest
    shards: ShardTable
    store: Store

    @classmethod
    def open(cls, url: str, store: Store) -> PackedDataset:
        """Load manifest and shard table; nothing else is read.

        Raises:
            NotFoundError: there is no manifest: not a packed dataset, or its pack has not ended.
            CorruptError: manifest and shard table don't belong together.
        """
        url = url.rstrip("/").removesuffix(f"/{MANIFEST_NAME}")
        manifest_url = f"{url}/{MANIFEST_NAME}"
        try:
            manifest = Manifest.decode(store.get(manifest_url), manifest_url)
        except NotFoundError as error:
            raise NotFoundError(
                f"{url} has no {MANIFEST_NAME}: it is no packed dataset, or packing it has not "
                "ended; run the same `shardkit pack` again to end it"
            ) from error
        shards_url = f"{url}/{SHARDS_NAME}"
        return cls(url, manifest, manifest.check_shards(store.get(shards_url), shards_url), store)

    def shard_url(self, shard: int) -> str:
        """URL of a shard's tar."""
        return f"{self.url}/{self.shards.name(shard)}"

    def sidecar(self, shard: int) -> bytes:
        """The sidecar's bytes, held against the shard table.

        Raises:
            CorruptError: they are others than were packed.
        """
        return self._checked(sidecar_name(self.shards.name(shard)), self.shards.sidecar_xxh3[shard])

    def offsets(self, shard: int) -> npt.NDArray[np.int64]:
        """The N+1 sample offsets of a shard, from its ``.idx``."""
        name = idx_name(self.shards.name(shard))
        return decode_offsets(self._checked(name, self.shards.idx_xxh3[shard]), name)

    def layout(
        self,
        shard: int,
        exts: Sequence[str] | None = None,
        metadata: Sequence[str] | None = None,
    ) -> ShardLayout:
        """The layout of a shard, with these members and metadata columns (default: all).

        The tar's own copy of the metadata is a member only if ``exts`` asks for it.
        """
        data = self.sidecar(shard)
        file = pq.ParquetFile(pa.BufferReader(data))
        hidden = self.manifest.metadata_ext
        present = member_exts(file.schema_arrow)
        wanted = [e for e in present if e != hidden] if exts is None else list(exts)
        columns = metadata_names(file.schema_arrow)
        chosen = columns if metadata is None else [c for c in columns if c in set(metadata)]
        table = file.read([KEY, *(e for e in wanted if e in present), *chosen], use_threads=False)
        return table_layout(table, [e for e in wanted if e in present], chosen, len(wanted))

    def check_members(self, exts: Sequence[str]) -> None:
        """Refuse exts that no sample of the dataset has.

        Raises:
            ConfigError: naming them and those there are.
        """
        unknown = sorted(set(exts) - set(self.manifest.members))
        if unknown:
            raise ConfigError(
                f"{self.url} has no members {unknown}; it has {sorted(self.manifest.members)}"
            )

    def _checked(self, name: str, expected: np.uint64) -> bytes:
        url = f"{self.url}/{name}"
        data = self.store.get(url)
        found = checksum(data)
        if found != int(expected):
            raise CorruptError(
                f"{url} is not what was packed (xxh3 {found:016x}, not {int(expected):016x}); "
                f"`shardkit verify {self.url} --repair INDEX` makes it again"
            )
        return data


def is_packed(url: str, store: Store) -> bool:
    """Whether a folder holds a manifest."""
    try:
        store.stat(f"{url.rstrip('/')}/{MANIFEST_NAME}")
    except NotFoundError:
        return False
    return True


def table_layout(
    table: pa.Table, exts: Sequence[str], metadata: Sequence[str], num_wanted: int
) -> ShardLayout:
    """The layout that a sidecar's rows describe."""
    starts, stops, sums = {}, {}, {}
    uneven = len(exts) < num_wanted
    for ext in exts:
        struct = table.column(ext).combine_chunks()
        offset, size, digest = (struct.field(i).to_numpy(zero_copy_only=False) for i in range(3))
        if struct.null_count:
            uneven = True
            absent = struct.is_null().to_numpy(zero_copy_only=False)
            offset, size, digest = (np.where(absent, 0, a) for a in (offset, size, digest))
            starts[ext] = np.where(absent, -1, offset).astype(np.int64)
            stops[ext] = np.where(absent, -1, offset + size).astype(np.int64)
        else:
            starts[ext], stops[ext] = offset, offset + size
        sums[ext] = digest.astype(np.uint64)
    return ShardLayout(
        keys=_objects(table.column(KEY)),
        starts=starts,
        stops=stops,
        checksums=sums,
        metadata={name: _values(table.column(name)) for name in metadata},
        uneven=uneven,
    )


def _objects(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    return column.to_numpy()  # type: ignore[no-any-return]


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as an array whose ``tolist`` gives the Python values."""
    kind = column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if column.null_count == 0 and number:
        return column.to_numpy()  # type: ignore[no-any-return]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_numpy()  # type: ignore[no-any-return]
    return np.fromiter(column.to_pylist(), dtype=object, count=len(column))
