"""Adopt tars that others wrote: sidecars, offsets and a manifest, without rewriting a byte of them.

What a scan of plain tars knows is written down beside them or in a folder of its own, in the form
in which packed datasets are read. A sidecar is written last of a tar's files and says what it was
made from, so that an adoption that was stopped goes on with the tars that are left.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from shardkit.errors import ConfigError, NotFoundError
from shardkit.executors import WHOLE, Executor, LocalExecutor, Part, Report, nothing
from shardkit.format.adopted import AdoptedRecord, read_adopted, table_of
from shardkit.format.manifest import (
    MANIFEST_NAME,
    SHARDS_NAME,
    Adopted,
    Manifest,
    idx_name,
    sidecar_name,
)
from shardkit.format.sidecar import KEY
from shardkit.format.tar import checksum
from shardkit.index.adopt_metadata import MetadataChoice, merge_kinds, types_of
from shardkit.index.adopt_tar import Reading
from shardkit.index.adopt_task import AdoptTask
from shardkit.index.duplicates import KeyBatches, find_repeated
from shardkit.index.names import is_tar
from shardkit.index.places import ShardPlaces
from shardkit.index.scratch import Scratch
from shardkit.index.sources import identify
from shardkit.index.tar_groups import open_packed
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.store import open_store
from shardkit.storage.urls import given_url, is_local, local_path

__all__ = ["AdoptOptions", "AdoptSummary", "adopt", "tars_of"]

_VERSION = "1"  # of what sidecars of adopted tars hold
_THREADS = 16  # sidecars read at a time: ~10 ms each from afar
_TARS_AT_ONCE = 64  # whose keys are held at a time when all keys are compared


@dataclass(frozen=True)
class AdoptOptions:
    """How tars are adopted.

    Attributes:
        reading: ``"headers"`` alone, the ``"whole"`` tars, so that every member has a checksum, or
            ``"auto"``: whole where reading headers comes to reading most of the tar anyway.
        metadata: where columns come from.
    """

    reading: Reading = "auto"
    metadata: MetadataChoice = field(default_factory=MetadataChoice)

    def identity(self, name: str, info: ObjectInfo) -> str:
        """Of what a tar's sidecar is made from."""
        return xxh3_64_hexdigest(
            repr((_VERSION, name, info.size, info.version, self.reading, self.metadata)).encode()
        )


@dataclass(frozen=True)
class AdoptSummary:
    """What an adoption did."""

    url: str
    num_shards: int
    num_samples: int
    num_bytes: int
    num_proved: int
    """Tars that were read whole, so that every member has a checksum."""
    num_resumed: int
    """Tars whose sidecars were there from an earlier run."""
    num_without_metadata: int
    """Samples whose metadata could not be read."""
    without_end: tuple[str, ...]
    """Names of tars without an end marker, which may have been cut between members."""
    repeated: str | None
    """What is said of a key that repeats, and where; None if all are unique."""
    fingerprint: str
    seconds: float
    num_missing: int = 0
    """Tars that other parts have yet to finish. While there are some, nothing is published, all
    numbers are of this part's tars, and the fingerprint is empty."""


def adopt(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    options: AdoptOptions | None = None,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    store: Store | None = None,
    scratch: str | None = None,
    report: Report = nothing,
) -> AdoptSummary:
    """Make a dataset of tars that exist; read it with ``ShardDataset(summary.url)``.

    Parts may run at the same time, on machines that see the same ``out``; the last one to end
    publishes the dataset. If one was lost, a run without ``part`` does the rest.

    Args:
        source: tars by brace URL, wildcard, list or folder; local, or anywhere that tells sizes.
        out: folder for sidecars and manifest; by default the tars' own.
        options: what is read of the tars, and where columns come from.
        executor: runs the scans; default one process per core.
        part: ``(i, n)`` scans only every n-th tar from tar i on, ``i`` from 0 to ``n - 1``.
        storage_options: see ``open_store``.
        store: to read and write through, in place of ``storage_options``.
        scratch: local folder where keys are compared if they don't fit in memory.
        report: called with the samples and bytes of every tar.

    Raises:
        ConfigError: the source is no tars; ``out`` holds something else.
        CorruptError: a tar is damaged.
        IndexDataError: a tar is compressed, or its metadata can't be columns.
    """
    began = time.monotonic()
    store, executor = store or open_store(storage_options), executor or LocalExecutor()
    infos = tars_of(os.fspath(source), store)
    job = _Job.of(infos, None if out is None else os.fspath(out), store, options or AdoptOptions())
    own = (WHOLE if part is None else Part(*part)).items(len(infos))
    with executor.ready():
        records = job.finished(own)
        num_resumed = len(records)
        todo = [number for number in own if number not in records]
        if todo:
            store.delete(f"{job.out}/{MANIFEST_NAME}")
        for record in records.values():
            report(record.samples, record.num_bytes)
        records.update(job.run(executor, todo, None, report))
        num_missing = job.num_absent() if len(own) < len(infos) else 0
        if not num_missing and len(own) < len(infos):  # of many parts only the last reads them all
            records.update(job.finished([n for n in range(len(infos)) if n not in records]))
            num_missing = len(infos) - len(records)  # their tars have changed since
        if num_missing:
            return _part_summary(job, [records[n] for n in own], num_resumed, num_missing, began)
        types = types_of(merge_kinds(records[n].kinds for n in sorted(records)))
        others = [n for n, r in records.items() if any(types[c] != r.types[c] for c in r.types)]
        if others:  # tars of which each alone would have other types than all together
            store.delete(f"{job.out}/{MANIFEST_NAME}")
            records.update(job.run(executor, sorted(others), types, nothing))
    in_order = [records[number] for number in range(len(infos))]
    return _published(job, in_order, types, Scratch(scratch), num_resumed, began)


