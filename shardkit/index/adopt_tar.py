"""One tar, read for adoption: by its headers alone, or whole, so that every member is proved."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any, Literal

import pyarrow as pa

from shardkit.errors import CorruptError, IndexDataError
from shardkit.format.sidecar import KEY, MEMBER_TYPE
from shardkit.format.tar import checksum
from shardkit.index.streams import codec_of
from shardkit.index.tar_bytes import TarBytes, open_tar_bytes
from shardkit.index.tars import ReadRange, TarScan, scan_tar
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.protocol import Chunk, ObjectInfo, Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["AdoptedTar", "Reading", "read_tar"]

Reading = Literal["auto", "headers", "whole"]

_TRIED_BYTES = 4 << 20
"""Bytes of headers and what lies between that are read before it is decided whether they are most
of the tar; a tar as small as that is read whole."""

_copies = threading.Semaphore(4)
"""Far tars that a process holds on its disk at once: 4 streams take all that one client gives."""

GetRanges = Callable[[Sequence[tuple[int, int]]], list[bytes]]


@dataclass(frozen=True)
class AdoptedTar:
    """What was read of a tar.

    Attributes:
        scan: its samples; with all checksums where it was read whole.
        num_bytes: its size.
        tar_xxh3: checksum of the whole; None where only headers were read.
        get_ranges: reads more of it.
    """

    scan: TarScan
    num_bytes: int
    tar_xxh3: int | None
    get_ranges: GetRanges


@contextmanager
def read_tar(store: Store, info: ObjectInfo, reading: Reading) -> Iterator[AdoptedTar]:
    """Read a tar; within the block more of it may be read.

    ``"auto"`` reads headers alone where members are so large that jumping over them is worth it,
    and the whole where reading the headers comes to reading most of the tar.

    Raises:
        CorruptError: it is damaged, or changed meanwhile.
        IndexDataError: it is compressed, so that no range of it can be read.
    """
    scan = None if reading == "whole" else _by_headers(store, info, reading)
    if scan is not None:
        yield AdoptedTar(scan, info.size, None, lambda ranges: store.get_ranges(info.url, ranges))
    else:
        with _whole(store, info) as view:
            _refuse_compressed(info.url, bytes(view[:8]))
            scan = scan_tar(lambda start, stop: bytes(view[start:stop]), len(view), info.url)
            scan = replace(scan, table=_proved(scan.table, view, info.url))
            yield AdoptedTar(
                scan,
                len(view),
                checksum(view),
                lambda ranges: [bytes(view[start:stop]) for start, stop in ranges],
            )
    found = store.stat(info.url)
    if (found.size, found.version) != (info.size, info.version):
        raise CorruptError(f"{info.url} changed while it was read; adopt it again when it is still")


class _DenseError(Exception):
    """Headers lie so close that reading them is reading the tar."""


def _by_headers(store: Store, info: ObjectInfo, reading: Reading) -> TarScan | None:
    if reading == "auto" and info.size <= _TRIED_BYTES:
        return None
    with open_tar_bytes(store, info) as tar, contextlib.suppress(_DenseError):
        read = _sparing(tar) if reading == "auto" else tar.read
        return scan_tar(_plain(read, info.url), tar.size, info.url, jump_bytes=tar.jump_bytes)
    return None


def _sparing(tar: TarBytes) -> ReadRange:
    """A read that gives up where most of the tar so far had to be read."""
    num_bytes = 0

    def read(start: int, stop: int) -> bytes:
        nonlocal num_bytes
        num_bytes += stop - start
        if num_bytes > _TRIED_BYTES and 2 * num_bytes > stop:
            raise _DenseError
        return tar.read(start, stop)

    return read


def _plain(read: ReadRange, url: str) -> ReadRange:
    """A read that looks at the first bytes as they pass."""

    def checked(start: int, stop: int) -> bytes:
        data = read(start, stop)
        if start == 0:
            _refuse_compressed(url, data[:8])
        return data

    return checked


def _refuse_compressed(url: str, head: bytes) -> None:
    codec = codec_of(head)
    if codec is not None:
        raise IndexDataError(
            f"{url} is compressed ({codec}), so no sample of it can be read without all before "
            "it: unpack it to a plain .tar, or `shardkit pack` the tars into shards; reading them "
            "unadopted keeps an unpacked copy"
        )


@contextmanager
def _whole(store: Store, info: ObjectInfo) -> Iterator[memoryview]:
    """A whole tar as memory: a local one in place, a far one through a temporary file."""
    with contextlib.ExitStack() as stack:
        if is_local(info.url):
            with map_os_errors("read", info.url):
                file: IO[bytes] = stack.enter_context(open(local_path(info.url), "rb"))
        else:
            stack.enter_context(_copies)
            file = stack.enter_context(tempfile.TemporaryFile())
            with map_os_errors("write", f"a copy of {info.url} in {tempfile.gettempdir()}"):
                store.stream_to(info.url, lambda chunk: _write(file, chunk))
                file.flush()
        if file.seek(0, 2) == 0:
            yield memoryview(b"")
            return
        mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        yield stack.enter_context(memoryview(mapped))


def _write(file: IO[bytes], chunk: Chunk) -> None:
    file.write(chunk)


def _proved(table: pa.Table, view: memoryview, url: str) -> pa.Table:
    """The table with the checksum of every member.

    Raises:
        CorruptError: a header carries another checksum than its member's data has.
    """
    columns: dict[str, Any] = {KEY: table.column(KEY)}
    for ext in (name for name in table.column_names if name != KEY):
        places = table.column(ext).combine_chunks()
        offsets, sizes, known = (places.field(i).to_pylist() for i in range(3))
        sums = [
            None if start is None else checksum(view[start : start + size])
            for start, size in zip(offsets, sizes, strict=True)
        ]
        for row, (claimed, found) in enumerate(zip(known, sums, strict=True)):
            if claimed is not None and claimed != found:
                raise CorruptError(
                    f"{url}: the sample {table.column(KEY)[row].as_py()!r}: the data of {ext!r} "
                    "fails the checksum in its header; fetch the tar again"
                )
        children = [places.field(0), places.field(1), pa.array(sums, pa.uint64())]
        columns[ext] = pa.StructArray.from_arrays(
            children, fields=list(MEMBER_TYPE), mask=places.is_null()
        )
    return pa.table(columns)
