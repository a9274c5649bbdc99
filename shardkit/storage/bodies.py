"""Reading a far object to its end: a body that breaks is asked for again from its byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shardkit.errors import StoreError, TransientError
from shardkit.storage.protocol import Chunk
from shardkit.storage.retry import Patience, resumed

__all__ = ["Body", "OpenBody", "read_body", "read_versioned", "stream_body"]


@dataclass(frozen=True, slots=True)
class Body:
    """An answer whose bytes are still to come.

    Attributes:
        version: of the object, as far as the answer tells; "" unknown.
        stop: the byte of the object before which the body will end; None if not told.
        chunks: the bytes; raises ``TransientError`` where the connection breaks.
        is_partial: the server said that this is a part of the object (status 206).
    """

    version: str
    stop: int | None
    chunks: Iterator[Chunk]
    is_partial: bool = False


OpenBody = Callable[[int, "int | None"], Body]
"""Ask for bytes ``[start, stop)`` of one object; ``stop=None`` is its end."""


def stream_body(
    url: str, open_body: OpenBody, patience: Patience, start: int, stop: int | None
) -> Iterator[Chunk]:
    """Yield bytes ``[start, stop)`` in order, resuming as often as patience allows.

    Raises:
        StoreError: the object was replaced while it was read; half of each would be neither.
        TransientError: it kept breaking.
    """
    version: str | None = None
    end = stop

    def open_at(position: int) -> Iterator[Chunk]:
        nonlocal version, end
        if position == end:
            return
        body = open_body(position, end)
        if version is None:
            version, end = body.version, body.stop if end is None else end
        elif body.version != version:
            raise StoreError(
                f"{url} was replaced while it was read (version {version} became "
                f"{body.version}); read it again"
            )
        for chunk in body.chunks:
            position += len(chunk)
            yield chunk
        if end is not None and position != end:
            raise TransientError(f"{url}: the body ended at byte {position} of {end}")

    yield from resumed(patience, url, open_at, start)


def read_body(
    url: str, open_body: OpenBody, patience: Patience, start: int = 0, stop: int | None = None
) -> bytes:
    """Return bytes ``[start, stop)`` in one piece."""
    chunks = [bytes(chunk) for chunk in stream_body(url, open_body, patience, start, stop)]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_versioned(url: str, open_body: OpenBody, patience: Patience) -> tuple[bytes, str]:
    """Return a whole object, and its version ("" unknown)."""
    versions: list[str] = []

    def open_noted(start: int, stop: int | None) -> Body:
        body = open_body(start, stop)
        versions.append(body.version)
        return body

    return read_body(url, open_noted, patience), versions[-1]