def tars_of(source: str, store: Store) -> list[ObjectInfo]:
    """The tars that a source means; of a folder that was adopted before, those in it now.

    Raises:
        ConfigError: it is something else.
    """
    found = identify(store, source)
    files = list(found.files)
    if found.kind == "packed":
        adopted = ShardPlaces.open(found.root, store).manifest.adopted
        if adopted is None:
            raise ConfigError(f"{source} is a packed dataset: it has all that adopting would make")
        files = [info for info in store.list(adopted.tars or found.root) if is_tar(info.url)]
    elif found.kind != "tars":
        raise ConfigError(
            f"{source} is no tars, so there is nothing to adopt; name an OUT that ends in .parquet "
            "to write an index down, or pack the files (shardkit pack)"
        )
    unknown = [info.url for info in files if info.size < 0]
    if unknown:
        raise ConfigError(f"{unknown[0]}: its server does not tell its size; copy the tars first")
    return files


@dataclass(frozen=True)
class _Job:
    """What is adopted, and where to.

    Attributes:
        store: reads and writes.
        tars: folder of the tars, without ``/`` at the end.
        out: folder of what is written, likewise.
        infos: of the tars.
        names: theirs, relative to ``tars``.
        options: see ``AdoptOptions``.
    """

    store: Store
    tars: str
    out: str
    infos: tuple[ObjectInfo, ...]
    names: tuple[str, ...]
    options: AdoptOptions

    @classmethod
    def of(
        cls, infos: Sequence[ObjectInfo], out: str | None, store: Store, options: AdoptOptions
    ) -> _Job:
        absolute = [replace(info, url=_absolute(info.url)) for info in infos]
        tars = _common_folder([info.url for info in absolute])
        names = tuple(info.url.removeprefix(f"{tars}/") for info in absolute)
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ConfigError(f"{tars}/{repeated[0]} is named twice; name each tar once")
        folder = tars if out is None else _absolute(given_url(out)).rstrip("/")
        return cls(store, tars, folder, tuple(absolute), names, options)

    def identity(self, number: int) -> str:
        """What the sidecar of a tar must say that it was made from."""
        return self.options.identity(self.names[number], self.infos[number])

    def finished(self, numbers: Sequence[int]) -> dict[int, AdoptedRecord]:
        """Those of these tars whose sidecars are there and true, by number.

        Raises:
            ConfigError: the folder holds files of others under the names of ours.
        """
        listed = self._listed()
        if MANIFEST_NAME in listed:
            url = f"{self.out}/{MANIFEST_NAME}"
            found = _get(self.store, url)  # another part may just have published or removed it
            if found is not None and Manifest.decode(found, url).adopted is None:
                raise ConfigError(f"{self.out} already holds a packed dataset; name another folder")
        there = [n for n in numbers if _sidecar(self.names[n]) in listed]
        with ThreadPoolExecutor(_THREADS, "shardkit-resume") as pool:
            records = list(zip(there, pool.map(self._record, there), strict=True))
        return {
            number: record
            for number, record in records
            if record is not None and listed.get(idx_name(record.name)) == 8 * (record.samples + 1)
        }

    def num_absent(self) -> int:
        """Tars whose sidecars are not there, be they true or not."""
        listed = self._listed()
        return sum(_sidecar(name) not in listed for name in self.names)

    def _listed(self) -> dict[str, int]:
        """Sizes of the files that are there, by name."""
        return {
            info.url.removeprefix(f"{self.out}/"): info.size
            for info in _listed(self.store, f"{self.out}/")
        }

    def _record(self, number: int) -> AdoptedRecord | None:
        """What a sidecar says, if it is of this very tar, read in this way."""
        url = f"{self.out}/{_sidecar(self.names[number])}"
        found = read_adopted(self.store.get(url))
        if found is None:
            raise ConfigError(
                f"{url} is there, and no sidecar of ours: name another OUT for what adopting writes"
            )
        record, plan = found
        return record if plan == self.identity(number) else None

    def run(
        self,
        executor: Executor,
        numbers: Sequence[int],
        types: Mapping[str, str] | None,
        report: Report,
    ) -> Iterator[tuple[int, AdoptedRecord]]:
        """Adopt these tars, a block at a time; with these types of metadata, or their own."""
        task = AdoptTask(
            self.store,
            self.out,
            tuple((n, self.names[n], self.infos[n], self.identity(n)) for n in numbers),
            self.options.reading,
            self.options.metadata,
            None if types is None else dict(types),
        )
        for block in executor.run(task, range(task.num_blocks), report):
            yield from block


