"""Samples of shards: local ones read where they lie, far ones through the node's cache.

A shard is opened when it is first needed, and kept open with others as long as room allows. Far
shards are fetched ahead, whole, in the order in which they will be needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode.source import FileSource, Source, StoreSource
from shardkit.errors import ConfigError, ShardkitError
from shardkit.index.shards import ShardLayout, ShardSet
from shardkit.samples.gather import ReadableShard, samples_of
from shardkit.samples.open_shard import LocalFile, OpenShard, Verify
from shardkit.samples.ranges import RangeStream
from shardkit.samples.source import Later, Place, Places, Sample
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request
from shardkit.storage.filesystems import is_network_path
from shardkit.storage.protocol import Store
from shardkit.storage.shards import LOOKAHEAD_BYTES, ShardFetcher
from shardkit.storage.urls import is_local, local_path
from shardkit.transforms.onfields import Names, names_of

__all__ = ["ShardSource", "default_buffer_size", "sparse_shards"]

_ROWS_AT_ONCE = 4_096
"""Rows of a block: enough that the work per block vanishes, few enough to start at once."""
_MAX_OPEN = 256
"""Shards kept open: a buffer of 10,000 samples spans ten shards of the usual size; the kernel
allows 65,530 maps a process."""
_OPEN_FILES = 0.5
"""Share of the files that a process may have open, often 1,024, which the shards of all its data
sets may be; the rest is for everybody else."""
_MAX_AT_ONCE = 64
"""Shards opened before the first sample of a block is given: ~2 ms each. Only "global" over very
many shards has as many in a block, one a sample."""
_MAX_ROWS = 4_000_000
"""Rows of the layouts kept: about 100 bytes each, so 400 MB at the most."""
_MOST_IDLE = 1_000
"""Pieces walked ahead at once that need no further shard: some 20 ms. A pass whose shards are all
near would be walked to its end, and passes that have none would be walked for ever."""


_SPARSE = 0.25
"""Share of a shard's samples below which it is not fetched whole: a ranged read of 100 KB costs
about four times its bytes in a whole shard (benchmarks/storage_clients.py)."""


_reading: weakref.WeakValueDictionary[int, ShardSource] = weakref.WeakValueDictionary()
"""The sources of this process that have opened a shard, by id: they share ``_OPEN_FILES``. No
WeakSet: one that another thread adds to can't be walked."""


