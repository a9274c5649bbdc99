"""The store for buckets of S3 where obstore can't be used: what is read comes through signed URLs.

That is a process which was forked after its parent had used obstore, as loader workers are. s3fs,
which needs five times as long for a small object, only writes and lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from shardkit.storage.fsspec_store import FsspecStore
from shardkit.storage.http_store import HttpStore
from shardkit.storage.options import Options
from shardkit.storage.plain_get import PlainRequest
from shardkit.storage.protocol import Chunk, ObjectInfo
from shardkit.storage.signing import Signer

__all__ = ["SignedStore"]


class SignedStore:
    """``s3://`` URLs. See ``Store`` for the contract."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._reads = HttpStore(replace(options, headers={}), Signer(options).sign)
        self._writes = FsspecStore(options)

    def __reduce__(self) -> tuple[type[SignedStore], tuple[Options]]:
        return SignedStore, (self._options,)

    def stat(self, url: str) -> ObjectInfo:
        """Return size and etag."""
        return self._reads.stat(url)

    def get(self, url: str) -> bytes:
        """Return a whole object."""
        return self._reads.get(url)

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        """Return a whole object, and its version as the answer tells it."""
        return self._reads.get_versioned(url)

    def requests(self, urls: Sequence[str]) -> Sequence[PlainRequest | None]:
        """Return what asks plainly for each object."""
        return self._reads.requests(urls)

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``."""
        return self._reads.get_range(url, start, stop)

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return each range; near ones in one request, several requests at once."""
        return self._reads.get_ranges(url, ranges)

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Stream ``[start, stop)``."""
        return self._reads.get_chunks(url, start, stop)

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        """Hand ``[start, stop)`` to ``write`` through one small buffer."""
        self._reads.stream_to(url, write, start, stop)

    def put(self, url: str, data: bytes) -> None:
        """Write an object."""
        self._writes.put(url, data)

    def put_file(self, url: str, path: str) -> None:
        """Write a local file's content."""
        self._writes.put_file(url, path)

    def list(self, url: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder, sorted by key."""
        return self._writes.list(url)

    def delete(self, url: str) -> None:
        """Delete one object if it is there."""
        self._writes.delete(url)
