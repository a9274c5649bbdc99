"""The contents of one shard while they grow: members into the tar, the rest into columns."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from shardkit.errors import ConfigError, CorruptError, ShardkitError, StoreError
from shardkit.format.arrays import from_flags
from shardkit.format.keys import check_ext, fit_key, tar_name
from shardkit.format.metadata import json_rows
from shardkit.format.sidecar import Failure, Placed
from shardkit.format.sniff import sniff_ext
from shardkit.format.tar import MAX_MEMBER_BYTES
from shardkit.index.rows import MemberColumn, Rows
from shardkit.pack.plan import Plan
from shardkit.pack.sources import (
    Held,
    RowError,
    SourceBrokeError,
    Stream,
    Stretch,
    held_members,
    marked,
)
from shardkit.pack.tar_writer import LARGE, Place, TarWriter
from shardkit.storage.protocol import Store

__all__ = ["ShardBody"]


class ShardBody:
    """What has gone into a shard so far.

    Attributes:
        keys: of the samples, as they are in the tar.
        offsets: where each sample starts in the tar.
        members: by ext; all that the plan knows of are there, however few samples have them.
        failures: rows that were skipped.
    """

    def __init__(self, plan: Plan, store: Store, tar: TarWriter) -> None:
        self.keys: list[str] = []
        self.offsets: list[int] = []
        self.members: dict[str, Placed] = {check_ext(ext): [] for ext in plan.all_exts}
        self.failures: list[Failure] = []
        self._plan = plan
        self._store = store
        self._tar = tar
        self._tables: list[pa.Table] = []
        self._exts: dict[tuple[str, str], str] = {}  # by column and its own ext

    def add(self, rows: Rows) -> None:
        """Append these rows; under ``on_error="skip"`` note those that can't be."""
        columns = list(self._plan.json_columns)
        jsons = json_rows(rows.metadata.select(columns)) if columns else itertools.repeat(None)
        samples = held_members(rows, self._store)
        kept = np.ones(len(rows), dtype=bool)
        for row, (key, sample, metadata) in enumerate(zip(rows.keys, samples, jsons, strict=False)):
            failure = self._add_row(rows, row, fit_key(key), sample, metadata)
            if failure is not None:
                if self._plan.options.on_error == "raise":
                    raise failure.as_error(key) from failure.cause
                self.failures.append(Failure(key, failure.url, failure.kind))
                kept[row] = False
        self._tables.append(rows.metadata if kept.all() else rows.metadata.filter(from_flags(kept)))

    def metadata(self) -> pa.Table:
        """The metadata of all samples."""
        return pa.concat_tables(self._tables).combine_chunks()

    def _add_row(
        self, rows: Rows, row: int, key: str, sample: tuple[Held, ...], metadata: bytes | None
    ) -> RowError | None:
        """Append a sample, whole or not at all."""
        start = self._tar.size
        placed: dict[str, Place] = {}
        for column, held in zip(rows.members, sample, strict=True):
            if held is None:
                continue
            if isinstance(held, str):
                found = self._place_file(key, column, row, held)
            else:
                found = self._place(key, column, row, held)
            if isinstance(found, RowError):
                self._tar.rewind(start)
                return found
            ext, place = found
            expected = None if column.checksums is None else column.checksums[row]
            if expected not in (None, place[2]):
                self._tar.rewind(start)
                error = CorruptError(f"the xxh3 of {ext!r} is {place[2]:016x}, not {expected:016x}")
                return RowError.of(column.urls[row] or "", error)
            if ext in placed:
                raise ConfigError(
                    f"key {rows.keys[row]!r} has two members named {ext!r}; name one of the "
                    "columns otherwise (--files COLUMN=EXT)"
                )
            placed[ext] = place
        if not placed:
            return RowError("no_members", "")
        if metadata is not None:
            ext = self._plan.metadata_ext or ""
            if ext in placed:
                raise ConfigError(
                    f"key {rows.keys[row]!r} has a member {ext!r} of its own, under which its "
                    "metadata was to go; choose another name for the metadata "
                    "(--metadata-member meta.json)"
                )
            placed[ext] = self._put(tar_name(key, ext), metadata)
        number = len(self.keys)
        for ext, place in placed.items():
            self.members[ext].append((number, *place))
        self.keys.append(key)
        self.offsets.append(start)
        return None

    def _place(
        self,
        key: str,
        column: MemberColumn,
        row: int,
        held: bytes | Stretch | Stream | ShardkitError,
    ) -> tuple[str, Place] | RowError:
        """Append one member; returns its ext and place, or why it can't be had."""
        url = column.urls[row] or ""
        if isinstance(held, Stretch):
            return self._place_stretch(key, column, row, held)
        if isinstance(held, Stream):
            return self._place_stream(key, column, row, held)
        if isinstance(held, ShardkitError):
            return RowError.of(url, held)
        if not held and url and column.starts is None:
            return RowError("empty", url)
        ext = self._ext(column, row, held)
        return ext, self._put(tar_name(key, ext), held)

    def _place_file(
        self, key: str, column: MemberColumn, row: int, path: str
    ) -> tuple[str, Place] | RowError:
        tar, url = self._tar, column.urls[row] or ""
        if column.exts[row]:
            ext = self._ext(column, row, b"")
            place = tar.add_file(tar_name(key, ext), path)
            if place is not None:
                return ext, place
        try:
            size = tar.fill_file(path)
        except StoreError as error:
            return RowError.of(url, error)
        if size > LARGE:
            return self._place_stream(key, column, row, Stream(self._store.get_chunks(url), size))
        if not size:
            return RowError("empty", url)
        ext = self._ext(column, row, tar.head(size) if not column.exts[row] else b"")
        return ext, tar.seal(tar_name(key, ext), size)

    def _place_stretch(
        self, key: str, column: MemberColumn, row: int, held: Stretch
    ) -> tuple[str, Place] | RowError:
        start, size = held.start, held.size
        if size > LARGE:
            chunks = self._store.get_chunks(held.url, start, start + size)
            return self._place_stream(key, column, row, Stream(chunks, size))
        try:
            self._tar.fill_range(held.fd, held.url, start, size)
        except (StoreError, CorruptError) as error:
            return RowError.of(held.url, error)
        ext = self._ext(column, row, self._tar.head(size) if not column.exts[row] else b"")
        return ext, self._tar.seal(tar_name(key, ext), size)

    def _place_stream(
        self, key: str, column: MemberColumn, row: int, stream: Stream
    ) -> tuple[str, Place] | RowError:
        url = column.urls[row] or ""
        if stream.size is not None and stream.size >= MAX_MEMBER_BYTES:
            return RowError.too_large(url, stream.size)
        chunks = marked(stream.chunks)
        try:
            first = next(chunks, b"")
            ext = self._ext(column, row, first)
            place = self._tar.add_stream(tar_name(key, ext), itertools.chain((first,), chunks))
        except SourceBrokeError as broke:
            return RowError.of(url, broke.error)
        return ext, place

    def _put(self, name: bytes, data: bytes) -> Place:
        if len(data) > LARGE:
            return self._tar.add_stream(name, iter((data,)))
        return self._tar.seal(name, self._tar.fill(data))

    def _ext(self, column: MemberColumn, row: int, head: bytes) -> str:
        """The ext of a member, by its first bytes if need be; the shard has a column for it."""
        own = column.exts[row] or sniff_ext(head)
        ext = self._exts.get((column.name, own))
        if ext is None:
            ext = self._exts[column.name, own] = check_ext(column.name_for(own))
            self.members.setdefault(ext, [])
        return ext
