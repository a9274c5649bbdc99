"""Groups of packed datasets and of plain tars: a group a tar, members as ranges in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from shardkit.errors import IndexDataError
from shardkit.executors import Executor, Report, nothing
from shardkit.format.adopted import layout_xxh3
from shardkit.format.manifest import extends, fingerprint
from shardkit.format.sidecar import KEY, MEMBER_TYPE, metadata_names
from shardkit.index.columns import URL_COLUMN
from shardkit.index.kept import Kept
from shardkit.index.parquet import ParquetFile, ParquetGroups, ParquetLayout, read_schema
from shardkit.index.places import ShardPlaces
from shardkit.index.scratch import Scratch
from shardkit.index.shared_reads import SharedReads
from shardkit.index.streams import codec_of, open_stream
from shardkit.index.tar_bytes import open_tar_bytes
from shardkit.index.tars import TarScan, scan_tar
from shardkit.storage.protocol import ObjectInfo, Store

__all__ = ["ScannedTar", "TarGroups", "fingerprint_of", "open_packed", "open_tars", "scan_tars"]

logger = logging.getLogger(__name__)

_THREADS = 16  # far tars scanned at once: each waits for one ranged read after another
_KEPT_TABLES = 256  # views of mapped scans, ~1 KB each
_START = "__start__"
_END, _ENDED, _PACKED, _IDENTITY = b"end", b"ended", b"packed", b"identity"
_VERSION = "2"  # of what is kept in scratch


@dataclass(frozen=True, slots=True)
class ScannedTar:
    """A tar and where its scan is kept.

    Attributes:
        url: that ranges are to be read from: the tar's, or of its decompressed copy.
        path: of the kept scan, an Arrow file.
        num_samples: in it.
        exts: of its members.
        identity: checksum of keys, places and sizes, in hexadecimal.
    """

    url: str
    path: str
    num_samples: int
    exts: tuple[str, ...]
    identity: str

    def load(self) -> TarScan:
        """Return the whole scan, mapped from disk."""
        try:
            with pa.memory_map(self.path) as mapped:
                table = pa.ipc.open_file(mapped).read_all()
        except FileNotFoundError as error:
            raise IndexDataError(
                f"{self.path}, where the scan of {self.url} was kept, is gone; open the index "
                "again (and give scratch= a folder that stays and that every node sees)"
            ) from error
        notes = table.schema.metadata
        offsets = np.append(table.column(_START).to_numpy(), int(notes[_END])).astype(np.int64)
        table = table.drop_columns([_START]).replace_schema_metadata(None)
        return TarScan(table, offsets, notes[_ENDED] == b"1", 0)


class TarGroups:
    """Scanned tars. See ``Groups``."""

    in_memory = True

    def __init__(self, tars: Sequence[ScannedTar]) -> None:
        self.tars = tars
        self.counts: npt.NDArray[np.int64] = np.array(
            [tar.num_samples for tar in tars], dtype=np.int64
        )
        exts = sorted({ext for tar in tars for ext in tar.exts})
        self.schema = pa.schema(
            [(KEY, pa.string()), *((ext, MEMBER_TYPE) for ext in exts), (URL_COLUMN, _URL_TYPE)]
        )
        self.identity = fingerprint_of(tars)
        self._tables: Kept[pa.Table] = Kept(_KEPT_TABLES)

    def __reduce__(self) -> tuple[type[TarGroups], tuple[Sequence[ScannedTar]]]:
        return TarGroups, (self.tars,)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Map the tar's scan."""
        table = self._tables.get(group, lambda: self.tars[group].load().table)
        return _with_url(table, self.tars[group].url, self.schema, columns)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Slice the first scan that has samples."""
        for group in np.flatnonzero(self.counts)[:1].tolist():
            return self.read(group, columns).slice(0, num_rows)
        return self.schema.empty_table().select(list(columns))

    def file(self, group: int) -> str:
        """URL of the group's tar."""
        return self.tars[group].url


