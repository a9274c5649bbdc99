"""Writing one shard of a plan: rows in; tar, ``.idx`` and sidecar out, published in that order.

Members are fetched ahead and concurrently, written in the order of the rows, and never held longer
than the tar's write buffer; one larger than ``LARGE`` is streamed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import ConfigError, CorruptError, StoreError
from shardkit.format.keys import fit_key, tar_name
from shardkit.format.manifest import idx_name, sidecar_name
from shardkit.format.metadata import json_rows
from shardkit.format.sidecar import (
    Failure,
    MemberColumns,
    ShardRecord,
    check_metadata_names,
    encode_offsets,
    encode_sidecar,
    sidecar_record,
)
from shardkit.format.tar import checksum
from shardkit.index.index import Index
from shardkit.index.rows import Rows
from shardkit.pack.executors import Report
from shardkit.pack.output import Output
from shardkit.pack.plan import Plan
from shardkit.pack.shuffle import shuffled_rows
from shardkit.pack.sources import Content, RowError, read_members
from shardkit.pack.tarfile import TarWriter

__all__ = ["ShardTask", "finished_shard", "read_index"]

_ROWS_AT_ONCE = 4_096  # rows whose URLs and metadata are Python objects at a time: a few MB


@dataclass(frozen=True)
class ShardTask:
    """Makes shard ``item`` of the plan; the same bytes whoever runs it, however often."""

    index: Index
    plan: Plan
    output: Output

    def __call__(self, item: int, report: Report) -> ShardRecord:
        """Write and publish one shard; returns what the shard table says of it."""
        name = self.plan.shard_name(item)
        start, stop = self.plan.rows(item)
        with self.output.temporary() as path, TarWriter(path) as tar:
            body = _Body(self.plan, self.output, tar)
            for rows in self._rows(start, stop):
                before = tar.size
                body.add(rows)
                report(len(rows.keys), tar.size - before)
            return self._publish(name, path, stop - start, body)

    def _rows(self, start: int, stop: int) -> Iterator[Rows]:
        options = self.plan.options
        if options.shuffle == "global":
            return shuffled_rows(self.index, options.seed, start, stop, _ROWS_AT_ONCE)
        return read_index(self.index, start, stop)

    def _publish(self, name: str, path: str, num_rows: int, body: _Body) -> ShardRecord:
        offsets = encode_offsets([*body.offsets, body.tar.size])
        size, digest = body.tar.finish()
        record = ShardRecord(
            name=name,
            rows=num_rows,
            samples=len(body.keys),
            num_bytes=size,
            tar_xxh3=digest,
            idx_xxh3=checksum(offsets),
            members={ext: len(columns) for ext, columns in sorted(body.members.items())},
            failures=tuple(body.failures),
        )
        sidecar = encode_sidecar(
            body.keys, body.members, body.metadata(), record, self.plan.identity
        )
        self.output.publish(path, name)
        self.output.write(idx_name(name), offsets)
        self.output.write(sidecar_name(name), sidecar)  # last: with it, the shard is finished
        return replace(record, sidecar_xxh3=checksum(sidecar))


def finished_shard(
    output: Output, plan: Plan, shard: int, sizes: dict[str, int]
) -> ShardRecord | None:
    """The record of a shard that an earlier run under the same plan published whole, else None."""
    name = plan.shard_name(shard)
    if not {name, idx_name(name), sidecar_name(name)} <= sizes.keys():
        return None
    data = output.read(sidecar_name(name))
    if data is None:
        return None
    try:
        record, identity = sidecar_record(pq.read_schema(pa.BufferReader(data)), name)
    except (CorruptError, pa.ArrowException):
        return None
    whole = sizes[name] == record.num_bytes and sizes[idx_name(name)] == 8 * (record.samples + 1)
    if identity != plan.identity or not whole:
        return None
    return replace(record, sidecar_xxh3=checksum(data))


def read_index(index: Index, start: int, stop: int) -> Iterator[Rows]:
    """Rows ``[start, stop)`` of the whole index, a few thousand at a time."""
    ends = np.cumsum(index.counts)
    group = int(np.searchsorted(ends, start, side="right"))
    while start < stop:
        first = int(ends[group] - index.counts[group])
        until = min(stop, int(ends[group]))
        while start < until:
            piece = min(until, start + _ROWS_AT_ONCE)
            yield index.read(group, start - first, piece - first)
            start = piece
        group += 1


@dataclass
class _Body:
    """A shard's contents while they grow."""

    plan: Plan
    output: Output
    tar: TarWriter
    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    members: dict[str, MemberColumns] = field(default_factory=dict)
    tables: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        exts = [*self.plan.exts, *([self.plan.metadata_ext] if self.plan.metadata_ext else [])]
        self.members = {ext: MemberColumns() for ext in exts}

    def add(self, rows: Rows) -> None:
        """Append these rows; under ``on_error="skip"`` note those that can't be."""
        columns = list(self.plan.json_columns)
        jsons = json_rows(rows.metadata.select(columns)) if columns else itertools.repeat(None)
        kept = np.ones(len(rows.keys), dtype=bool)
        contents = read_members(rows, self.output.store)
        for i, (key, sample, metadata) in enumerate(zip(rows.keys, contents, jsons, strict=False)):
            failure = (
                sample if isinstance(sample, RowError) else self._append(key, sample, metadata)
            )
            if failure is not None:
                if self.plan.options.on_error == "raise":
                    raise failure.as_error(key) from failure.cause
                self.failures.append(Failure(key, failure.url, failure.kind))
                kept[i] = False
        self.tables.append(rows.metadata if kept.all() else rows.metadata.filter(pa.array(kept)))

    def metadata(self) -> pa.Table:
        """The metadata of all samples."""
        table = pa.concat_tables(self.tables).combine_chunks()
        check_metadata_names(table.column_names, list(self.members))
        return table

    def _append(
        self, user_key: str, contents: list[Content], metadata: bytes | None
    ) -> RowError | None:
        """Append a sample whose contents are there; a stream that breaks off is undone."""
        key, tar, start = fit_key(user_key), self.tar, self.tar.size
        if metadata is not None:
            contents.append(Content(self.plan.metadata_ext or "json", metadata, ""))
        if len(contents) > 1 and len({content.ext for content in contents}) < len(contents):
            raise _same_names(user_key, contents, self.plan.metadata_ext)
        places = []
        for ext, data, url in contents:
            name = tar_name(key, ext)
            if isinstance(data, bytes):
                places.append(tar.add(name, data))
                continue
            try:
                places.append(tar.add_stream(name, data))
            except StoreError as error:
                tar.rewind(start)
                return RowError.of(url, error)
        row = len(self.keys)
        for content, place in zip(contents, places, strict=True):
            columns = self.members.get(content.ext)
            if columns is None:
                columns = self.members[content.ext] = MemberColumns()
            columns.add(row, *place)
        self.keys.append(key)
        self.offsets.append(start)
        return None


def _same_names(key: str, contents: list[Content], metadata_ext: str | None) -> ConfigError:
    exts = [content.ext for content in contents]
    ext = next(ext for ext in exts if exts.count(ext) > 1)
    if ext == metadata_ext:
        return ConfigError(
            f"key {key!r} has a member {ext!r} of its own, under which its metadata was to go; "
            "choose another name for the metadata (--metadata-member meta.json)"
        )
    return ConfigError(
        f"key {key!r} has two members named {ext!r}; name one of the columns otherwise "
        "(--files COLUMN=EXT)"
    )
