"""The bytes of a tar, as a scan of its headers wants them: ranges of a file, near or far."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from shardkit.errors import CorruptError
from shardkit.index.tars import ReadRange
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["TarBytes", "open_tar_bytes"]

_NEAR_JUMP = 16 << 10  # bytes that a read of a local disk costs
_FAR_JUMP = 1 << 20  # bytes that a request of ~10 ms costs at ~100 MB/s


class TarBytes(NamedTuple):
    """How to read ranges of a tar, its size, and how many bytes a jump costs."""

    read: ReadRange
    size: int
    jump_bytes: int


@contextmanager
def open_tar_bytes(store: Store, info: ObjectInfo) -> Iterator[TarBytes]:
    """Open a tar for ranged reads: one request each from afar, one ``pread`` each nearby."""
    if not is_local(info.url):
        yield TarBytes(
            lambda start, stop: store.get_range(info.url, start, stop), info.size, _FAR_JUMP
        )
        return
    with map_os_errors("read", info.url):
        fd = os.open(local_path(info.url), os.O_RDONLY | os.O_CLOEXEC)

    def read(start: int, stop: int) -> bytes:
        data = os.pread(fd, stop - start, start)
        if len(data) < stop - start:
            raise CorruptError(f"{info.url} was cut while it was read")
        return data

    try:
        yield TarBytes(read, os.fstat(fd).st_size, _NEAR_JUMP)
    finally:
        os.close(fd)
