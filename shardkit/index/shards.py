"""Shards, opened: how many samples each has, and on demand where everything in one lies.

Data's path for a packed dataset: ``manifest.json`` → ``shards.parquet`` (checked against it) → a
shard's sidecar → ``ShardLayout``: one array a column, ready to gather any rows of the shard in a
few numpy calls. For plain tars: a kept scan of their headers → ``ShardLayout``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import ConfigError, CorruptError, NotFoundError
from shardkit.format.arrays import flags, numbers, texts
from shardkit.format.manifest import MANIFEST_NAME, Manifest, ShardTable
from shardkit.format.sidecar import KEY, decode_offsets, member_exts, metadata_names
from shardkit.format.tar import checksum
from shardkit.index.groups import Groups
from shardkit.index.places import ShardPlaces
from shardkit.index.scratch import Scratch
from shardkit.index.sources import identify
from shardkit.index.tar_groups import (
    ScannedTar,
    TarGroups,
    fingerprint_of,
    open_packed,
    scan_tars,
    tars_extend,
)
from shardkit.storage.protocol import ObjectInfo, Store

__all__ = ["PackedDataset", "PlainTars", "ShardLayout", "ShardSet", "open_shards"]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where everything of one shard's N samples lies.

    Attributes:
        keys: object array [N] of str.
        starts: by ext, int64 [N]: offset of the member's data in the tar; -1 where it has none.
        stops: by ext, int64 [N]: the offset after the data.
        checksums: by ext, uint64 [N]: XXH3-64 of the data; without an ext whose are not known.
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


class ShardSet(Protocol):
    """Shards with one fingerprint. Picklable; thread-safe; small per shard."""

    @property
    def url(self) -> str:
        """What was opened, for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the contents."""
        ...

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples per shard."""
        ...

    def extends(self, fingerprint: str) -> bool:
        """Whether the shards of that fingerprint are the first of these, and others came later."""
        ...

    @property
    def exts(self) -> Sequence[str]:
        """All members that samples may have."""
        ...

    @property
    def default_exts(self) -> Sequence[str]:
        """Members that are given when nobody says which."""
        ...

    @property
    def metadata(self) -> Sequence[str]:
        """Names of the metadata columns."""
        ...

    def shard_url(self, shard: int) -> str:
        """URL of a shard's tar."""
        ...

    def num_bytes(self, shard: int) -> int:
        """Size of a shard's tar; -1 where it is not known."""
        ...

    def tar_checksum(self, shard: int) -> int | None:
        """XXH3-64 of the whole tar; None where it is not known."""
        ...

    def version(self, shard: int) -> str:
        """Text that changes when a shard's contents do."""
        ...

    def layout(self, shard: int, exts: Sequence[str], metadata: Sequence[str]) -> ShardLayout:
        """Where these members and columns of a shard's samples are."""
        ...

    def groups(self) -> Groups:
        """The samples as rows, a group a shard: ``__key__``, places of members, metadata."""
        ...


