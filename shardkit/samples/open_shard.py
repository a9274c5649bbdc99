"""A shard that is open for reading, and proves every member the first time it gives it out."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from shardkit.errors import CorruptError, NotFoundError, StoreError
from shardkit.format.tar import checksum
from shardkit.index.shards import ShardLayout

__all__ = ["LocalFile", "OpenFile", "OpenShard", "Verify"]

Verify = Literal["always", "once", "never"]


class OpenFile(Protocol):
    """A file that is held open: a local one, or a cache's pinned entry."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


class LocalFile:
    """A file of this machine, open for reading."""

    def __init__(self, path: str, url: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{url} does not exist, though it is one of the shards; copy the dataset again"
            ) from error
        except OSError as error:
            raise StoreError(f"{url} can't be read: {error.strerror}") from error

    def fileno(self) -> int:
        """See ``OpenFile``."""
        return self._fd

    def close(self) -> None:
        """See ``OpenFile``."""
        os.close(self._fd)


class OpenShard:
    """A local tar, its layout, and which of its members have been proved.

    Members are sliced from a map, which never loses to ``pread`` and wins by 3 to 1 once its pages
    are there (``benchmarks/run.py read``). They are held against the sidecar's checksums until
    each was seen once (``verify="once"``), so that proving them costs no pass of its own. Stays
    valid while it is referenced, even if the file is unlinked.

    Args:
        file: the tar, open; a local one is closed when it is mapped, a cache's entry, which is
            pinned by being open, when nobody references the shard any more.
        url: as messages and ``__url__`` name it.
        layout: places of its N samples.
        num_bytes: size that the tar must have; -1 where that is not known.
        verify: "always", "once" or "never".
        on_verified: called once when every member has been proved.

    Raises:
        CorruptError: it has another size.
    """

    def __init__(
        self,
        file: OpenFile,
        url: str,
        layout: ShardLayout,
        num_bytes: int,
        *,
        verify: Verify = "once",
        on_verified: Callable[[], None] | None = None,
    ) -> None:
        self.url = url
        self.layout = layout
        close = weakref.finalize(self, file.close)
        size = os.fstat(file.fileno()).st_size
        if num_bytes not in (size, -1):
            raise CorruptError(
                f"{url} has {size:,} bytes instead of {num_bytes:,}: it was cut or is another "
                "file; copy it again, or run `shardkit verify` with --repair"
            )
        self.buffer: Any = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if isinstance(file, LocalFile):
            close()
        self._forget = verify == "once"
        self._on_verified = on_verified
        self._unproved: dict[str, npt.NDArray[np.bool_]] = {}
        if verify != "never":
            self._unproved = {ext: layout.starts[ext] >= 0 for ext in layout.checksums}

    def maps(self, ext: str) -> bool:
        """Whether plain slices of ``buffer`` are the way to read this member."""
        return ext not in self._unproved

    def reader(self, ext: str) -> Callable[[int, int, int], bytes]:
        """A function from row, start and stop to the member's bytes.

        It raises ``CorruptError`` where they are cut or fail their checksum.
        """
        buffer = self.buffer

        def read(row: int, start: int, stop: int) -> bytes:
            del row
            return buffer[start:stop]  # type: ignore[no-any-return]

        if ext not in self._unproved:
            return read
        expected, unproved = self.layout.checksums[ext], self._unproved[ext]

        def prove(row: int, start: int, stop: int) -> bytes:
            data = read(row, start, stop)
            if unproved[row]:
                if checksum(data) != expected[row]:
                    raise self._corrupt(row, ext, start, "fails its checksum")
                if self._forget:
                    unproved[row] = False
            return data

        return prove

    def settle(self) -> None:
        """Note which members are proved by now; called between blocks, not per sample."""
        if not self._unproved or not self._forget:
            return
        for ext in [ext for ext, left in self._unproved.items() if not left.any()]:
            self._unproved.pop(ext, None)
        if not self._unproved and self._on_verified is not None:
            self._on_verified()
            self._on_verified = None

    def _corrupt(self, row: int, ext: str, start: int, what: str) -> CorruptError:
        return CorruptError(
            f"{self.url}: key {self.layout.keys[row]!r}: the data of {ext!r} at offset {start:,} "
            f"{what}; copy the shard again, or run `shardkit verify` with --repair"
        )
