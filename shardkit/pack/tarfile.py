"""Writing one tar: headers, data and the running checksum, in few system calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType

from xxhash import xxh3_64

from shardkit.errors import StoreError
from shardkit.format.tar import BLOCK, END_OF_TAR, checksum, member_header, padded, padding

__all__ = ["TarWriter"]

_FLUSH_BYTES = 4 << 20  # one writev of 4 MB costs what the copy costs; more only costs memory
_MAX_BUFFERS = 1_000  # below Linux's IOV_MAX of 1,024
_JOIN_BELOW = 8 << 10  # joining three small buffers is cheaper than hashing and queueing three


class TarWriter:
    """A tar being written to a new local file.

    The file's checksum runs along while the data is warm, so nothing is read back; only a member
    that was streamed (its header is written after its data) makes ``finish`` read the file again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._hash = xxh3_64()
        self._streamed = False
        self._queue: list[bytes] = []
        self._queued_bytes = 0

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def add(self, name: bytes, data: bytes) -> tuple[int, int, int]:
        """Append a member; returns its data's offset, size and XXH3-64."""
        size = len(data)
        digest = checksum(data)
        header = member_header(name, size, digest)
        offset = self.size + BLOCK
        if size < _JOIN_BELOW:
            block = header + data + padding(size)
            self._hash.update(block)
            self._queue.append(block)
        else:
            pad = padding(size)
            self._hash.update(header)
            self._hash.update(data)
            self._hash.update(pad)
            self._queue += (header, data, pad)
        total = BLOCK + padded(size)
        self.size += total
        self._queued_bytes += total
        if self._queued_bytes >= _FLUSH_BYTES or len(self._queue) >= _MAX_BUFFERS - 3:
            self._flush()
        return offset, size, digest

    def add_stream(self, name: bytes, chunks: Iterator[bytes]) -> tuple[int, int, int]:
        """Append a member too large for memory, chunk by chunk; returns as ``add`` does."""
        self._flush()
        self._streamed = True
        header_at, digest, size = self.size, xxh3_64(), 0
        os.lseek(self._fd, header_at + BLOCK, os.SEEK_SET)
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            _write_all(self._fd, [chunk])
        header = member_header(name, size, digest.intdigest())
        _write_all(self._fd, [padding(size)])
        os.pwrite(self._fd, header, header_at)
        self.size = header_at + BLOCK + padded(size)
        return header_at + BLOCK, size, digest.intdigest()

    def rewind(self, size: int) -> None:
        """Drop all that was appended after the tar had ``size`` bytes (a stream that failed)."""
        self._flush()
        self._streamed = True
        self.size = size
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)

    def finish(self) -> tuple[int, int]:
        """Close the tar and bring it to the disk; returns its size and XXH3-64."""
        self._hash.update(END_OF_TAR)
        self._queue.append(END_OF_TAR)
        self.size += len(END_OF_TAR)
        self._flush()
        os.fsync(self._fd)
        if os.fstat(self._fd).st_size != self.size:
            raise StoreError(f"{self.path} has not the size that was written: another writer?")
        return self.size, self._reread() if self._streamed else self._hash.intdigest()

    def _flush(self) -> None:
        if self._queue:
            _write_all(self._fd, self._queue)
            self._queue = []
            self._queued_bytes = 0

    def _reread(self) -> int:
        digest = xxh3_64()
        os.lseek(self._fd, 0, os.SEEK_SET)
        while chunk := os.read(self._fd, _FLUSH_BYTES):
            digest.update(chunk)
        return digest.intdigest()


def _write_all(fd: int, buffers: list[bytes]) -> None:
    """Write every buffer whole; the kernel may take less at a time (a signal, a full disk)."""
    total = sum(map(len, buffers))
    done = os.writev(fd, buffers)
    if done == total:
        return
    rest = memoryview(b"".join(buffers))[done:]
    while rest:
        rest = rest[os.write(fd, rest) :]
