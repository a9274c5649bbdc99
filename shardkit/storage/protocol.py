"""What a store is: the protocol that every client of bytes keeps, and what it says of an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shardkit.storage.plain_get import PlainRequest

__all__ = ["Chunk", "ObjectInfo", "Store"]

Chunk = bytes | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as its store knows it.

    Attributes:
        url: full URL, spelled like the one that was asked for.
        size: bytes.
        version: changes when the content does: the etag, or ``size-mtime``; ``""`` when the
            store tells neither (some web servers), and ``size`` is -1 when it tells no size.
    """

    url: str
    size: int
    version: str


class Store(Protocol):
    """Objects by full URL. Thread-safe; picklable; opens lazily, and anew in every process.

    Every method raises ``NotFoundError`` for what is not there (never retried),
    ``TransientError`` when the far end kept failing past all retries, and ``StoreError`` for
    anything else that is final (rights, a full disk). No third-party error leaves a store.
    """

    def stat(self, url: str) -> ObjectInfo:
        """Return size and version of one object; a folder is not an object."""
        ...

    def get(self, url: str) -> bytes:
        """Return a whole object."""
        ...

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        """Return a whole object, and its version as ``stat`` tells it; one request if it can be."""
        ...

    def requests(self, urls: Sequence[str]) -> Sequence[PlainRequest | None]:
        """Return what asks for each whole object over plain HTTP, see ``plain_get.py``.

        ``None`` where that is not how it can be had.
        """
        ...

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return exactly ``stop - start`` bytes; ``CorruptError`` if the object ends before."""
        ...

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return each half-open range; near ones travel together, far ones in parallel."""
        ...

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Stream ``[start, stop)`` in order; a broken body goes on at its byte."""
        ...

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        """Hand ``[start, stop)`` to ``write`` in order; for big objects, at the least cost.

        Chunks may be views of a buffer that is used again: they are good during the call only.
        """
        ...

    def put(self, url: str, data: bytes) -> None:
        """Write an object: under its name there is the old content or the new, never a part."""
        ...

    def put_file(self, url: str, path: str) -> None:
        """Write a local file's content as an object, in parts if it is big; visible at the end."""
        ...

    def list(self, url: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder, at any depth, sorted by URL; nothing there: nothing."""
        ...

    def delete(self, url: str) -> None:
        """Delete one object; one that is not there counts as deleted."""
        ...