class ShardSource:
    """See ``Source``; groups are shards.

    Args:
        dataset: the shards.
        store: where far ones are read from.
        cache: where they are kept, and where it is noted which local ones have been proved.
        exts: members to give; default all but the tar's own copy of the metadata.
        metadata: metadata columns to give; default all.
        verify: see ``OpenShard``.
        lookahead_bytes: how far ahead far shards are fetched.
        sparse: bool [shards]: far shards of which single samples are fetched, by ranges, not the
            whole; default none.
        ranged: members that are handed out as sources, of which decoders read the parts they need.
    """

    def __init__(
        self,
        dataset: ShardSet,
        store: Store,
        cache: Cache,
        *,
        exts: Names | None = None,
        metadata: Names | None = None,
        verify: Verify = "once",
        lookahead_bytes: int = LOOKAHEAD_BYTES,
        sparse: npt.NDArray[np.bool_] | None = None,
        ranged: Names = (),
    ) -> None:
        self.dataset = dataset
        self.store = store
        self.cache = cache
        self.exts = tuple(_exts(dataset, exts))
        self.metadata = tuple(_metadata(dataset, metadata))
        self._ranged = tuple(_exts(dataset, ranged)) if ranged else ()
        self._whole = tuple(ext for ext in self.exts if ext not in self._ranged)
        self._verify: Verify = verify
        self._lookahead_bytes = lookahead_bytes
        self._sparse = np.zeros(len(dataset.counts), dtype=bool)
        if sparse is not None and self._is_far(0):  # local shards are read where they lie
            self._sparse |= sparse
        self._fetcher: ShardFetcher | None = None  # made in the process that needs it
        # Where each shard comes in the next epoch, if that is known; shards of this one asked for
        # so far: both set where the look-ahead is walked, and good enough when read late.
        self._following: npt.NDArray[np.int64] | None = None
        self._num_asked = 0
        self._coming: set[int] = set()  # asked for and not opened since; likewise
        self._num_ahead = 0  # blocks of ``ahead`` so far; guarded by _lock
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # guarded by _lock
        self._pinned: dict[int, int] = {}  # bytes of the cache that each of _open holds; likewise
        self._opening: dict[int, threading.Lock] = {}  # one opener a shard; guarded by _lock
        self._layouts: OrderedDict[int, ShardLayout] = OrderedDict()  # guarded by _lock
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "store": self.store,
            "cache": self.cache,
            "exts": self.exts,
            "metadata": self.metadata,
            "verify": self._verify,
            "lookahead_bytes": self._lookahead_bytes,
            "sparse": self._sparse,
            "ranged": self._ranged,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state.pop("dataset"), state.pop("store"), state.pop("cache"), **state
        )

    @property
    def url(self) -> str:
        """The dataset's folder."""
        return self.dataset.url

    @property
    def fingerprint(self) -> str:
        """The shards'."""
        return self.dataset.fingerprint

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples per shard."""
        return self.dataset.counts

    def read(
        self,
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        seeds: Sequence[int] = (),
    ) -> Iterator[Sample]:
        """See ``Source``."""
        del seeds
        start = 0
        with self._range_stream(groups, rows) as ranges:
            while start < len(rows):
                here = groups[start : start + _ROWS_AT_ONCE]
                shards, num_rows, error = self._open_all(here, ranges)
                if num_rows:
                    yield from samples_of(
                        shards,
                        here[:num_rows],
                        rows[start : start + num_rows],
                        self._whole,
                        self.metadata,
                        self._ranged,
                        self._open_range,
                    )
                for shard in shards.values():
                    shard.settle()
                if error is not None:
                    raise error
                start += num_rows

    def one(self, group: int, row: int) -> Sample:
        """The sample at one place, with the least work: what ``dataset[i]`` costs."""
        if self._sparse[group] or self._ranged:
            return next(self.read(np.array([group]), np.array([row])))
        shard = self._open.get(group) or self._shard(group)
        layout = shard.layout
        sample: Sample = {"__key__": layout.keys[row], "__url__": shard.url}
        for ext in self._whole:
            starts = layout.starts.get(ext)
            if starts is None or starts[row] < 0:
                continue
            start, stop = starts[row], layout.stops[ext][row]
            if shard.maps(ext):
                sample[ext] = shard.buffer[start:stop]
            else:
                sample[ext] = shard.reader(ext)(row, start, stop)
        for name in self.metadata:
            values = layout.metadata.get(name)
            sample[name] = None if values is None else values[row : row + 1].tolist()[0]
        return sample

    def _open_range(self, url: str, start: int, stop: int) -> Source:
        """A member's bytes, to be read in parts: of the local file, or of the far one by ranges."""
        if is_local(url):
            return FileSource(local_path(url), start, stop - start)
        return StoreSource(self.store, url, stop - start, start)

    def _range_stream(
        self, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> AbstractContextManager[RangeStream | None]:
        """What fetches single samples ahead, in order, for shards that are not fetched whole."""
        sparse = self._sparse[groups]
        if not sparse.any():
            return contextlib.nullcontext()
        places = zip(groups[sparse].tolist(), rows[sparse].tolist(), strict=True)
        return RangeStream(self.store, self.cache, places, self._layout, self.dataset, self._whole)

    def _open_all(
        self, groups: npt.NDArray[np.int64], ranges: RangeStream | None
    ) -> tuple[dict[int, ReadableShard], int, ShardkitError | None]:
        """Open the shards of a block, by first need, as many as may be open at a time.

        Only the first is waited for: rows before the first need of one that is still on its way
        are given out meanwhile.

        Returns the shards, how many of the block's rows they serve, and the error of the next.
        """
        shards: dict[int, ReadableShard] = {}
        numbers, firsts = np.unique(groups, return_index=True)
        in_order = np.argsort(firsts)
        num_bytes, most = 0, min(_MAX_AT_ONCE, self._most_open())
        for shard, first in zip(numbers[in_order].tolist(), firsts[in_order].tolist(), strict=True):
            if ranges is not None and self._sparse[shard]:
                try:
                    shards[shard] = ranges.shard(shard)
                except ShardkitError as error:
                    return shards, first, error
                continue
            num_bytes += self._pinned_bytes(shard)
            if shards and (
                num_bytes > self._room() or len(shards) >= most or self._is_coming(shard)
            ):
                return shards, first, None
            try:
                shards[shard] = self._shard(shard)
            except ShardkitError as error:
                return shards, first, error
        return shards, len(groups), None

    def place(self, group: int, row: int) -> Place:
        """See ``Source``."""
        url = self.dataset.shard_url(group)
        try:
            return Place(url, str(self._layout(group).keys[row]))
        except ShardkitError:  # the shard itself is the trouble
            return Place(url, f"sample {row} of the shard")

    def leave_room(self) -> None:
        """Close shards beyond our share of the files that may be open."""
        with self._lock:
            self._close_some()

    @contextlib.contextmanager
    def ahead(
        self, passes: Iterator[Iterator[Places]], later: Later | None = None
    ) -> Iterator[None]:
        """See ``Source``; local shards are near."""
        if not self._is_far(0):
            yield
            return
        fetcher = self._own_fetcher()
        with self._lock:
            self._num_ahead += 1
            number = self._num_ahead
        fetcher.schedule(self._requests(passes, later))
        try:
            yield
        finally:
            if number == self._num_ahead:  # else the next epoch has begun, and goes on
                fetcher.schedule(())

    def _requests(
        self, passes: Iterator[Iterator[Places]], later: Later | None
    ) -> Iterator[Request | None]:
        """Each shard once a pass, by first need, but for those that are near already."""
        self._following = None if later is None else _places_in(later(), len(self.counts))
        self._coming.clear()
        num_idle = 0
        for places in passes:
            seen: set[int] = set()
            for groups, _ in places:
                num_idle += 1
                numbers, firsts = np.unique(groups, return_index=True)
                for shard in numbers[np.argsort(firsts)].tolist():
                    if shard in seen or self._sparse[shard]:
                        continue
                    seen.add(shard)
                    self._num_asked = len(seen)
                    if shard not in self._open and shard not in self._coming:
                        num_idle = 0
                        self._coming.add(shard)
                        yield self._request(shard)
                if num_idle >= _MOST_IDLE:  # all is near: who waits for us is not kept waiting
                    num_idle = 0
                    yield None

    def _request(self, shard: int) -> Request:
        return Request(
            self.dataset.shard_url(shard),
            size=self.dataset.num_bytes(shard),
            checksum=self.dataset.tar_checksum(shard),
            next_use=self._next_use(shard),
        )

    def _next_use(self, shard: int) -> int | None:
        """After how many more shards it is wanted again: the rest of this epoch's, then others.

        Of several processes none wants more of them than there are; several nodes know only when
        any of them wants it.
        """
        following = self._following
        if following is None or following[shard] < 0:
            return None
        return max(len(following) - self._num_asked, 0) + int(following[shard])

    def _own_fetcher(self) -> ShardFetcher:
        with self._lock:
            if self._fetcher is None:
                self._fetcher = ShardFetcher(
                    self.store,
                    self.cache,
                    lookahead_bytes=self._most_ahead(),
                    verify=self._verify,
                )
            return self._fetcher

    def _is_coming(self, shard: int) -> bool:
        """Whether a shard is being fetched ahead, and not here yet."""
        return self._fetcher is not None and self._fetcher.is_coming(self._request(shard))

    def _is_far(self, shard: int) -> bool:
        """Whether a shard has to be fetched: behind a URL, or on a network filesystem."""
        if not len(self.dataset.counts):
            return False
        url = self.dataset.shard_url(shard)
        return not is_local(url) or _is_network_folder(os.path.dirname(local_path(url)))

    def _shard(self, shard: int) -> OpenShard:
        """The open shard, from those kept if it is among them."""
        with self._lock:
            kept = self._open.get(shard)
            if kept is not None:
                self._open.move_to_end(shard)
                return kept
            opening = self._opening.setdefault(shard, threading.Lock())
        with opening:
            with self._lock:
                kept = self._open.get(shard)
            if kept is not None:
                return kept
            if id(self) not in _reading:
                self._begin_reading()
            opened = self._opened(shard)
            with self._lock:
                self._opening.pop(shard, None)
                self._open[shard] = opened
                self._pinned[shard] = self._pinned_bytes(shard)
                self._close_some()
            return opened

    def _layout(self, shard: int) -> ShardLayout:
        """Where the samples of a shard lie; the last few are kept."""
        with self._lock:
            kept = self._layouts.get(shard)
            if kept is not None:
                self._layouts.move_to_end(shard)
                return kept
        layout = self.dataset.layout(shard, self.exts, self.metadata)
        with self._lock:
            self._layouts[shard] = layout
            num_rows = sum(map(len, self._layouts.values()))
            while len(self._layouts) > 1 and num_rows > _MAX_ROWS:
                num_rows -= len(self._layouts.popitem(last=False)[1])
        return layout

    def _opened(self, shard: int) -> OpenShard:
        dataset = self.dataset
        url, size = dataset.shard_url(shard), dataset.num_bytes(shard)
        layout = self._layout(shard)
        if self._is_far(shard):  # proved as it was fetched
            entry = self._own_fetcher().open(self._request(shard))
            self._coming.discard(shard)
            return OpenShard(entry, url, layout, size, verify="never")
        path = local_path(url)
        file = LocalFile(path, url)
        if self._verify != "once":
            return OpenShard(file, url, layout, size, verify=self._verify)
        if self.cache.is_verified(path):
            return OpenShard(file, url, layout, size, verify="never")
        return OpenShard(
            file, url, layout, size, on_verified=lambda: self.cache.note_verified(path)
        )

    def _begin_reading(self) -> None:
        """Have the other sources leave room for ours."""
        _reading[id(self)] = self
        for reference in _reading.valuerefs():
            other = reference()
            if other is not None:
                other.leave_room()

    def _close_some(self) -> None:
        """Forget the longest unused shards; they close when their last reader is done."""
        most = self._most_open()
        num_rows = sum(len(shard.layout) for shard in self._open.values())
        num_bytes = sum(self._pinned.values())
        while len(self._open) > 1 and (
            len(self._open) > most or num_rows > _MAX_ROWS or num_bytes > self._room()
        ):
            number, closed = self._open.popitem(last=False)
            num_rows -= len(closed.layout)
            num_bytes -= self._pinned.pop(number)

    def _most_open(self) -> int:
        """How many shards we may keep open of those that all sources here may; one in any case."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            return _MAX_OPEN
        files_each = 1 + self._is_far(0)  # a map keeps one; so does what pins an entry of the cache
        return min(_MAX_OPEN, int(_OPEN_FILES * limit) // (files_each * max(1, len(_reading))))

    def _pinned_bytes(self, shard: int) -> int:
        """Bytes of the cache that an open shard holds."""
        return max(0, self.dataset.num_bytes(shard)) if self._is_far(shard) else 0

    def _most_ahead(self) -> int:
        """Bytes fetched ahead: of a small cache an eighth, or it would keep nothing for later."""
        limit = self.cache.limit
        return self._lookahead_bytes if limit is None else min(self._lookahead_bytes, limit // 8)

    def _room(self) -> float:
        """Bytes of the cache that open shards may hold; the rest is for what is needed later."""
        return float("inf") if self.cache.limit is None else self.cache.limit / 4


def _places_in(order: npt.NDArray[np.int64], num_groups: int) -> npt.NDArray[np.int64]:
    """Where each group comes in an order of groups, -1 nowhere: int64 [num_groups]."""
    places = np.full(num_groups, -1, np.int64)
    places[order] = np.arange(len(order))
    return places


def sparse_shards(
    dataset: ShardSet,
    selected: npt.NDArray[np.int64],
    limit: int | None,
    *,
    scattered: bool,
    in_parts: bool = False,
) -> npt.NDArray[np.bool_]:
    """Which shards are better read by ranges than fetched whole, if they are far.

    Args:
        dataset: the shards.
        selected: int64 [shards], samples of each that take part.
        limit: bytes of the cache.
        scattered: whether the order wants samples of any shard at any time ("global"): then whole
            shards pay only if all of them fit.
        in_parts: whether members are wanted in parts: then no shard is fetched whole.
    """
    if in_parts:
        return np.ones(len(dataset.counts), dtype=bool)
    with np.errstate(invalid="ignore"):
        sparse = np.asarray(selected < _SPARSE * dataset.counts)
    if scattered and limit is not None:
        num_bytes = sum(dataset.num_bytes(shard) for shard in np.flatnonzero(~sparse).tolist())
        sparse |= num_bytes > limit
    return sparse


def default_buffer_size(dataset: ShardSet, limit: int | None, most: int) -> int:
    """``most`` samples, or as many as an eighth of the cache holds: what "buffer" mixes stays near.

    Sizes are taken from the first shards; local shards need no cache.
    """
    shards = range(min(16, len(dataset.counts)))
    num_samples = int(dataset.counts[: len(shards)].sum())
    num_bytes = sum(dataset.num_bytes(shard) for shard in shards)
    if limit is None or num_bytes <= 0 or is_local(dataset.shard_url(0)):
        return most
    return max(1, min(most, int(limit / 8 / num_bytes * num_samples)))


@functools.lru_cache(maxsize=64)
def _is_network_folder(folder: str) -> bool:
    return is_network_path(folder)


def _exts(dataset: ShardSet, exts: Names | None) -> Sequence[str]:
    if exts is None:
        return dataset.default_exts
    lowered = [ext.lower().lstrip(".") for ext in names_of(exts)]
    _check_known(dataset, "members", lowered, dataset.exts)
    return lowered


def _metadata(dataset: ShardSet, columns: Names | None) -> Sequence[str]:
    if columns is None:
        return dataset.metadata
    names = names_of(columns)
    _check_known(dataset, "metadata columns", names, dataset.metadata)
    return names


def _check_known(dataset: ShardSet, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"{dataset.url} has no {what} {unknown}; it has {sorted(known)}")
