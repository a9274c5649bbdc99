"""Parquet files read in place, a run of row groups at a time, local or through ranged reads."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest, xxh3_128

from shardkit.errors import CorruptError, IndexDataError, NotFoundError, ShardkitError
from shardkit.index.groups import ROWS_PER_GROUP
from shardkit.index.kept import Kept
from shardkit.index.shared_reads import SharedReads
from shardkit.storage.cache import Cache
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.urls import is_local, local_path

__all__ = [
    "ParquetFile",
    "ParquetGroups",
    "ParquetLayout",
    "RangeFile",
    "open_parquet",
    "parquet_tables",
    "read_schema",
]

_THREADS = 16  # footers of far files: ~10 ms each, so a thousand files take a second
_FOOTER_BYTES = 64 << 10  # a first guess that holds the footers of most files
_KEPT_FOOTERS = 8  # parsed footers per process: lanes of an order look at a few files at a time
_STREAM_BYTES = 1 << 20  # read ahead per column when a file is read from front to back
_HASHED_WHOLE = 64 << 20  # local files up to this many bytes in all are hashed whole, ~10 ms


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A file as it was when the index was opened.

    ``size`` is -1 where it was not asked for, ``footer_xxh3`` 0 where the footer was not read.
    """

    url: str
    size: int
    version: str
    footer_xxh3: int = 0


@dataclass(frozen=True, slots=True)
class ParquetLayout:
    """Where the G groups of some files are.

    Attributes:
        files: in order.
        schema: columns of all files.
        counts: int64 [G]; rows.
        places: int32 [G, 3]; file, first row group, row group after the last (-1: all the rest).
        identity: hash of the contents.
    """

    files: Sequence[ParquetFile]
    schema: pa.Schema
    counts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int32]
    identity: str


class ParquetGroups:
    """Many Parquet files as one list of groups.

    A group is a run of row groups of one file, with ``ROWS_PER_GROUP`` rows or more where the
    file has that many: tiny row groups would cost a request each. Memory is O(groups); footers
    are parsed again when they are needed, and the last few are kept.

    With a cache, what is read of far files is read once a node, not once a process.
    """

    in_memory = False

    def __init__(self, reads: SharedReads, layout: ParquetLayout) -> None:
        self.schema = layout.schema
        self.counts = layout.counts
        self.identity = layout.identity
        self._reads = reads
        self._layout = layout
        self._files = layout.files
        self._places = layout.places
        self._footers: Kept[pq.FileMetaData] = Kept(_KEPT_FOOTERS)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetGroups, (self._reads, self._layout)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read exactly the column chunks of the group; far ones in parallel ranges."""
        file, start, stop = self._places[group].tolist()
        info = self._files[file]
        footer = self._footer(file)
        stop = footer.num_row_groups if stop < 0 else stop
        present = self._present(footer, columns)
        if not present:
            return _nulls(int(self.counts[group]), self.schema, columns)
        source = self._source(info)
        if isinstance(source, RangeFile):
            source.preload(_chunk_ranges(footer, range(start, stop), present))
        with _mapped_errors(info.url):
            opened = pq.ParquetFile(source, metadata=footer, pre_buffer=False)
            table = opened.read_row_groups(
                list(range(start, stop)), columns=present, use_threads=False
            )
        table = self._conform(table, columns, info.url)
        if table.num_rows != self.counts[group]:
            raise CorruptError(
                f"{info.url} has {table.num_rows:,} rows where there should be "
                f"{self.counts[group]:,}; it belongs to something else, or is damaged"
            )
        return table

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Read the first pages of the first file, and no more."""
        if not len(self.counts):
            return self.schema.empty_table().select(list(columns))
        file, start, stop = self._places[0].tolist()
        info = self._files[file]
        footer = self._footer(file)
        stop = footer.num_row_groups if stop < 0 else stop
        present = self._present(footer, columns)
        with _mapped_errors(info.url):
            opened = pq.ParquetFile(
                self._source(info), metadata=footer, pre_buffer=False, buffer_size=1 << 18
            )
            batches = opened.iter_batches(
                num_rows, row_groups=list(range(start, stop)), columns=present, use_threads=False
            )
            table = pa.Table.from_batches([batch for batch, _ in zip(batches, [0], strict=False)])
        return self._conform(table, columns, info.url)

    def file(self, group: int) -> str:
        """URL of the group's file."""
        return self._files[int(self._places[group, 0])].url

    def _conform(self, table: pa.Table, columns: Sequence[str], url: str) -> pa.Table:
        """Give a file's columns the types that all files agree on; absent ones are null."""
        found = []
        for name in columns:
            wanted = self.schema.field(name).type
            if name not in table.column_names:
                found.append(pa.chunked_array([pa.nulls(table.num_rows, wanted)]))
                continue
            column = table.column(name)
            try:
                found.append(column if column.type == wanted else column.cast(wanted))
            except pa.ArrowException as error:
                raise IndexDataError(
                    f"{url}: the column {name!r} holds {column.type}, which is no {wanted} as in "
                    f"the other files: {error}"
                ) from error
        return pa.Table.from_arrays(found, names=list(columns))

    def _present(self, footer: pq.FileMetaData, columns: Sequence[str]) -> list[str]:
        own = set(footer.schema.to_arrow_schema().names)
        return [name for name in columns if name in own]

    def _source(self, info: ParquetFile) -> Any:
        if is_local(info.url):
            return local_path(info.url)
        return RangeFile(self._reads, _sized(self._reads.store, info))

    def _footer(self, file: int) -> pq.FileMetaData:
        return self._footers.get(file, lambda: self._same_footer(self._files[file]))

    def _same_footer(self, info: ParquetFile) -> pq.FileMetaData:
        """Read a footer again, which must be the one that the groups were counted by."""
        changed = (
            f"{info.url} changed since the index was opened; open the index again (a run that goes "
            "on needs the file as it was)"
        )
        try:
            footer, tail = _read_footer(self._reads, info)
        except CorruptError as error:
            if info.footer_xxh3:
                raise IndexDataError(changed) from error
            raise
        if info.footer_xxh3 and xxh3_64_intdigest(tail) != info.footer_xxh3:
            raise IndexDataError(changed)
        return footer


