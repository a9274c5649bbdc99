"""Samples of raw files that an index lists: rows → requests → samples, in order, fetched ahead.

Data's path: (group, row) → ``Rows`` of the index, a block at a time → (``pre_download_transforms``
rewrite rows as dicts) → one request per member → fetched concurrently through the cache → dicts
whose members are ``RawMember``: bytes, and the ext by which to decode them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError, IndexDataError, NotFoundError, ShardkitError, StoreError
from shardkit.format.keys import fit_key
from shardkit.format.sniff import sniff_ext
from shardkit.index.columns import to_list
from shardkit.index.gather import gather_rows
from shardkit.index.index import Index
from shardkit.index.names import last_ext
from shardkit.index.rows import MemberColumn, Rows, member_name
from shardkit.samples.source import Found, Place, Places, RawMember, Sample
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import OrderedFetch, Request, Result, fetch_in_order
from shardkit.storage.protocol import Store
from shardkit.transforms.pipeline import Pipeline

__all__ = ["Provider", "RawOptions", "RawSource"]

Provider = Callable[..., bytes]
"""From an index row (a dict), and from ``rng`` if it asks for it, to a member's bytes."""

_FIRST_BLOCK = 64
_MOST_ROWS = 1_024
"""Rows looked up in the index together. The first block is small, so that one sample or one batch
costs what it is."""


@dataclass(frozen=True)
class RawOptions:
    """How rows become samples.

    Attributes:
        by_column: name members by their column, not by their ext.
        allow_missing: a member that the row lacks, or whose file is missing, is None; else the row
            is an error.
        before: rewrites rows before anything is fetched; may multiply or drop them.
        providers: by member name, functions that give its bytes from the row.
        num_threads: requests in flight at once.
        lookahead_bytes: bound on what is fetched ahead.
    """

    by_column: bool = False
    allow_missing: bool = False
    before: Pipeline = field(default_factory=Pipeline)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    num_threads: int = 32
    lookahead_bytes: int = 64 << 20


@dataclass(slots=True)
class _Wanted:
    """A member to come: its name ("" where only the bytes will tell), and where from."""

    name: str
    column: str
    qualified: bool
    request: Request


@dataclass(slots=True)
class _Pending:
    """A sample that waits for its members, in the order of ``wanted``."""

    sample: Sample
    wanted: list[_Wanted] = field(default_factory=list)
    error: Exception | None = None


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
        self._as_dicts = bool(len(options.before)) or bool(options.providers)

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
        made: deque[list[_Pending]] = deque()

        def requests() -> Iterator[Request]:
            for pending in self._pending(groups, rows, seeds):
                made.append(pending)
                for item in pending:
                    for wanted in item.wanted:
                        yield wanted.request

        with fetch_in_order(
            self.store,
            requests(),
            cache=self.cache,
            num_threads=min(self.options.num_threads, max(1, 4 * len(rows))),
            lookahead_bytes=self.options.lookahead_bytes,
        ) as results:
            ahead = _Results(results)
            for _ in range(len(rows)):
                while not made:
                    ahead.peek()  # pulls requests, and with them what is made of the next rows
                yield self._finished(made.popleft(), ahead)

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

    # -- rows → pending samples -----------------------------------------------------------------

    def _pending(
        self, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], seeds: Sequence[int]
    ) -> Iterator[list[_Pending]]:
        start, size = 0, _FIRST_BLOCK
        while start < len(rows):
            stop = min(start + size, len(rows))
            block = gather_rows(self.index, groups[start:stop], rows[start:stop])
            if self._as_dicts:
                yield from self._rewritten(block, seeds[start:stop])
            else:
                yield from ([item] for item in self._plain(block))
            start, size = stop, min(4 * size, _MOST_ROWS)

    def _plain(self, rows: Rows) -> Iterator[_Pending]:
        """Rows as they are: columns turned into lists once, then one dict a row."""
        names = ("__key__", "__url__", *rows.metadata.column_names)
        metadata = [to_list(column) for column in rows.metadata.columns]
        keys = [fit_key(key) for key in rows.keys]
        columns = zip(keys, _first_urls(rows, self.index.source), *metadata, strict=True)
        members = [(member, self._names(member)) for member in rows.members]
        for row, values in enumerate(columns):
            item = _Pending(dict(zip(names, values, strict=True)))
            for member, known in members:
                self._add(item, member, known[row], row)
            if (
                members
                and not item.wanted
                and item.error is None
                and len(item.sample) == len(names)
            ):
                item.error = IndexDataError(f"the row with key {keys[row]!r} names no file at all")
            yield item

    def _add(self, item: _Pending, member: MemberColumn, name: str, row: int) -> None:
        """Add a member of a row to what the sample waits for, or to the sample."""
        url = member.urls[row]
        value = member.values[row] if member.values is not None else None
        if url is not None:
            request = _request(member, url, row)
            item.wanted.append(_Wanted(name, member.name, member.qualified, request))
        elif value is not None:
            self._put(item.sample, name, member.name, member.qualified, value)
        elif self.options.allow_missing:
            item.sample[member.name if self.options.by_column else name or member.name] = None
        elif self.options.by_column:
            item.error = _nothing_in(item.sample["__key__"], member.name)

    def _names(self, member: MemberColumn) -> list[str]:
        """[N] names of the members; "" where the ext is not known yet."""
        of = {ext: self._name(member.name, member.qualified, ext) for ext in set(member.exts)}
        return [of[ext] for ext in member.exts]

    def _name(self, column: str, qualified: bool, ext: str) -> str:
        if self.options.by_column:
            return column
        return member_name(column, ext, qualified=qualified) if ext else ""

    def _rewritten(self, rows: Rows, seeds: Sequence[int]) -> Iterator[list[_Pending]]:
        """Rows as dicts, through ``pre_download_transforms`` and the providers."""
        metadata = rows.metadata.to_pylist()
        for row, key in enumerate(rows.keys):
            cells = {member.name: _cell(member, row) for member in rows.members}
            seed = seeds[row] if row < len(seeds) else 0
            try:
                records = self.options.before({**metadata[row], **cells}, seed)
                yield [self._of_record(record, rows, key, seed) for record in records]
            except Exception as error:  # noqa: BLE001 - the row's: told where its turn comes
                yield [_Pending({"__key__": fit_key(key)}, error=error)]

    def _of_record(self, record: Sample, rows: Rows, key: str, seed: int) -> _Pending:
        files = {member.name: member for member in rows.members}
        plain = {name: value for name, value in record.items() if name not in files}
        item = _Pending({"__key__": fit_key(key), "__url__": self.index.source, **plain})
        for name, member in files.items():
            cell = record.get(name)
            if isinstance(cell, bytes):
                self._put(item.sample, "", name, member.qualified, cell)
            elif cell:
                known = self._name(name, member.qualified, last_ext(cell))
                wanted = _Wanted(known, name, member.qualified, Request(cell, version=""))
                item.wanted.append(wanted)
            elif self.options.allow_missing:
                item.sample[name] = None
            else:
                item.error = _nothing_in(key, name)
        for name, provide in self.options.providers.items():
            (given,) = Pipeline([_Provided(provide)])(record, seed)
            item.sample[name] = RawMember(name, given["data"])
        return item

    # -- results → samples ----------------------------------------------------------------------

    def _finished(self, pending: list[_Pending], results: _Results) -> Found:
        """Take the members of a row's samples; the first error if one can't be had."""
        error: Exception | None = None
        for item in pending:
            found = self._fill(item, results)
            error = error or found
        if error is not None:
            return error
        return [item.sample for item in pending] if self._as_dicts else pending[0].sample

    def _fill(self, item: _Pending, results: _Results) -> Exception | None:
        error = item.error
        for wanted in item.wanted:
            result = results.take()
            if isinstance(result.error, NotFoundError) and self.options.allow_missing:
                item.sample[wanted.name or wanted.column] = None
            elif result.error is not None:
                error = error or result.error
            elif not result.data:
                error = error or StoreError(f"{wanted.request.url} is empty: zero bytes")
            else:
                self._put(
                    item.sample,
                    wanted.name,
                    wanted.column,
                    wanted.qualified,
                    result.data,
                    last_ext(wanted.request.url),
                )
        return error

    def _put(
        self, sample: Sample, name: str, column: str, qualified: bool, data: bytes, ext: str = ""
    ) -> None:
        """Give the sample a member, named by its bytes where nothing else tells its ext."""
        if not ext:
            ext = name.rpartition(".")[2] if name and not self.options.by_column else ""
        ext = ext or sniff_ext(data) or "bin"
        sample[name or self._name(column, qualified, ext)] = RawMember(ext, data)