@dataclass(frozen=True)
class PackedDataset:
    """The shards of a folder that ``pack`` wrote, or adopted ones. See ``ShardSet``."""

    places: ShardPlaces

    @classmethod
    def open(cls, url: str, store: Store) -> PackedDataset:
        """Load manifest and shard table; nothing else is read. See ``ShardPlaces.open``."""
        return cls(ShardPlaces.open(url, store))

    @property
    def url(self) -> str:
        """Of the folder with the manifest."""
        return self.places.url

    @property
    def manifest(self) -> Manifest:
        """What ``manifest.json`` says."""
        return self.places.manifest

    @property
    def shards(self) -> ShardTable:
        """The shard table."""
        return self.places.shards

    @property
    def store(self) -> Store:
        """Where all is read from."""
        return self.places.store

    @property
    def fingerprint(self) -> str:
        """The manifest's."""
        return self.manifest.fingerprint

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples per shard."""
        return self.shards.samples

    @property
    def exts(self) -> Sequence[str]:
        """Exts of the manifest."""
        return tuple(self.manifest.members)

    @property
    def default_exts(self) -> Sequence[str]:
        """All but the tar's own copy of the metadata."""
        return tuple(ext for ext in self.exts if ext != self.manifest.metadata_ext)

    @property
    def metadata(self) -> Sequence[str]:
        """Columns of the manifest."""
        return tuple(self.manifest.metadata)

    def extends(self, fingerprint: str) -> bool:
        """See ``ShardSet``."""
        return self.shards.extends(fingerprint)

    def num_bytes(self, shard: int) -> int:
        """See ``ShardSet``."""
        return int(self.shards.num_bytes[shard])

    def tar_checksum(self, shard: int) -> int | None:
        """See ``ShardSet``."""
        return self.places.checksum(shard)

    def version(self, shard: int) -> str:
        """See ``ShardSet``."""
        return self.places.version(shard)

    def shard_url(self, shard: int) -> str:
        """URL of a shard's tar."""
        return self.places.tar(shard)

    def sidecar(self, shard: int) -> bytes:
        """The sidecar's bytes, held against the shard table.

        Raises:
            CorruptError: they are others than were packed.
        """
        return self._checked(self.places.sidecar(shard), self.shards.sidecar_xxh3[shard])

    def offsets(self, shard: int) -> npt.NDArray[np.int64]:
        """The N+1 sample offsets of a shard, from its ``.idx``."""
        url = self.places.idx(shard)
        return decode_offsets(self._checked(url, self.shards.idx_xxh3[shard]), url)

    def layout(
        self,
        shard: int,
        exts: Sequence[str] | None = None,
        metadata: Sequence[str] | None = None,
    ) -> ShardLayout:
        """The layout of a shard, with these members and metadata columns (default: all).

        The tar's own copy of the metadata is a member only if ``exts`` asks for it.

        Raises:
            CorruptError: the tar, adopted by its headers alone, has changed since.
        """
        self.places.check_unchanged(shard)
        data = self.sidecar(shard)
        file = pq.ParquetFile(pa.BufferReader(data))
        hidden = self.manifest.metadata_ext
        present = member_exts(file.schema_arrow)
        wanted = [e for e in present if e != hidden] if exts is None else list(exts)
        columns = metadata_names(file.schema_arrow)
        chosen = columns if metadata is None else [c for c in columns if c in set(metadata)]
        table = file.read([KEY, *(e for e in wanted if e in present), *chosen], use_threads=False)
        return table_layout(table, [e for e in wanted if e in present], chosen, len(wanted))

    def groups(self) -> Groups:
        """See ``ShardSet``."""
        return open_packed(self.places)

    def _checked(self, url: str, expected: np.uint64) -> bytes:
        data = self.store.get(url)
        found = checksum(data)
        if found != int(expected):
            remedy = f"`shardkit verify {self.url} --repair INDEX` makes it again"
            if self.manifest.adopted is not None:
                remedy = "the same `shardkit index` again makes it again"
            raise CorruptError(
                f"{url} is not what was packed (xxh3 {found:016x}, not {int(expected):016x}); "
                f"{remedy}"
            )
        return data


