"""Where a member's bytes are: in memory, in a file, or far away and read by ranges.

Decoders that need not see the whole member (video, long audio) are handed a source instead of
bytes, and read what they use. All sources here are small, picklable and thread-safe; they open
what they need for each read and keep nothing open.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from shardkit.errors import CorruptError, NotFoundError, StoreError

__all__ = [
    "BytesSource",
    "Data",
    "FileSource",
    "RangeStore",
    "Source",
    "StoreSource",
    "as_source",
    "read_all",
]

Data: TypeAlias = bytes | bytearray | memoryview


@runtime_checkable
class Source(Protocol):
    """Bytes of one member, read by ranges.

    ``size`` is the member's length in bytes, ``name`` says in messages where it is.
    ``read(start, stop)`` returns exactly ``stop - start`` bytes for ``0 <= start <= stop <=
    size`` and raises a ``StoreError`` or ``CorruptError`` otherwise. Picklable; ``read`` may be
    called from several threads at once.
    """

    @property
    def name(self) -> str:
        """Where the member is, for messages."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read(self, start: int, stop: int) -> Data:
        """Return the bytes from ``start`` up to ``stop``."""
        ...


class RangeStore(Protocol):
    """The one method of a store that a remote source uses."""

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return the bytes of an object from ``start`` up to ``stop``."""
        ...


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A member that is in memory. ``memoryview`` slices are handed out without a copy."""

    data: Data
    name: str = "bytes"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def read(self, start: int, stop: int) -> memoryview:
        """Return a view of ``[start, stop)``."""
        _check_range(self, start, stop)
        return memoryview(self.data)[start:stop]

    def __reduce__(self) -> tuple[type[BytesSource], tuple[bytes, str]]:
        return BytesSource, (bytes(self.data), self.name)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A local file, or the range of ``size`` bytes from ``start`` of one (a member of a tar)."""

    path: str
    start: int = 0
    size: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.size < 0:
            try:
                length = os.stat(self.path).st_size
            except OSError as error:
                raise _mapped(error, self.path) from error
            object.__setattr__(self, "size", length - self.start)

    @property
    def is_whole(self) -> bool:
        """Is the member the whole file?"""
        try:
            return self.start == 0 and os.stat(self.path).st_size == self.size
        except OSError as error:
            raise _mapped(error, self.path) from error

    @property
    def name(self) -> str:
        """The path, and the range where it is a part of the file."""
        return f"{self.path}[{self.start}:{self.start + self.size}]" if self.start else self.path

    def read(self, start: int, stop: int) -> bytes:
        """Read ``[start, stop)`` of the member."""
        _check_range(self, start, stop)
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), stop - start, self.start + start)
        except OSError as error:
            raise _mapped(error, self.path) from error
        return _whole(data, self, start, stop)


@dataclass(frozen=True, slots=True)
class StoreSource:
    """An object of a store, or the range of ``size`` bytes from ``start`` of one."""

    store: RangeStore
    url: str
    size: int
    start: int = 0

    @property
    def name(self) -> str:
        """The URL, and the range where it is a part of the object."""
        return f"{self.url}[{self.start}:{self.start + self.size}]" if self.start else self.url

    def read(self, start: int, stop: int) -> bytes:
        """Fetch ``[start, stop)`` of the member in one request."""
        _check_range(self, start, stop)
        data = self.store.get_range(self.url, self.start + start, self.start + stop)
        return _whole(data, self, start, stop)


def as_source(member: Source | Data | str | os.PathLike[str]) -> Source:
    """Turn bytes or a local path into a source; a source stays what it is."""
    if isinstance(member, bytes | bytearray | memoryview):
        return BytesSource(member)
    if isinstance(member, str | os.PathLike):
        return FileSource(os.fspath(member).removeprefix("file://"))
    return member


def read_all(member: Source | Data | str | os.PathLike[str]) -> Data:
    """Return all of a member's bytes; those in memory are not copied."""
    if isinstance(member, bytes | bytearray | memoryview):
        return member
    source = as_source(member)
    return source.read(0, source.size)


def _check_range(source: Source, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= source.size:
        raise StoreError(
            f"bytes {start} to {stop} were asked of {source.name}, which has {source.size}"
        )


def _whole(data: bytes, source: Source, start: int, stop: int) -> bytes:
    if len(data) != stop - start:
        raise CorruptError(
            f"{source.name} gave {len(data)} bytes for the range {start} to {stop} "
            f"({stop - start} bytes): the file was cut or changed; verify it or fetch it again"
        )
    return data


def _mapped(error: OSError, path: str) -> StoreError:
    kind = NotFoundError if isinstance(error, FileNotFoundError) else StoreError
    return kind(f"cannot read {path!r}: {error.strerror or error}")