def _part_summary(
    job: _Job,
    records: Sequence[AdoptedRecord],
    num_resumed: int,
    num_missing: int,
    began: float,
) -> AdoptSummary:
    """What a part did that ends while tars of others are missing."""
    return AdoptSummary(
        url=job.out,
        num_shards=len(records),
        num_samples=sum(record.samples for record in records),
        num_bytes=sum(record.num_bytes for record in records),
        num_proved=sum(record.tar_xxh3 is not None for record in records),
        num_resumed=num_resumed,
        num_without_metadata=sum(record.num_without_metadata for record in records),
        without_end=tuple(record.name for record in records if not record.has_end),
        repeated=None,
        fingerprint="",
        seconds=time.monotonic() - began,
        num_missing=num_missing,
    )


def _published(
    job: _Job,
    records: Sequence[AdoptedRecord],
    types: Mapping[str, str],
    scratch: Scratch,
    num_resumed: int,
    began: float,
) -> AdoptSummary:
    """Write shard table and manifest, the manifest last."""
    table = table_of(records)
    shards = table.encode()
    members: Counter[str] = Counter()
    for record in records:
        members.update(record.members)
    manifest = Manifest(
        num_samples=int(table.samples.sum()),
        num_shards=len(table),
        num_bytes=int(table.num_bytes.sum()),
        fingerprint=table.fingerprint,
        shards_xxh3=checksum(shards),
        members=dict(sorted(members.items())),
        metadata=dict(types),
        metadata_ext=None,
        adopted=Adopted("" if job.tars == job.out else f"{job.tars}/"),
    )
    places = ShardPlaces(job.out, manifest, table, job.store)
    repeated = _repeated(places, scratch)
    manifest = replace(manifest, adopted=replace(_adopted(manifest), unique_keys=repeated is None))
    url = f"{job.out}/{MANIFEST_NAME}"
    if _get(job.store, url) != manifest.encode():
        job.store.delete(url)
        job.store.put(f"{job.out}/{SHARDS_NAME}", shards)
        job.store.put(url, manifest.encode())
    return AdoptSummary(
        url=job.out,
        num_shards=len(table),
        num_samples=manifest.num_samples,
        num_bytes=manifest.num_bytes,
        num_proved=sum(record.tar_xxh3 is not None for record in records),
        num_resumed=num_resumed,
        num_without_metadata=sum(record.num_without_metadata for record in records),
        without_end=tuple(record.name for record in records if not record.has_end),
        repeated=repeated,
        fingerprint=manifest.fingerprint,
        seconds=time.monotonic() - began,
    )


def _repeated(places: ShardPlaces, scratch: Scratch) -> str | None:
    """Words for a key that repeats, and for where."""
    groups = open_packed(places)
    starts = np.cumsum(groups.counts) - groups.counts
    ends = starts + groups.counts

    def batches() -> KeyBatches:
        with ThreadPoolExecutor(_THREADS, "shardkit-keys") as pool:
            for first in range(0, len(ends), _TARS_AT_ONCE):
                numbers = range(first, min(first + _TARS_AT_ONCE, len(ends)))
                found = pool.map(lambda number: groups.read(number, [KEY]).column(KEY), numbers)
                for number, keys in zip(numbers, found, strict=True):
                    yield np.arange(starts[number], ends[number]), keys

    def where(row: int) -> str:
        shard = int(np.searchsorted(ends, row, side="right"))
        return f"sample {row - int(starts[shard]):,} of {places.tar(shard)}"

    found = find_repeated(batches, where, scratch, KEY)
    if found is None:
        return None
    key, first, second = found
    return f"the key {key!r} repeats: {where(first)} and {where(second)}"


def _adopted(manifest: Manifest) -> Adopted:
    return manifest.adopted or Adopted()


def _listed(store: Store, folder: str) -> Iterator[ObjectInfo]:
    try:
        yield from store.list(folder)
    except NotFoundError:
        return


def _get(store: Store, url: str) -> bytes | None:
    try:
        return store.get(url)
    except NotFoundError:
        return None


def _sidecar(name: str) -> str:
    return sidecar_name(name, adopted=True)


def _absolute(url: str) -> str:
    return os.path.abspath(local_path(url)) if is_local(url) else url


def _common_folder(urls: Sequence[str]) -> str:
    """The deepest folder that all are below.

    Raises:
        ConfigError: there is none.
    """
    folders = [url[: url.rindex("/") + 1] for url in urls]
    prefix = os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071 - cut at a slash
    bucket = prefix.partition("://")[2] if "://" in prefix else prefix
    if not bucket:
        raise ConfigError(
            f"{urls[0]} and {urls[-1]} have no folder in common: adopt the tars of each by itself"
        )
    return prefix