class RangeFile(io.RawIOBase):
    """A far object as a file to seek in: preloaded ranges from memory, the rest as asked for."""

    def __init__(self, reads: SharedReads, file: ParquetFile) -> None:
        super().__init__()
        self._reads = reads
        self._file = file
        self._size = file.size
        self._position = 0
        self._loaded: list[tuple[int, bytes]] = []

    def preload(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges at once; reads within them cost nothing more."""
        data = self._reads.get_ranges(self._file.url, self._file.version, ranges)
        self._loaded = [(start, part) for (start, _), part in zip(ranges, data, strict=True)]

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes."""
        start = self._position
        stop = self._size if size < 0 else min(self._size, start + size)
        if start >= stop:
            return b""
        self._position = stop
        for first, data in self._loaded:
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        return self._reads.get_range(self._file.url, self._file.version, start, stop)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_parquet(
    store: Store, infos: Sequence[ObjectInfo], cache: Cache | None = None
) -> ParquetGroups:
    """Read the footers of these files, in parallel, and nothing else.

    Args:
        store: where they are.
        infos: of the files.
        cache: of the node, through which far files are read.

    Raises:
        CorruptError: a file is no Parquet file, or is cut.
        IndexDataError: the files disagree about a column's type.
    """
    files = [ParquetFile(info.url, info.size, info.version) for info in infos]
    reads = SharedReads(store, cache)
    whole = (
        all(is_local(file.url) for file in files) and sum(f.size for f in files) <= _HASHED_WHOLE
    )
    schemas: list[pa.Schema] = []
    counts: list[int] = []
    places: list[tuple[int, int, int]] = []
    hasher = xxh3_128()

    def look(file: ParquetFile) -> tuple[pa.Schema, list[int], bytes, ParquetFile]:
        footer, tail = _read_footer(reads, file)
        rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        if whole:
            content = store.get(file.url)
        else:
            content = tail if is_local(file.url) else file.version.encode()
        mark = xxh3_128(content).digest() + file.size.to_bytes(8, "little")
        schema = footer.schema.to_arrow_schema().remove_metadata()
        return schema, rows, mark, replace(file, footer_xxh3=xxh3_64_intdigest(tail))

    with ThreadPoolExecutor(min(_THREADS, max(1, len(files))), "shardkit-footers") as pool:
        for number, (schema, rows, mark, looked) in enumerate(pool.map(look, files)):
            files[number] = looked
            if not schemas or schema != schemas[-1]:
                schemas.append(schema)
            hasher.update(mark)
            for start, stop, count in _runs(rows):
                places.append((number, start, stop))
                counts.append(count)
    layout = ParquetLayout(
        files,
        _unified(schemas, files),
        np.array(counts, dtype=np.int64),
        np.array(places, dtype=np.int32).reshape(-1, 3),
        str(hasher.hexdigest()),
    )
    return ParquetGroups(reads, layout)


def parquet_tables(store: Store, info: ObjectInfo) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Read a whole file from front to back in small parts, however big its row groups are."""
    file = ParquetFile(info.url, info.size, info.version)
    reads = SharedReads(store)
    footer, _ = _read_footer(reads, file)
    source = local_path(info.url) if is_local(info.url) else RangeFile(reads, file)

    def tables() -> Iterator[pa.Table]:
        with _mapped_errors(info.url):
            opened = pq.ParquetFile(
                source, metadata=footer, pre_buffer=False, buffer_size=_STREAM_BYTES
            )
            for batch in opened.iter_batches(ROWS_PER_GROUP, use_threads=False):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)

    return footer.schema.to_arrow_schema().remove_metadata(), tables()


def read_schema(store: Store, file: ParquetFile) -> pa.Schema:
    """Return the Arrow schema of one file, its field metadata included."""
    return _read_footer(SharedReads(store), file)[0].schema.to_arrow_schema()


def _runs(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Join small row groups: (first, after the last, rows) of each run."""
    found: list[tuple[int, int, int]] = []
    start = total = 0
    for i, count in enumerate(rows):
        total += count
        if total >= ROWS_PER_GROUP or i == len(rows) - 1:
            if total:
                found.append((start, i + 1, total))
            start, total = i + 1, 0
    return found


def _unified(schemas: Sequence[pa.Schema], files: Sequence[ParquetFile]) -> pa.Schema:
    if not schemas:
        return pa.schema([])
    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except pa.ArrowException as error:
        raise IndexDataError(
            f"the {len(files)} files disagree about a column: {error}; cast it in the files, or "
            "name only files that agree"
        ) from error


def _sized(store: Store, file: ParquetFile) -> ParquetFile:
    return file if file.size >= 0 else replace(file, size=store.stat(file.url).size)


def _read_footer(reads: SharedReads, file: ParquetFile) -> tuple[pq.FileMetaData, bytes]:
    """Parse the footer, which is the end of the file, fetched in one or two reads.

    Each process reads it anew where no version tells that the file is still the same.
    """
    reads = reads if file.version else SharedReads(reads.store)
    size = _sized(reads.store, file).size
    start = max(0, size - _FOOTER_BYTES)
    tail = reads.get_range(file.url, file.version, start, size)
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise CorruptError(f"{file.url} is no Parquet file, or is cut: it does not end in PAR1")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > size:
        raise CorruptError(f"{file.url}: its footer claims {needed:,} bytes of {size:,}")
    if needed > len(tail):
        tail = reads.get_range(file.url, file.version, size - needed, start) + tail
    with _mapped_errors(file.url):
        return pq.read_metadata(pa.BufferReader(tail)), tail[-needed:]


def _chunk_ranges(
    footer: pq.FileMetaData, row_groups: range, columns: Sequence[str]
) -> list[tuple[int, int]]:
    """Byte ranges of the column chunks of these columns."""
    wanted = set(columns)
    found = []
    for i in row_groups:
        group = footer.row_group(i)
        for j in range(group.num_columns):
            chunk = group.column(j)
            path = chunk.path_in_schema
            if path in wanted or any(path.startswith(f"{name}.") for name in wanted):
                start = chunk.data_page_offset
                if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                    start = min(start, chunk.dictionary_page_offset)
                found.append((start, start + chunk.total_compressed_size))
    return found


def _nulls(rows: int, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Columns that a file does not have; without any, a table still has its rows."""
    if not columns:
        return pa.table({"": pa.nulls(rows)}).select([])
    return pa.Table.from_arrays(
        [pa.nulls(rows, schema.field(name).type) for name in columns], names=list(columns)
    )


@contextmanager
def _mapped_errors(url: str) -> Iterator[None]:
    """Turn Arrow's errors about a file into ours, which name it."""
    try:
        yield
    except ShardkitError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"{url} is gone; it was there when the index was opened") from error
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{url} can't be read as Parquet: {error}") from error
