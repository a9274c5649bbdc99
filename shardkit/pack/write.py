"""Writing one shard of a plan: rows in; tar, ``.idx`` and sidecar out, published in that order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import CorruptError
from shardkit.executors import Report
from shardkit.format.manifest import idx_name, sidecar_name
from shardkit.format.sidecar import ShardRecord, encode_offsets, encode_sidecar, sidecar_record
from shardkit.format.tar import checksum
from shardkit.index.index import Index
from shardkit.index.rows import Rows
from shardkit.pack.body import ShardBody
from shardkit.pack.output import Output
from shardkit.pack.plan import Plan
from shardkit.pack.rows import rows_in_order, rows_shuffled
from shardkit.pack.tar_writer import TarWriter

__all__ = ["ShardTask", "finished_shard", "shard_task"]


@dataclass(frozen=True)
class ShardTask:
    """Makes shard ``item`` of the plan; the same bytes whoever runs it, however often."""

    index: Index
    plan: Plan
    output: Output
    expected: Mapping[int, ShardRecord] | None = None
    """For a repair: what the shard table says of the shards; one that comes out otherwise is not
    published."""

    def __call__(self, item: int, report: Report) -> ShardRecord:
        """Write and publish one shard; returns what the shard table says of it."""
        self.output.check_begun()
        name = self.plan.shard_name(item)
        start, stop = self.plan.rows(item)
        with self.output.temporary() as path, TarWriter(path) as tar:
            body = ShardBody(self.plan, self.output.store, tar)
            for rows in self.rows(start, stop):
                before = tar.size
                body.add(rows)
                report(len(rows), tar.size - before)
            offsets = encode_offsets([*body.offsets, tar.size])
            record = self._record(item, tar.finish(), offsets, body)
            sidecar = encode_sidecar(
                body.keys, body.members, body.metadata(), record, self.plan.identity
            )
            record = replace(record, sidecar_xxh3=checksum(sidecar))
            if self.expected is not None:
                _check_same(record, self.expected[item])
            self.output.publish(path, name)
            self.output.write(idx_name(name), offsets)
            self.output.write(sidecar_name(name), sidecar)  # last: with it, the shard is finished
            return record

    def rows(self, start: int, stop: int) -> Iterator[Rows]:
        """Rows ``[start, stop)`` of the plan, a few thousand at a time."""
        options = self.plan.options
        if options.shuffle == "global":
            return rows_shuffled(self.index, options.seed, start, stop)
        return rows_in_order(self.index, start, stop)

    def _record(
        self, item: int, tar: tuple[int, int], offsets: bytes, body: ShardBody
    ) -> ShardRecord:
        start, stop = self.plan.rows(item)
        return ShardRecord(
            name=self.plan.shard_name(item),
            rows=stop - start,
            samples=len(body.keys),
            num_bytes=tar[0],
            tar_xxh3=tar[1],
            idx_xxh3=checksum(offsets),
            members={ext: len(placed) for ext, placed in sorted(body.members.items())},
            failures=tuple(body.failures),
        )


def shard_task(index: Index, plan: Plan, output: Output) -> ShardTask:
    """The task of a plan's shards; a shuffled index is copied first to where any row is near."""
    shuffled = plan.options.shuffle == "global"
    return ShardTask(index.mapped() if shuffled else index, plan, output)


def _check_same(made: ShardRecord, expected: ShardRecord) -> None:
    if made.tar_xxh3 != expected.tar_xxh3:
        raise CorruptError(
            f"{made.name} came out with other bytes than were packed first, and was left as it is: "
            "files that the index names have changed since; pack the index anew"
        )
    if (made.idx_xxh3, made.sidecar_xxh3) != (expected.idx_xxh3, expected.sidecar_xxh3):
        raise CorruptError(
            f"{made.name} came out right but its sidecar did not, and both were left as they are: "
            f"another pyarrow than {pa.__version__} wrote it; repair with that one"
        )


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
