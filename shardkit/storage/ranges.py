"""Half-open byte ranges: which to fetch together, and how to cut them out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shardkit.errors import ConfigError
from shardkit.storage.retry import end_waits_with, ends_waits_here

__all__ = ["COALESCE_GAP", "MAX_SPAN", "Span", "coalesce", "fetch_ranges"]

COALESCE_GAP = 256 << 10
"""Bytes one rather reads and drops than pays a request for: at ~100 MB/s a stream and ~3 ms to
the first byte, a request costs as much as about 300 KB."""

MAX_SPAN = 16 << 20
"""A span is not grown beyond this, so that a dense list of ranges still is fetched in parallel."""


@dataclass(frozen=True, slots=True)
class Span:
    """One request: bytes ``[start, stop)``, and the positions of the ranges that it covers."""

    start: int
    stop: int
    members: tuple[int, ...]


def coalesce(
    ranges: Sequence[tuple[int, int]], *, gap: int = COALESCE_GAP, max_span: int = MAX_SPAN
) -> list[Span]:
    """Group ranges less than ``gap`` bytes apart; each range lies wholly in one span.

    Empty ranges are in no span. Ranges may overlap and come in any order.
    """
    for start, stop in ranges:
        if not 0 <= start <= stop:
            raise ConfigError(f"range ({start}, {stop}): needs 0 <= start <= stop")
    order = sorted((i for i, r in enumerate(ranges) if r[0] < r[1]), key=lambda i: ranges[i])
    spans: list[Span] = []
    members: list[int] = []
    first = last = 0
    for i in order:
        start, stop = ranges[i]
        if members and start - last <= gap and max(last, stop) - first <= max_span:
            members.append(i)
            last = max(last, stop)
            continue
        if members:
            spans.append(Span(first, last, tuple(members)))
        members, first, last = [i], start, stop
    if members:
        spans.append(Span(first, last, tuple(members)))
    return spans


def fetch_ranges(
    ranges: Sequence[tuple[int, int]],
    read: Callable[[int, int], bytes],
    *,
    num_threads: int = 8,
    gap: int = COALESCE_GAP,
) -> list[bytes]:
    """Read all ranges through ``read(start, stop)``, one call a span, several at once."""
    spans = coalesce(ranges, gap=gap)
    found = [b""] * len(ranges)

    def fill(span: Span) -> None:
        data = read(span.start, span.stop)
        for i in span.members:
            start, stop = ranges[i]
            whole = start == span.start and stop == span.stop
            found[i] = data if whole else data[start - span.start : stop - span.start]

    if len(spans) <= 1 or num_threads <= 1:
        for span in spans:
            fill(span)
        return found
    with ThreadPoolExecutor(
        min(num_threads, len(spans)),
        "shardkit-ranges",
        initializer=end_waits_with,
        initargs=(ends_waits_here(),),
    ) as pool:
        for _ in pool.map(fill, spans):
            pass
    return found
