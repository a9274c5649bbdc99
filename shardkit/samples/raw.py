"""Samples of raw files that an index lists: rows → requests → samples, in order, fetched ahead.

Data's path: (group, row) → pending samples (``RowReader``), a block at a time → far members are
fetched concurrently through the cache, near ones (local, or cached) read in this thread when their
turn comes → dicts whose members are ``RawMember``: bytes, and the ext by which to decode them.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode import Decoders
from shardkit.errors import ConfigError, CorruptError, NotFoundError, ShardkitError
from shardkit.format.sniff import sniff_ext
from shardkit.index.index import Index
from shardkit.index.names import last_ext
from shardkit.samples.paths import PinnedPath, path_in_memory
from shardkit.samples.source import Found, Place, Places, RawMember, Sample
from shardkit.samples.wanted import Asked, Naming, Pending, Provider, RowReader, Wanted
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Result, fetch_in_order
from shardkit.storage.filesystems import is_network_path
from shardkit.storage.protocol import Store
from shardkit.storage.requests import Request, load_verified
from shardkit.storage.urls import is_local, local_path
from shardkit.transforms.pipeline import Pipeline

__all__ = ["Provider", "RawOptions", "RawSource"]


@dataclass(frozen=True)
class RawOptions:
    """How rows become samples.

    Attributes:
        naming: of members.
        allow_missing: a member that the row lacks, or whose file is missing, is None; else the row
            is an error.
        as_paths: members are local paths, not bytes.
        before: rewrites rows before anything is fetched; may multiply or drop them.
        providers: by member name, functions that give its bytes from the row.
        num_threads: requests in flight at once.
        lookahead_bytes: bound on what is fetched ahead.
    """

    naming: Naming = field(default_factory=Naming)
    allow_missing: bool = False
    as_paths: bool = False
    before: Pipeline = field(default_factory=Pipeline)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    num_threads: int = 32
    lookahead_bytes: int = 64 << 20


class RawSource:
    """See ``Source``; groups are row groups of the index.

    Args:
        index: whose rows name the files.
        store: where the files are.
        cache: where far ones are kept.
        options: how rows become samples.
    """

    exts: Sequence[str] = ()  # members say themselves what they are

    def __init__(self, index: Index, store: Store, cache: Cache, options: RawOptions) -> None:
        self.index = index
        self.store = store
        self.cache = cache
        self.options = options
        self._auto = Decoders()
        self._providers = {name: _Provided(name, f) for name, f in options.providers.items()}
        self._rows = RowReader(
            index,
            options.naming,
            allow_missing=options.allow_missing,
            before=options.before,
            providers=options.providers,
            is_here=_is_here,
            is_near=self._is_near,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RawSource, (self.index, self.store, self.cache, self.options)

    @property
    def url(self) -> str:
        """The index."""
        return self.index.source

    @property
    def fingerprint(self) -> str:
        """The index's: contents, columns and filter."""
        return self.index.fingerprint

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows per row group."""
        return self.index.counts

    def read(
        self,
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        seeds: Sequence[int] = (),
    ) -> Iterator[Found]:
        """See ``Source``; a row that can't be had is yielded as its error, and others follow."""
        if self._rows.is_metadata_only:
            yield from self._rows.metadata(groups, rows)
            return
        places = zip(groups.tolist(), rows.tolist(), strict=True)
        blocks = self._rows.blocks(groups, rows, seeds)
        for is_far, stretch in groupby(blocks, _has_far):
            pending = _emptied(stretch)
            for items, results in self._fetched(pending) if is_far else _unfetched(pending):
                yield self._finished(items, results, next(places))

    def one(self, group: int, row: int) -> Found:
        """See ``Source``."""
        return next(self.read(np.array([group]), np.array([row])))

    def place(self, group: int, row: int) -> Place:
        """See ``Source``."""
        try:
            rows = self.index.take(group, np.array([row], dtype=np.int64))
        except ShardkitError:
            return Place(self.index.describe_row(group, row), "unknown")
        urls = [url for member in rows.members if (url := member.urls[0]) is not None]
        return Place(urls[0] if urls else self.index.describe_row(group, row), rows.keys[0])

    def ahead(self, places: Iterator[Places]) -> AbstractContextManager[None]:
        """See ``Source``; ``read`` itself looks ahead."""
        del places
        return contextlib.nullcontext()

    def _is_near(self, request: Request) -> bool:
        """Whether reading it here and now is quicker than handing it to another thread."""
        if is_local(request.url):
            return _is_here(request.url)
        return self.cache.holds(request.key(self.store))

    def _fetched(
        self, pending: Iterator[list[Pending]]
    ) -> Iterator[tuple[list[Pending], Iterator[Result]]]:
        """Rows, in order, with the results that their far members take."""
        made: deque[list[Pending]] = deque()

        def requests() -> Iterator[Request]:
            for items in pending:
                made.append(items)
                for wanted in _far(items):
                    if wanted.request is not None:
                        yield wanted.request

        with fetch_in_order(
            self.store,
            requests(),
            cache=self.cache,
            num_threads=self.options.num_threads,
            lookahead_bytes=self.options.lookahead_bytes,
        ) as results:
            early: list[Result] = []  # at most one, taken so that rows are made
            while True:
                if not made and (result := next(results, None)) is not None:
                    early.append(result)
                if not made:
                    return
                items = made.popleft()
                yield items, iter([early.pop() if early else next(results) for _ in _far(items)])

    # -- results → samples ----------------------------------------------------------------------

    def _finished(
        self, pending: list[Pending], results: Iterator[Result], place: tuple[int, int]
    ) -> Found:
        """Give the samples of a row their members; the row's error if one can't be had."""
        samples = []
        for item in pending:
            try:
                samples.append(self._filled(item, results))
            except Exception as error:  # noqa: BLE001 - the row's
                return self._naming_row(error, item, place)
        return samples[0] if len(samples) == 1 else samples

    def _filled(self, item: Pending, results: Iterator[Result]) -> Sample:
        if item.error is not None:
            raise item.error
        sample = item.sample
        for wanted in item.wanted:
            data = wanted.data
            if wanted.url:
                try:
                    data = self._near(wanted) if wanted.is_near else next(results).unwrap()
                except NotFoundError:
                    if not self.options.allow_missing:
                        raise
                    sample[wanted.name or wanted.member.name] = None
                    continue
                if not data:
                    raise CorruptError(f"{wanted.url} is empty: zero bytes")
            self._put(sample, wanted, data)
        for asked in item.asked:
            self._ask(sample, asked)
        return sample

    def _near(self, wanted: Wanted) -> bytes:
        """A member read in this thread."""
        request = wanted.request
        if request is None:
            return self.store.get(wanted.url)
        if is_local(request.url):
            return load_verified(self.store, request)
        return self.cache.get(request.key(self.store), lambda: load_verified(self.store, request))

    def _put(self, sample: Sample, wanted: Wanted, data: bytes) -> None:
        """Give the sample a member, named by its bytes where nothing else tells its ext."""
        naming = self.options.naming
        ext = last_ext(wanted.url) if wanted.url else ""
        if not ext and wanted.name and not naming.by_column:
            ext = last_ext(f"x.{wanted.name}")
        ext = ext or sniff_ext(data) or "bin"
        name = wanted.name or naming.name(wanted.member, ext)
        if self.options.as_paths:
            sample[name] = self._path(wanted, data)
        else:
            sample[name] = RawMember(ext, data)

    def _path(self, wanted: Wanted, data: bytes) -> str:
        """A path to a member whose bytes were just read.

        A local file as it is; a far one's entry in the cache, pinned; an anonymous file in memory
        for what is no file by itself (bytes of the index, a range) or found no room.
        """
        request = wanted.request
        if request is None or is_local(request.url):
            is_file = bool(wanted.url) and (request is None or request.is_whole)
            return local_path(wanted.url) if is_file else path_in_memory(data)
        entry = self.cache.find(request.key(self.store))
        return path_in_memory(data) if entry is None else PinnedPath(entry)

    def _ask(self, sample: Sample, asked: Asked) -> None:
        data = self._providers[asked.name](asked.row, asked.seed)
        if data is None:
            if not self.options.allow_missing:
                raise NotFoundError(f"the data provider of {asked.name!r} gave None")
            sample[asked.name] = None
        elif self.options.as_paths:
            sample[asked.name] = path_in_memory(data)
        else:
            known = self._auto.for_ext(asked.name) is not None
            sample[asked.name] = RawMember(
                asked.name if known else sniff_ext(data) or asked.name, data
            )

    def _naming_row(self, error: Exception, item: Pending, place: tuple[int, int]) -> Exception:
        """The error, telling which row of the index it is of."""
        key = item.sample.get("__key__")
        row = self.index.describe_row(*place) + (f" (key {key!r})" if key is not None else "")
        if not isinstance(error, ShardkitError):
            error.add_note(f"while reading {row}")
            return error
        told = type(error)(f"{row}: {error}")
        told.__cause__ = error
        return told


