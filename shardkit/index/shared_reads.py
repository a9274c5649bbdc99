"""Ranges of far index files, fetched once a node: whichever process asks first fetches for all."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from xxhash import xxh3_64_hexdigest

from shardkit.storage.cache import Cache
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local

__all__ = ["SharedReads"]

_SHARE = 8
"""Ranges that need more than this part of the cache's limit are fetched by each process for itself:
they would push out what they are the index of."""


@dataclass(frozen=True, slots=True)
class SharedReads:
    """Reads ranges of objects, through the node's cache where there is one. Picklable.

    Attributes:
        store: where the objects are.
        cache: where their ranges are kept.
        token: stands for the versions of objects that tell none: they are shared by the processes
            to which this very value was sent, and by no later run.
    """

    store: Store
    cache: Cache | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def get_ranges(
        self, url: str, version: str, ranges: Sequence[tuple[int, int]]
    ) -> Sequence[bytes]:
        """Return each range of an object; together they are one entry of the cache.

        Args:
            url: of the object.
            version: of its contents; "" where that is not known.
            ranges: half-open.
        """
        sizes = [stop - start for start, stop in ranges]
        cache = self.cache
        if cache is None or is_local(url) or not self._fits(sum(sizes)):
            return self.store.get_ranges(url, ranges)
        places = xxh3_64_hexdigest(repr(list(ranges)).encode())
        data = cache.get(
            f"{url}\n{version or f'as opened by {self.token}'}\nranges {places}",
            lambda: b"".join(self.store.get_ranges(url, ranges)),
        )
        return [data[start:stop] for start, stop in pairwise(accumulate(sizes, initial=0))]

    def get_range(self, url: str, version: str, start: int, stop: int) -> bytes:
        """Return one range."""
        return self.get_ranges(url, version, [(start, stop)])[0]

    def _fits(self, num_bytes: int) -> bool:
        limit = None if self.cache is None else self.cache.limit
        return limit is None or num_bytes <= limit // _SHARE
