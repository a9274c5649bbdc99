"""Writing one shard of a plan: rows in; tar, ``.idx`` and sidecar out, published in that order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import CorruptError
from shardkit.format.manifest import idx_name, sidecar_name
from shardkit.format.sidecar import ShardRecord, encode_offsets, encode_sidecar, sidecar_record
from shardkit.format.tar import checksum
from shardkit.index.index import Index
from shardkit.index.rows import Rows
from shardkit.pack.body import ShardBody
from shardkit.pack.executors import Report
from shardkit.pack.output import Output
from shardkit.pack.plan import Plan
from shardkit.pack.rows import rows_in_order, rows_shuffled
from shardkit.pack.tar_writer import TarWriter

__all__ = ["ShardTask", "finished_shard"]


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
            body = ShardBody(self.plan, self.output.store, tar)
            for rows in self._rows(start, stop):
                before = tar.size
                body.add(rows)
                report(len(rows), tar.size - before)
            return self._publish(name, stop - start, path, tar, body)

    def _rows(self, start: int, stop: int) -> Iterator[Rows]:
        options = self.plan.options
        if options.shuffle == "global":
            return rows_shuffled(self.index, options.seed, start, stop)
        return rows_in_order(self.index, start, stop)

    def _publish(
        self, name: str, num_rows: int, path: str, tar: TarWriter, body: ShardBody
    ) -> ShardRecord:
        offsets = encode_offsets([*body.offsets, tar.size])
        size, digest = tar.finish()
        record = ShardRecord(
            name=name,
            rows=num_rows,
            samples=len(body.keys),
            num_bytes=size,
            tar_xxh3=digest,
            idx_xxh3=checksum(offsets),
            members={ext: len(placed) for ext, placed in sorted(body.members.items())},
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
