"""``pack``: index → plan → shards → manifest, continuing where an earlier run was stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from shardkit.errors import ConfigError
from shardkit.executors import WHOLE, Executor, Part, Report, nothing
from shardkit.format.manifest import (
    FAILED_NAME,
    MANIFEST_NAME,
    SHARDS_NAME,
    Manifest,
    ShardTable,
    encode_failures,
    fingerprint,
    sidecar_name,
)
from shardkit.format.sidecar import ShardRecord
from shardkit.format.tar import checksum
from shardkit.index.index import Index
from shardkit.pack.output import PLAN_NAME, Output, check_writable
from shardkit.pack.plan import PackOptions, Plan, make_plan
from shardkit.pack.write import ShardTask, finished_shard, shard_task

__all__ = ["DatasetRun", "PackSummary", "pack_index", "prepared", "publish_manifest"]

_READERS = 16  # sidecars read at a time when a pack goes on: 10,000 of them in seconds from afar


@dataclass(frozen=True)
class PackSummary:
    """What a pack did, for people and programs.

    Numbers are the dataset's; a part that ends before others counts its own shards.
    """

    url: str
    num_samples: int
    num_shards: int
    num_bytes: int
    num_failed: int
    num_resumed: int
    """Shards that an earlier run had finished."""
    num_missing: int
    """Shards that other parts have yet to finish: the dataset is published when there are none."""
    fingerprint: str
    """Of the published dataset, else empty."""
    brace_url: str
    """All shards in one URL, for webdataset itself."""
    seconds: float


def pack_index(
    index: Index,
    output: Output,
    options: PackOptions,
    *,
    executor: Executor,
    part: Part = WHOLE,
    report: Report = nothing,
) -> PackSummary:
    """Pack the rows of an index into shards and publish the manifest when all are there.

    Parts need not know of each other. The first one saves the plan and the others take it; one
    that finds, at its end, that every shard is there publishes the dataset. Two that both find it
    publish the same bytes.
    """
    began = time.monotonic()
    check_writable(output)
    with executor.ready(ShardTask):
        run = DatasetRun.begin(index, output, options)
        run.resume(part.items(run.plan.num_shards), report)
        if run.missing:
            try:
                for record in executor.run(run.task(), run.missing, report):
                    run.add(record)
            finally:
                output.sweep()  # of workers that were ended in the middle of a shard
        return run.end(began)


@dataclass
class DatasetRun:
    """A dataset while it is made: its plan, and which of its shards are there."""

    index: Index
    output: Output
    plan: Plan
    manifest: Manifest | None
    """Where it was published before."""
    missing: list[int] = field(default_factory=list)
    """Shards for this run to make."""
    num_resumed: int = 0
    _records: dict[str, ShardRecord] = field(default_factory=dict)

    @classmethod
    def begin(cls, index: Index, output: Output, options: PackOptions) -> DatasetRun:
        """Find the plan of an earlier run or of another part, or make and save it.

        Raises:
            ConfigError: the folder holds something else, which is left alone.
        """
        return cls(index, output, *prepared(index, output, options))

    def resume(self, own: Sequence[int], report: Report) -> None:
        """See which of these shards are there, and report them as done."""
        if self.manifest is not None:
            self.num_resumed = self.plan.num_shards
            return
        self._records = _finished(self.output, self.plan, own)
        for record in self._records.values():
            report(record.samples, record.num_bytes)
        self.num_resumed = len(self._records)
        self.missing = [n for n in own if self.plan.shard_name(n) not in self._records]

    def task(self) -> ShardTask:
        """What makes the shards."""
        return shard_task(self.index, self.plan, self.output)

    def add(self, record: ShardRecord) -> None:
        """Note a shard that was made."""
        self._records[record.name] = record

    def end(self, began: float) -> PackSummary:
        """Publish the dataset if all its shards are there."""
        output, plan = self.output, self.plan
        if self.manifest is None:
            num_missing = _add_others(output, plan, self._records)
            records = [self._records[name] for name in sorted(self._records)]
            if num_missing:
                return _part_summary(output, plan, records, self.num_resumed, num_missing, began)
            if any(record.failures for record in records):  # perhaps only another part skips
                plan = plan.with_errors("skip")
            self.manifest = publish_manifest(output, plan, records, self.index.metadata_schema)
        return _summary(output, plan, self.manifest, self.num_resumed, began)


def publish_manifest(
    output: Output, plan: Plan, records: Sequence[ShardRecord], metadata: pa.Schema
) -> Manifest:
    """Write shard table and manifest, the manifest last, and clear the work folder away."""
    table = ShardTable.from_records(records)
    shards = table.encode()
    failures = [failure for record in records for failure in record.failures]
    members: Counter[str] = Counter()
    for record in records:
        members.update(record.members)
    manifest = Manifest(
        num_samples=int(table.samples.sum()),
        num_shards=len(table),
        num_bytes=int(table.num_bytes.sum()),
        num_failed=len(failures),
        fingerprint=fingerprint(table.tar_xxh3),
        shards_xxh3=checksum(shards),
        members=dict(sorted(members.items())),
        metadata={field.name: str(field.type) for field in metadata},
        metadata_ext=plan.metadata_ext,
        plan=plan.identity,
        packed=plan.for_manifest(),
    )
    if failures:
        output.write(FAILED_NAME, encode_failures(failures))
    output.write(SHARDS_NAME, shards)
    output.write(MANIFEST_NAME, manifest.encode())
    output.finish()
    return manifest


def prepared(index: Index, output: Output, options: PackOptions) -> tuple[Plan, Manifest | None]:
    """The plan to follow, saved; and the manifest if it was followed to its end before.

    Raises:
        ConfigError: the folder holds something else, which is left alone.
    """
    begun = _begun(index, output, options)
    if begun is None and (strangers := sorted(output.files())):
        begun = _begun(index, output, options)  # perhaps another part has just begun
        if begun is None:
            raise ConfigError(
                f"{output.url} is not empty (it holds {_named(strangers)}) and no pack was begun "
                "there; name a new folder"
            )
    if begun is not None:
        return begun
    index.check_keys()
    plan = make_plan(index, options, output.store)
    saved = output.write_first(PLAN_NAME, plan.encode())
    return _taken_up(saved, index, output, options), None


def _begun(
    index: Index, output: Output, options: PackOptions
) -> tuple[Plan, Manifest | None] | None:
    """What an earlier run, or another part, has saved; None where no pack was begun.

    The plan goes when the manifest is there: looking for it first, one of them is always seen.
    """
    saved = output.read(PLAN_NAME)
    published = output.read(MANIFEST_NAME)
    if published is not None:
        manifest = Manifest.decode(published, output.at(MANIFEST_NAME))
        shards = output.store.get(output.at(SHARDS_NAME))
        plan = Plan.from_manifest(manifest, manifest.check_shards(shards, output.at(SHARDS_NAME)))
        _check_same(plan, index, options, f"{output.url} already holds a packed dataset")
        output.finish()
        return plan, manifest
    if saved is None:
        return None
    return _taken_up(saved, index, output, options), None


def _taken_up(saved: bytes, index: Index, output: Output, options: PackOptions) -> Plan:
    """The saved plan, to go on with; from now on rows are skipped, where only that has changed."""
    plan = Plan.decode(saved, output.at(PLAN_NAME))
    _check_same(plan, index, options, f"{output.url} holds an unfinished pack", "delete it, or ")
    if plan.options != options:
        plan = plan.with_errors(options.on_error)
        output.write(PLAN_NAME, plan.encode())
    output.sweep()
    return plan


def _check_same(
    plan: Plan, index: Index, options: PackOptions, what: str, remedy: str = ""
) -> None:
    """Refuse another pack; not one that skips what has ended this one: its shards are the same."""
    if plan.index != index.fingerprint:
        raise ConfigError(
            f"{what} of another index (or this one, its columns or its filter have changed since); "
            f"{remedy}name a new folder"
        )
    before, now = asdict(plan.options), asdict(options)
    if (before["on_error"], now["on_error"]) == ("raise", "skip"):
        before["on_error"] = "skip"
    for name, value in now.items():
        if value != before[name]:
            raise ConfigError(
                f"{what} with other options ({name} was {before[name]!r} and is {value!r} now); "
                f"give the same ones, {remedy or 'or '}name a new folder"
            )


def _named(files: Sequence[str]) -> str:
    return repr(files[0]) if len(files) == 1 else f"{files[0]!r} and {len(files) - 1:,} more"


def _finished(output: Output, plan: Plan, shards: Iterable[int]) -> dict[str, ShardRecord]:
    """Those of these shards that are published whole, by name."""
    sizes = output.files()
    with ThreadPoolExecutor(_READERS, "shardkit-resume") as pool:
        found = pool.map(lambda shard: finished_shard(output, plan, shard, sizes), shards)
        return {record.name: record for record in found if record is not None}


def _add_others(output: Output, plan: Plan, records: dict[str, ShardRecord]) -> int:
    """Add the shards of other parts if all are there; returns how many are missing.

    While a name is missing no sidecar is read, so that of many parts only the last reads them all.
    """
    others = [n for n in range(plan.num_shards) if plan.shard_name(n) not in records]
    if not others:
        return 0
    names = output.files()
    num_missing = sum(sidecar_name(plan.shard_name(shard)) not in names for shard in others)
    if num_missing:
        return num_missing
    records.update(_finished(output, plan, others))
    return plan.num_shards - len(records)


def _part_summary(
    output: Output,
    plan: Plan,
    records: Sequence[ShardRecord],
    num_resumed: int,
    num_missing: int,
    began: float,
) -> PackSummary:
    """What a part did that ends while shards of others are missing."""
    return PackSummary(
        url=output.url,
        num_samples=sum(record.samples for record in records),
        num_shards=len(records),
        num_bytes=sum(record.num_bytes for record in records),
        num_failed=sum(len(record.failures) for record in records),
        num_resumed=num_resumed,
        num_missing=num_missing,
        fingerprint="",
        brace_url=output.at(plan.brace_url),
        seconds=time.monotonic() - began,
    )


def _summary(
    output: Output, plan: Plan, manifest: Manifest, num_resumed: int, began: float
) -> PackSummary:
    """What is there once the dataset is published."""
    return PackSummary(
        url=output.url,
        num_samples=manifest.num_samples,
        num_shards=manifest.num_shards,
        num_bytes=manifest.num_bytes,
        num_failed=manifest.num_failed,
        num_resumed=num_resumed,
        num_missing=0,
        fingerprint=manifest.fingerprint,
        brace_url=output.at(plan.brace_url),
        seconds=time.monotonic() - began,
    )