class PackedGroups:
    """The sidecars of a packed dataset. See ``Groups``."""

    in_memory = False

    def __init__(self, sidecars: ParquetGroups, places: ShardPlaces, schema: pa.Schema) -> None:
        self.schema = schema
        self.counts = sidecars.counts
        self.identity = sidecars.identity
        self._sidecars = sidecars
        self._places = places

    def __reduce__(self) -> tuple[type[PackedGroups], tuple[Any, ...]]:
        return PackedGroups, (self._sidecars, self._places, self.schema)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read the shard's sidecar; whoever wants the tar's URL will read from the tar."""
        if URL_COLUMN in columns:
            self.check_unchanged(group)
        table = self._sidecars.read(group, [name for name in columns if name != URL_COLUMN])
        return _with_url(table, self.file(group), self.schema, columns)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Read the first sidecar's first rows."""
        table = self._sidecars.head([name for name in columns if name != URL_COLUMN], num_rows)
        url = self.file(0) if len(self.counts) else ""
        return _with_url(table, url, self.schema, columns)

    def file(self, group: int) -> str:
        """URL of the group's tar."""
        return self._places.tar(group)

    def check_unchanged(self, group: int) -> None:
        """See ``ShardPlaces``."""
        self._places.check_unchanged(group)


class _Sidecars(Sequence[ParquetFile]):
    """The sidecar of each shard; made as they are asked for, since there may be a million."""

    def __init__(self, places: ShardPlaces) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places.shards)

    def __getitem__(self, shard: Any) -> Any:
        return ParquetFile(self._places.sidecar(shard), -1, "")


_URL_TYPE = pa.dictionary(pa.int32(), pa.string())


