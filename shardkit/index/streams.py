"""Objects as files to read from front to back, decompressed on the way."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from shardkit.errors import CorruptError
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["ChunkReader", "codec_of", "native_buffer", "native_path", "open_stream"]

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
)


def codec_of(head: bytes) -> str | None:
    """Return how bytes that start like this are compressed: by content, never by name."""
    return next((codec for magic, codec in _MAGIC if head.startswith(magic)), None)


def open_stream(store: Store, url: str) -> BinaryIO:
    """Open an object for one pass; close it when done.

    Raises:
        NotFoundError: there is no such object.
        CorruptError: at the place where the compressed stream breaks.
    """
    if is_local(url):
        store.stat(url)  # so that what is missing raises our own error
        raw: io.BufferedReader = open(local_path(url), "rb")  # noqa: SIM115 - the caller closes
    else:
        raw = io.BufferedReader(ChunkReader(store.get_chunks(url)), 1 << 20)
    codec = codec_of(raw.peek(8)[:8])
    if codec is None:
        return raw
    if codec == "xz":
        return cast("BinaryIO", io.BufferedReader(_Unpacked(lzma.open(raw), url), 1 << 20))
    unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    return cast("BinaryIO", io.BufferedReader(_Unpacked(unpacked, url), 1 << 20))


@contextlib.contextmanager
def native_path(file: BinaryIO, spare: str) -> Iterator[str]:
    """The path of a plain local file; of any other one that of a copy, which goes at the end.

    For Arrow's readers that have threads of their own. To read a Python file, these ask for the
    interpreter: a reader that is dropped half-way waits for them while they wait for it, for ever,
    and when the interpreter ends meanwhile, the process aborts.
    """
    raw = getattr(file, "raw", None)
    if isinstance(raw, io.FileIO):
        yield os.fspath(raw.name)
        return
    with open(spare, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    try:
        yield spare
    finally:
        os.unlink(spare)


def native_buffer(data: bytes) -> pa.Buffer:
    """Bytes in memory of Arrow's own: its threads ask the interpreter for nothing to free it."""
    sink = pa.BufferOutputStream()
    sink.write(data)
    return sink.getvalue()


class ChunkReader(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what has arrived."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Unpacked(io.RawIOBase):
    """A decompressing stream whose errors name the object."""

    def __init__(self, stream: Any, url: str) -> None:
        super().__init__()
        self._stream = stream
        self._url = url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
            raise CorruptError(f"{self._url} can't be decompressed: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
