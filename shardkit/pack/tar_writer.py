"""Writing one tar: every member is read into the place where it will lie, then sealed."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from types import TracebackType

from xxhash import xxh3_64

from shardkit.errors import StoreError
from shardkit.format.tar import BLOCK, END_OF_TAR, checksum, member_header, padded
from shardkit.storage.boundary import map_os_errors, short_range

__all__ = ["LARGE", "Place", "TarWriter"]

LARGE = 32 << 20
"""Bytes above which a member is streamed to the file instead of being held."""

Place = tuple[int, int, int]
"""Where a member's data starts in the tar, its bytes, and its XXH3-64."""

_FLUSH_BYTES = 1 << 20  # 128 KB to 4 MB are equally fast; less stays in the processor's cache
_BEGIN_BYTES = 8 << 20
"""Written bytes that the kernel is then asked to bring to the disk, while more are packed, so that
``finish`` waits for the last of them alone: two workers wrote 2 GB in 0.65 s instead of 0.80."""
_ZEROS = bytes(BLOCK)
_SMALL = 1 << 20  # most files: two reads tell all of them, and no look at their size is needed
_READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe without a writer must not block


class TarWriter:
    """A tar being written to a local file.

    A member goes in by two steps: ``fill``, ``fill_file`` or ``fill_range`` puts its data behind
    the room for its header, ``seal`` writes the header. Data that is never sealed leaves no trace,
    so a member can be looked at, or turn out to be unreadable, before it has a name.

    All members pass through one piece of memory that is used again and again: fresh memory for
    each costs more (page faults) than reading, hashing and writing it together. The file's
    checksum runs along; only what went past that memory (a streamed member) or was taken back
    makes ``finish`` read the file again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        """Bytes sealed so far: where the next member's header will lie."""
        with map_os_errors("write", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._room = memoryview(mmap.mmap(-1, _FLUSH_BYTES + LARGE + 4 * BLOCK))
        self._more = (memoryview(bytearray(1)),)  # where a byte goes that a file has after all
        self._begun = 0  # bytes that are on their way to the disk
        self._flushed = 0  # bytes of the tar that are in the file; the rest is in the room
        self._hash = xxh3_64()
        self._hash_is_stale = False

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def fill(self, data: bytes) -> int:
        """Put the next member's data, at most ``LARGE`` bytes, in its place; returns its size."""
        start = self.size - self._flushed + BLOCK
        size = len(data)
        self._room[start : start + size] = data
        return size

    def add_file(self, name: bytes, path: str) -> Place | None:
        """Append a local file whole if it is small, not empty, and can be read; returns its place.

        None where it is not, and then nothing was appended: ``fill_file`` says why. Nearly every
        member of a pack goes through here, so a file that two reads tell all of is not looked at.
        """
        start = self.size - self._flushed + BLOCK
        try:
            fd = os.open(path, _READ_ONLY)
            try:
                size = os.readv(fd, (self._room[start : start + _SMALL],))
                if not 0 < size < _SMALL or os.readv(fd, self._more):
                    return None
            finally:
                os.close(fd)
        except OSError:
            return None
        return self.seal(name, size)

    def fill_file(self, path: str) -> int:
        """Read the next member's data from a local file; returns its size.

        Where that is more than ``LARGE``, the file is to be streamed instead.

        Raises:
            StoreError: the file is not there, not a regular file, or can't be read.
        """
        with map_os_errors("read", path):
            fd = os.open(path, _READ_ONLY)
            try:
                status = os.fstat(fd)
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    raise StoreError(f"cannot read {path}: it is a device or a pipe, not a file")
                return status.st_size if status.st_size > LARGE else self._read_all(fd)
            finally:
                os.close(fd)

    def _read_all(self, fd: int) -> int:
        start = self.size - self._flushed + BLOCK
        size = 0
        while size <= LARGE:
            more = os.readv(fd, (self._room[start + size : start + LARGE + 1],))
            if not more:
                break
            size += more
        return size

    def fill_range(self, fd: int, url: str, start: int, size: int) -> None:
        """Read the next member's data, at most ``LARGE`` bytes, from a place in an open file.

        Raises:
            CorruptError: the file ends before.
            StoreError: it can't be read.
        """
        at = self.size - self._flushed + BLOCK
        done = 0
        with map_os_errors("read", url):
            while done < size:
                more = os.preadv(fd, (self._room[at + done : at + size],), start + done)
                if not more:
                    raise short_range(url, start, start + size, os.fstat(fd).st_size)
                done += more

    def head(self, size: int) -> bytes:
        """The first bytes of the ``size`` that were filled in, enough to tell what they are."""
        start = self.size - self._flushed + BLOCK
        return bytes(self._room[start : start + min(size, 4096)])

    def seal(self, name: bytes, size: int) -> Place:
        """Make what was filled in a member; returns its place."""
        header_at = self.size - self._flushed
        start = header_at + BLOCK
        stop = start + size
        room = self._room
        digest = checksum(room[start:stop])
        room[header_at:start] = member_header(name, size, digest)
        end = start + padded(size)
        room[stop:end] = _ZEROS[: end - stop]
        offset = self.size + BLOCK
        self.size += end - header_at
        if end >= _FLUSH_BYTES:
            self._flush()
        return offset, size, digest

    def add_stream(self, name: bytes, chunks: Iterator[bytes]) -> Place:
        """Append a member too large to be held, chunk by chunk; returns its place.

        When this raises, ``rewind`` drops the part that was written.

        Raises:
            ConfigError: the member has 8 GiB or more.
        """
        self._flush()
        self._hash_is_stale = True
        header_at, digest, size = self.size, xxh3_64(), 0
        self._write(_ZEROS)
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            self._write(chunk)
        header = member_header(name, size, digest.intdigest())
        self._write(bytes(padded(size) - size))
        with map_os_errors("write", self.path):
            os.pwrite(self._fd, header, header_at)
        self.size = self._flushed
        return header_at + BLOCK, size, digest.intdigest()

    def rewind(self, size: int) -> None:
        """Drop all that was appended after the tar had ``size`` bytes."""
        if size < self._flushed:
            self._hash_is_stale = True
            self._flushed = size
            self._begun = min(self._begun, size)
            os.ftruncate(self._fd, size)
            os.lseek(self._fd, size, os.SEEK_SET)
        self.size = size

    def finish(self) -> tuple[int, int]:
        """End the tar and bring it to the disk; returns its size and XXH3-64."""
        self._flush()
        self._hash.update(END_OF_TAR)
        self._write(END_OF_TAR)
        self.size = self._flushed
        with map_os_errors("write", self.path):
            os.fsync(self._fd)
            if os.fstat(self._fd).st_size != self.size:
                raise StoreError(f"{self.path} has not the size that was written: another writer?")
            return self.size, self._reread() if self._hash_is_stale else self._hash.intdigest()

    def _flush(self) -> None:
        part = self._room[: self.size - self._flushed]
        if part:
            self._hash.update(part)
            self._write(part)

    def _write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``; the kernel may take less at a time (a signal, a full disk)."""
        self._flushed += len(data)
        with map_os_errors("write", self.path):
            done = os.write(self._fd, data)
            while done < len(data):
                data = memoryview(data)[done:]
                done = os.write(self._fd, data)
            if self._flushed - self._begun >= _BEGIN_BYTES:
                # Linux starts to write dirty pages back before it looks for clean ones to drop.
                length = self._flushed - self._begun
                os.posix_fadvise(self._fd, self._begun, length, os.POSIX_FADV_DONTNEED)
                self._begun = self._flushed

    def _reread(self) -> int:
        digest = xxh3_64()
        os.lseek(self._fd, 0, os.SEEK_SET)
        while size := os.readv(self._fd, (self._room,)):
            digest.update(self._room[:size])
        return digest.intdigest()