class _Results:
    """Results in order, of which one can be waited for before it is taken."""

    def __init__(self, results: OrderedFetch) -> None:
        self._results = results
        self._peeked: Result | None = None

    def peek(self) -> None:
        """Have the next result asked for, and wait for it."""
        if self._peeked is None:
            self._peeked = next(self._results, None)

    def take(self) -> Result:
        """The next result."""
        taken, self._peeked = self._peeked, None
        return next(self._results) if taken is None else taken


class _Provided:
    """A provider as a transform, so that it gets the row's own generator if it asks for it."""

    def __init__(self, provide: Provider) -> None:
        self._provide = provide
        self._takes_rng = Pipeline([provide]).takes_rng[0]

    def __call__(self, row: Sample, rng: np.random.Generator) -> Sample:
        data = self._provide(row, rng=rng) if self._takes_rng else self._provide(row)
        if not isinstance(data, bytes):
            raise ConfigError(f"a data provider gave {type(data).__name__}; it must give bytes")
        return {"data": data}


def _request(member: MemberColumn, url: str, row: int) -> Request:
    size = member.sizes[row] if member.sizes is not None else -1
    checksum = member.checksums[row] if member.checksums is not None else None
    if member.starts is not None and size >= 0:
        start = member.starts[row]
        return Request(url, start=start, stop=start + size, checksum=checksum, version="")
    return Request(url, size=size, checksum=checksum, version="" if size < 0 else str(size))


def _first_urls(rows: Rows, source: str) -> list[str]:
    """[N] the URL of each row's first member; the index's where there is none."""
    urls = [source] * len(rows)
    for member in reversed(rows.members):
        urls = [own or other for own, other in zip(member.urls, urls, strict=True)]
    return urls


def _cell(member: MemberColumn, row: int) -> str | bytes | None:
    """A member as ``pre_download_transforms`` see it: its full URL, or its bytes."""
    url = member.urls[row]
    if url is not None:
        return url
    return member.values[row] if member.values is not None else None


def _nothing_in(key: str, column: str) -> IndexDataError:
    return IndexDataError(
        f"the row with key {key!r} has nothing in column {column!r}; fill it, or say "
        "allow_missing=True to get None"
    )
