"""The work of an adoption, a block of tars at a time: read, then write offsets and sidecar."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shardkit.errors import ConfigError, NotFoundError
from shardkit.executors import Report
from shardkit.format.adopted import AdoptedRecord, encode_adopted, layout_xxh3, read_adopted
from shardkit.format.manifest import idx_name, sidecar_name
from shardkit.format.sidecar import KEY, check_metadata_names, encode_offsets
from shardkit.format.tar import checksum
from shardkit.index.adopt_metadata import MetadataChoice, kinds_of, metadata_table, types_of
from shardkit.index.adopt_tar import Reading, read_tar
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.urls import is_local

__all__ = ["AdoptTask"]

_FAR_TARS = 16  # of a block, read at once: each waits for one ranged read after another
_NEAR_TARS = 4

Tar = tuple[int, str, ObjectInfo, str]
"""Number, name relative to the folder of all, where it is, identity of what is made of it."""


@dataclass(frozen=True)
class AdoptTask:
    """Adopt a block of tars. Picklable; deterministic; safe to repeat after a kill.

    Attributes:
        store: reads and writes.
        out: folder to write into, without ``/`` at the end.
        tars: to adopt.
        reading: see ``read_tar``.
        metadata: where columns come from.
        types: of the metadata columns; None: those that a tar's own values have.
    """

    store: Store
    out: str
    tars: tuple[Tar, ...]
    reading: Reading
    metadata: MetadataChoice
    types: dict[str, str] | None

    @property
    def num_blocks(self) -> int:
        """Items there are to do."""
        return -(-len(self.tars) // self._per_block)

    def __call__(self, item: int, report: Report) -> list[tuple[int, AdoptedRecord]]:
        """Adopt the tars of a block."""
        block = self.tars[item * self._per_block : (item + 1) * self._per_block]
        found = []
        threads = 1 if self._is_near else _FAR_TARS
        with ThreadPoolExecutor(threads, "shardkit-adopt") as pool:
            for tar, record in zip(block, pool.map(self._adopt, block), strict=True):
                report(record.samples, record.num_bytes)
                found.append((tar[0], record))
        return found

    @property
    def _is_near(self) -> bool:
        return all(is_local(info.url) for _, _, info, _ in self.tars[:1])

    @property
    def _per_block(self) -> int:
        return _NEAR_TARS if self._is_near else _FAR_TARS

    def _adopt(self, tar: Tar) -> AdoptedRecord:
        _, name, info, identity = tar
        with read_tar(self.store, info, self.reading) as found:
            records = self.metadata.records(found, info.url, self.store)
        table = found.scan.table
        kinds = kinds_of(records)
        own = types_of(kinds)
        types = own if self.types is None else {column: self.types[column] for column in own}
        exts = [ext for ext in table.column_names if ext != KEY]
        check_metadata_names(list(types), exts)
        offsets = encode_offsets(found.scan.offsets)
        record = AdoptedRecord(
            name=name,
            samples=table.num_rows,
            num_bytes=found.num_bytes,
            version=info.version,
            layout_xxh3=layout_xxh3(table),
            idx_xxh3=checksum(offsets),
            tar_xxh3=found.tar_xxh3,
            members={ext: len(table) - table.column(ext).null_count for ext in exts},
            kinds=kinds,
            types=types,
            num_without_metadata=sum(record is None for record in records),
            has_end=found.scan.ended,
        )
        columns = metadata_table(records, types)
        sidecar, record = encode_adopted(table, columns, record, identity)
        self._write_offsets(name, offsets)
        self.store.put(f"{self.out}/{sidecar_name(name, adopted=True)}", sidecar)
        return record

    def _write_offsets(self, name: str, offsets: bytes) -> None:
        """Write the ``.idx``, unless somebody else's (Energon's) is there and says the same.

        Raises:
            ConfigError: it says otherwise.
        """
        url = f"{self.out}/{idx_name(name)}"
        try:
            there = self.store.get(url)
        except NotFoundError:
            self.store.put(url, offsets)
            return
        if there == offsets:
            return
        try:
            sidecar = self.store.get(f"{self.out}/{sidecar_name(name, adopted=True)}")
        except NotFoundError:
            sidecar = b""
        if read_adopted(sidecar) is None:
            raise ConfigError(
                f"{url} is there, and has other offsets than {name} has now: the index of another "
                "tar, or of this one before it changed? Remove it, or name another OUT"
            )
        self.store.put(url, offsets)
