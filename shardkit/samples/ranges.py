"""Single samples of far shards, by ranged reads: ahead, concurrent, in order, through the cache.

For orders and filters that want little of a shard. A sample's wanted members are one request, from
the first byte of the first to the last of the last; it is proved by its members' checksums before
it is kept, and fetched again if it fails them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from shardkit.errors import CorruptError
from shardkit.format.tar import checksum
from shardkit.index.shards import ShardLayout, ShardSet
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.protocol import Store

__all__ = ["RangeShard", "RangeStream"]

_Place = tuple[int, int]


class RangeStream:
    """Fetches the samples at these places; they are read in the same order, each once or not.

    Args:
        store: where shards are.
        cache: keeps what was fetched.
        places: (shard, row) in the order of reading.
        layout: gives a shard's layout.
        dataset: the shards.
        exts: members to fetch.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        places: Iterable[_Place],
        layout: Callable[[int], ShardLayout],
        dataset: ShardSet,
        exts: Sequence[str],
    ) -> None:
        self._layout = layout
        self._shard_url = dataset.shard_url
        self._version = dataset.version
        self._exts = frozenset(exts)
        self._results = fetch_in_order(store, self._requests(places), cache=cache)
        self._place: _Place | None = None
        self._data = b""
        self._start = 0

    def __enter__(self) -> RangeStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._results.close()

    def shard(self, shard: int) -> RangeShard:
        """A shard to read from, in the order of the places."""
        return RangeShard(self, shard, self._shard_url(shard), self._layout(shard))

    def read(self, place: _Place, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of a shard, which belong to the sample at ``place``."""
        while self._place != place:
            result = next(self._results)
            self._place = result.request.tag
            self._data = result.unwrap()
            self._start = result.request.start
        return self._data[start - self._start : stop - self._start]

    def _requests(self, places: Iterable[_Place]) -> Iterator[Request]:
        for shard, row in places:
            layout = self._layout(shard)
            spans = {
                ext: (int(starts[row]), int(layout.stops[ext][row]))
                for ext, starts in layout.starts.items()
                if ext in self._exts and starts[row] >= 0
            }
            if not spans:
                continue  # nothing to fetch: metadata alone is wanted
            start = min(span[0] for span in spans.values())
            yield Request(
                self._shard_url(shard),
                version=self._version(shard),
                start=start,
                stop=max(span[1] for span in spans.values()),
                tag=(shard, row),
                check=functools.partial(self._check, shard, row, start, spans),
            )

    def _check(
        self, shard: int, row: int, start: int, spans: dict[str, tuple[int, int]], data: bytes
    ) -> None:
        layout = self._layout(shard)
        view = memoryview(data)
        for ext, (first, last) in spans.items():
            sums = layout.checksums.get(ext)
            if sums is not None and checksum(view[first - start : last - start]) != sums[row]:
                raise CorruptError(
                    f"{self._shard_url(shard)}: key {layout.keys[row]!r}: the data of {ext!r} at "
                    f"offset {first:,} fails its checksum, fetched several times; run `shardkit "
                    "verify` with --repair"
                )


class RangeShard:
    """See ``ReadableShard``: a shard of which only samples are fetched."""

    buffer = None

    def __init__(self, stream: RangeStream, shard: int, url: str, layout: ShardLayout) -> None:
        self.url = url
        self.layout = layout
        self._stream = stream
        self._shard = shard

    def maps(self, ext: str) -> bool:
        """Never: there is no whole tar."""
        del ext
        return False

    def reader(self, ext: str) -> Callable[[int, int, int], bytes]:
        """See ``ReadableShard``."""
        del ext
        return lambda row, start, stop: self._stream.read((self._shard, row), start, stop)

    def settle(self) -> None:
        """See ``ReadableShard``."""