@dataclass(frozen=True)
class PlainTars:
    """Tars with no sidecars, scanned once. See ``ShardSet``."""

    url: str
    tars: Sequence[ScannedTar]
    sizes: Sequence[int]
    fingerprint: str
    counts: npt.NDArray[np.int64]
    exts: Sequence[str]

    @classmethod
    def open(
        cls, url: str, infos: Sequence[ObjectInfo], store: Store, scratch: Scratch
    ) -> PlainTars:
        """Scan the tars, or find the scans that were kept.

        Raises:
            CorruptError: a tar is damaged.
        """
        tars = list(scan_tars(store, infos, scratch))
        return cls(
            url,
            tars,
            [
                info.size if tar.url == info.url else -1
                for tar, info in zip(tars, infos, strict=True)
            ],
            fingerprint_of(tars),
            np.array([tar.num_samples for tar in tars], dtype=np.int64),
            tuple(sorted({ext for tar in tars for ext in tar.exts})),
        )

    @property
    def default_exts(self) -> Sequence[str]:
        """All of them."""
        return self.exts

    @property
    def metadata(self) -> Sequence[str]:
        """None: what the tars hold are members."""
        return ()

    def shard_url(self, shard: int) -> str:
        """URL of the tar, or of its decompressed copy."""
        return self.tars[shard].url

    def extends(self, fingerprint: str) -> bool:
        """See ``ShardSet``."""
        return tars_extend(self.tars, fingerprint)

    def num_bytes(self, shard: int) -> int:
        """See ``ShardSet``."""
        return self.sizes[shard]

    def tar_checksum(self, shard: int) -> int | None:
        """Not known: the scan reads headers, not data."""
        del shard
        return None

    def version(self, shard: int) -> str:
        """See ``ShardSet``."""
        return self.tars[shard].identity

    def layout(self, shard: int, exts: Sequence[str], metadata: Sequence[str]) -> ShardLayout:
        """See ``ShardSet``."""
        table = self.tars[shard].load().table
        present = [ext for ext in exts if ext in table.column_names]
        return table_layout(table, present, metadata, len(exts))

    def groups(self) -> Groups:
        """See ``ShardSet``."""
        return TarGroups(self.tars)


def open_shards(source: str | os.PathLike[str], store: Store, scratch: Scratch) -> ShardSet:
    """Open a packed dataset by its folder, or plain tars by their names.

    Raises:
        NotFoundError: nothing is there.
        ConfigError: it is an index or a folder of files, or no path or URL.
    """
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"a {type(source).__name__} is no data set: give the path or URL of a packed one, or "
            "of tars by a wildcard or braces; Mix takes several data sets as one"
        )
    url = os.fspath(source)
    if url.rstrip("/").endswith(MANIFEST_NAME) or is_packed(url, store):
        return PackedDataset.open(url, store)
    found = identify(store, url)
    if found.kind == "packed":
        return PackedDataset.open(found.root, store)
    if found.kind != "tars":
        raise ConfigError(
            f"{url} is no packed dataset and no tars; pack it first (shardkit pack {url} OUT), or "
            "stream the files themselves with StreamingDataset"
        )
    return PlainTars.open(url, found.files, store, scratch)


def is_packed(url: str, store: Store) -> bool:
    """Whether a folder holds a manifest."""
    try:
        store.stat(f"{url.rstrip('/')}/{MANIFEST_NAME}")
    except (NotFoundError, NotADirectoryError):
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
        offset, size, digest = (numbers(struct.field(i)) for i in range(3))
        proved = struct.field(2).null_count == struct.null_count
        if struct.null_count:
            uneven = True
            absent = flags(struct.is_null())
            offset, size, digest = (np.where(absent, 0, a) for a in (offset, size, digest))
            starts[ext] = np.where(absent, -1, offset).astype(np.int64)
            stops[ext] = np.where(absent, -1, offset + size).astype(np.int64)
        else:
            starts[ext], stops[ext] = offset, offset + size
        if proved:
            sums[ext] = digest.astype(np.uint64)
    return ShardLayout(
        keys=texts(table.column(KEY)),
        starts=starts,
        stops=stops,
        checksums=sums,
        metadata={name: _values(table.column(name)) for name in metadata},
        uneven=uneven,
    )


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as an array whose ``tolist`` gives the Python values."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return texts(column)
    if column.null_count == 0 and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return numbers(column)
    if column.null_count == 0 and pa.types.is_boolean(kind):
        return flags(column)
    return np.fromiter(column.to_pylist(), dtype=object, count=len(column))
