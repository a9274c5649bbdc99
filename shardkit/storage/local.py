"""The store for paths of this machine: plain files, written aside and renamed into place."""

from __future__ import annotations

import os
import secrets
import shutil
import stat as stat_bits
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO
from urllib.parse import quote

from shardkit.storage.boundary import map_os_errors, short_range, store_error
from shardkit.storage.protocol import Chunk, ObjectInfo
from shardkit.storage.ranges import coalesce
from shardkit.storage.urls import local_path

__all__ = ["LocalStore", "file_version", "write_aside"]

CHUNK = 1 << 20
"""Bytes a read: beyond it, reading speed of a warm page cache no longer grows."""

_ASIDE = ".shardkit-aside-"


def file_version(status: os.stat_result) -> str:
    """Return the version of a local file: ``size-mtime`` in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def write_aside(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a private file beside ``path``, then rename it into place.

    Content reaches the disk before the name does (fsync), so not even a power cut shows a part.
    Whatever interrupts it, nothing but a hidden ``.shardkit-aside-…`` file can stay, and only
    after SIGKILL.
    """
    folder, name = os.path.split(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    aside = os.path.join(folder, f"{_ASIDE}{secrets.token_hex(8)}-{name}"[:240])
    try:
        with open(aside, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.lexists(aside):
            os.unlink(aside)
        raise


class LocalStore:
    """Bare paths and ``file://`` URLs. See ``Store`` for the contract."""

    def stat(self, url: str) -> ObjectInfo:
        """Return size and version; folders and devices are not objects."""
        with map_os_errors("stat", url):
            status = os.stat(local_path(url))
            if stat_bits.S_ISDIR(status.st_mode):
                raise IsADirectoryError(url)
        return ObjectInfo(url, status.st_size, file_version(status))

    def get(self, url: str) -> bytes:
        """Return a whole file: open, read, close, nothing else."""
        try:
            fd = os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_to_end(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
        except OSError as error:  # not map_os_errors: that costs as much as opening the file
            raise store_error("read", url, error) from error

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        """Return a whole file, and its version as it was before."""
        version = self.stat(url).version
        return self.get(url), version

    def requests(self, urls: Sequence[str]) -> Sequence[None]:
        """Nothing comes from here over plain HTTP."""
        return [None] * len(urls)

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``."""
        return self.get_ranges(url, [(start, stop)])[0]

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return each range; every range is one pread."""
        coalesce(ranges)  # checks them
        with map_os_errors("read", url):
            fd = os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return [_pread(fd, url, start, stop) for start, stop in ranges]
            finally:
                os.close(fd)

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Stream ``[start, stop)`` in chunks of 1 MiB."""
        with map_os_errors("read", url), open(local_path(url), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            end = size if stop is None else stop
            if end > size or start > size:
                raise short_range(url, start, end, size)
            file.seek(start)
            while start < end:
                chunk = file.read(min(CHUNK, end - start))
                if not chunk:
                    raise short_range(url, start, end, start)
                start += len(chunk)
                yield chunk

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        """Hand ``[start, stop)`` to ``write``, chunk by chunk, all through one buffer."""
        for view in _views(url, start, stop):
            write(view)

    def put(self, url: str, data: bytes) -> None:
        """Write a file: aside, fsync, rename."""
        with map_os_errors("write", url):
            write_aside(local_path(url), lambda file: file.write(data))

    def put_file(self, url: str, path: str) -> None:
        """Copy a file: aside, fsync, rename."""
        with map_os_errors("write", url), open(path, "rb") as source:
            write_aside(local_path(url), lambda file: shutil.copyfileobj(source, file, CHUNK))

    def list(self, url: str) -> Iterator[ObjectInfo]:
        """Yield the regular files below a folder, links followed (loops are not)."""
        root = local_path(url)
        with map_os_errors("list", url):
            if os.path.isdir(root):
                spell = quote if "://" in url else str
                yield from _walk(url.rstrip("/") + "/", root, (), spell)

    def delete(self, url: str) -> None:
        """Unlink a file if it is there."""
        with map_os_errors("delete", url):
            try:
                os.unlink(local_path(url))
            except FileNotFoundError:
                return


def _views(url: str, start: int, stop: int | None) -> Iterator[memoryview]:
    """Yield ``[start, stop)`` in views of one buffer, each good until the next."""
    buffer = memoryview(bytearray(CHUNK))
    with map_os_errors("read", url), open(local_path(url), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        end = size if stop is None else stop
        if end > size or start > size:
            raise short_range(url, start, end, size)
        while start < end:
            count = os.preadv(file.fileno(), (buffer[: min(CHUNK, end - start)],), start)
            if not count:
                raise short_range(url, start, end, start)
            start += count
            yield buffer[:count]


def _read_to_end(fd: int, size: int) -> bytes:
    data = os.read(fd, size + 1)  # one call for any file below 2 GiB
    if len(data) == size:
        return data
    parts = [data]
    while chunk := os.read(fd, CHUNK):
        parts.append(chunk)
    return b"".join(parts)


def _pread(fd: int, url: str, start: int, stop: int) -> bytes:
    data = os.pread(fd, stop - start, start)
    if len(data) == stop - start:
        return data
    parts = [data]
    position = start + len(data)
    while position < stop:
        chunk = os.pread(fd, stop - position, position)
        if not chunk:
            raise short_range(url, start, stop, os.fstat(fd).st_size)
        parts.append(chunk)
        position += len(chunk)
    return b"".join(parts)


def _walk(
    prefix: str, folder: str, above: tuple[tuple[int, int], ...], spell: Callable[[str], str]
) -> Iterator[ObjectInfo]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as scan:
        entries = [(spell(e.name) + "/" if e.is_dir() else spell(e.name), e) for e in scan]
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        if name.endswith("/"):
            yield from _walk(prefix + name, entry.path, (*above, identity), spell)
        elif not name.startswith(_ASIDE):
            try:
                found = entry.stat()
            except FileNotFoundError:  # deleted meanwhile, or a dangling link
                continue
            if stat_bits.S_ISREG(found.st_mode):
                yield ObjectInfo(prefix + name, found.st_size, file_version(found))