class _Provided:
    """A provider, called as transforms are: with the row's own generator if it asks for it."""

    def __init__(self, name: str, provide: Provider) -> None:
        self._name = name
        self._provide = provide
        self._takes_rng = Pipeline([provide]).takes_rng[0]

    def __call__(self, row: Sample, seed: int) -> bytes | None:
        if self._takes_rng:
            data = self._provide(row, rng=np.random.Generator(np.random.PCG64(seed)))
        else:
            data = self._provide(row)
        if data is not None and not isinstance(data, bytes):
            raise ConfigError(
                f"the data provider of {self._name!r} gave {type(data).__name__}; it must give "
                "bytes, or None where there is nothing"
            )
        return data


def _far(items: Iterable[Pending]) -> Iterator[Wanted]:
    for item in items:
        for wanted in item.wanted:
            if not wanted.is_near:
                yield wanted


def _emptied(blocks: Iterable[list[list[Pending]]]) -> Iterator[list[Pending]]:
    """The rows of blocks, which keep none: its members' memory is then free for the next."""
    for block in blocks:
        block.reverse()
        while block:
            yield block.pop()


def _has_far(block: list[list[Pending]]) -> bool:
    return any(True for items in block for _ in _far(items))


def _unfetched(
    pending: Iterator[list[Pending]],
) -> Iterator[tuple[list[Pending], Iterator[Result]]]:
    nothing: Iterator[Result] = iter(())
    for items in pending:
        yield items, nothing


def _is_here(url: str) -> bool:
    """Whether a URL is a file of a disk of this machine."""
    return is_local(url) and not _is_network_folder(os.path.dirname(local_path(url)))


@functools.lru_cache(maxsize=1024)
def _is_network_folder(folder: str) -> bool:
    return is_network_path(folder)