def _with_url(table: pa.Table, url: str, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    found = []
    for name in columns:
        if name == URL_COLUMN:
            zeros = pa.array(np.zeros(table.num_rows, dtype=np.int32))
            found.append(pa.DictionaryArray.from_arrays(zeros, pa.array([url])))
        elif name in table.column_names:
            found.append(table.column(name))
        else:
            found.append(pa.nulls(table.num_rows, schema.field(name).type))
    return pa.Table.from_arrays(found, names=list(columns))


def open_packed(places: ShardPlaces) -> PackedGroups:
    """The samples of a packed dataset; the first sidecar's footer tells the metadata's types."""
    manifest, shards = places.manifest, places.shards
    sidecars = _Sidecars(places)
    own = read_schema(places.store, sidecars[0]) if len(sidecars) else pa.schema([])
    exts = [(ext, MEMBER_TYPE) for ext in sorted(manifest.members)]
    if manifest.adopted is None:
        metadata = [own.field(name).remove_metadata() for name in metadata_names(own)]
    else:  # the fields that samples happen to have may differ from tar to tar
        metadata = [pa.field(n, pa.type_for_alias(t)) for n, t in manifest.metadata.items()]
    schema = pa.schema([(KEY, pa.string()), *exts, *metadata])
    groups = np.full((len(sidecars), 3), -1, dtype=np.int32)
    groups[:, 0] = np.arange(len(sidecars))
    groups[:, 1] = 0
    layout = ParquetLayout(sidecars, schema, shards.samples, groups, manifest.fingerprint)
    with_url = pa.schema([*schema, (URL_COLUMN, _URL_TYPE)])
    return PackedGroups(ParquetGroups(SharedReads(places.store), layout), places, with_url)


def fingerprint_of(tars: Sequence[ScannedTar]) -> str:
    """Identity of the tars' samples: what the manifest says when they are adopted."""
    return fingerprint(_identities(tars))


def tars_extend(tars: Sequence[ScannedTar], earlier: str) -> bool:
    """Whether ``earlier`` is the fingerprint of the first of these tars, and others came later."""
    return extends(_identities(tars), earlier)


def _identities(tars: Sequence[ScannedTar]) -> npt.NDArray[np.uint64]:
    return np.array([int(tar.identity, 16) for tar in tars], dtype=np.uint64)


def open_tars(
    store: Store,
    infos: Iterable[ObjectInfo],
    scratch: Scratch,
    *,
    executor: Executor | None = None,
) -> TarGroups:
    """Scan what has not been scanned before, and return all samples of all tars."""
    return TarGroups(list(scan_tars(store, infos, scratch, executor=executor)))


def scan_tars(
    store: Store,
    infos: Iterable[ObjectInfo],
    scratch: Scratch,
    *,
    executor: Executor | None = None,
    report: Report = nothing,
) -> Iterator[ScannedTar]:
    """Scan tars in parallel; yield them in order.

    A scan is kept under the tar's URL, size and version, so that it is made once a machine, and a
    scan that was interrupted goes on with the tars that are left.

    Args:
        store: reads the tars.
        infos: of the tars.
        scratch: keeps the scans, and decompressed copies of ``.tar.gz``.
        executor: where to scan; by default threads, which suit far tars. Many local tars scan on
            all cores in a ``LocalExecutor``; on other machines, ``scratch`` must be theirs too.
        report: called with the samples and bytes of every tar.

    Raises:
        CorruptError: see ``scan_tar``.
    """
    task = _ScanTask(store, scratch, tuple(infos))
    numbers = range(len(task.infos))
    if executor is not None:
        scanned = dict(executor.run(task, numbers, report))
        yield from (scanned[number] for number in numbers)
        return
    with ThreadPoolExecutor(_THREADS, "shardkit-scan") as pool:
        yield from (tar for _, tar in pool.map(lambda number: task(number, report), numbers))


@dataclass(frozen=True)
class _ScanTask:
    """Scan one tar, unless its scan is kept already. Picklable."""

    store: Store
    scratch: Scratch
    infos: tuple[ObjectInfo, ...]

    def __call__(self, item: int, report: Report) -> tuple[int, ScannedTar]:
        scanned = self._scanned(self.infos[item])
        report(scanned.num_samples, self.infos[item].size)
        return item, scanned

    def _scanned(self, info: ObjectInfo) -> ScannedTar:
        name = xxh3_128_hexdigest(repr((_VERSION, info.url, info.size, info.version)).encode())
        path = self.scratch.keep(f"{name}.scan", lambda part: self._scan(info, name, part))
        with pa.memory_map(path) as mapped:
            reader = pa.ipc.open_file(mapped)
            schema = reader.schema
            rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        exts = tuple(name for name in schema.names if name not in (KEY, _START))
        url = self._copy(info, name) if schema.metadata[_PACKED] == b"1" else info.url
        return ScannedTar(url, path, rows, exts, schema.metadata[_IDENTITY].decode())

    def _copy(self, info: ObjectInfo, name: str) -> str:
        """A decompressed copy in scratch: ranges need plain bytes."""
        return self.scratch.keep(f"{name}.tar", lambda part: self._decompress(info.url, part))

    def _decompress(self, url: str, part: str) -> None:
        logger.info("%s is compressed: it is unpacked to %s, once", url, self.scratch.folder)
        with open_stream(self.store, url) as stream, open(part, "wb") as file:
            while data := stream.read(4 << 20):
                file.write(data)

    def _scan(self, info: ObjectInfo, name: str, part: str) -> None:
        head = self.store.get_range(info.url, 0, min(8, info.size)) if info.size > 0 else b""
        packed = codec_of(head) is not None
        plain = replace(info, url=self._copy(info, name)) if packed else info
        with open_tar_bytes(self.store, plain) as (read, size, jump_bytes):
            scan = scan_tar(read, size, info.url, jump_bytes=jump_bytes)
        identity = f"{layout_xxh3(scan.table):016x}"
        table = scan.table.append_column(_START, pa.array(scan.offsets[:-1]))
        table = table.replace_schema_metadata(
            {
                _END: str(scan.offsets[-1]),
                _ENDED: str(int(scan.ended)),
                _PACKED: str(int(packed)),
                _IDENTITY: identity,
            }
        )
        with pa.ipc.new_file(part, table.schema) as writer:
            writer.write_table(table.combine_chunks())
