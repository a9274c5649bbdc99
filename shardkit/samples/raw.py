"""Samples of raw files that an index lists: rows → requests → samples, in order, fetched ahead.

Data's path: (group, row) → pending samples (``RowReader``), a block at a time → far members are
fetched and providers asked by the threads of a ``Lookahead``, near ones (local, or cached) read in
this thread when their turn comes → dicts whose members are ``RawMember``: bytes, and the ext by
which to decode them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shardkit.decode import Decoders
from shardkit.decode.source import FileSource, Source, StoreSource
from shardkit.errors import (
    ConfigError,
    CorruptError,
    NotFoundError,
    ShardkitError,
    StoreError,
    TransientError,
)
from shardkit.format.sniff import sniff_ext
from shardkit.index.index import Index
from shardkit.index.names import folder_of
from shardkit.samples.lookahead import Block, Lookahead, Slot
from shardkit.samples.paths import PinnedPath, path_in_memory
from shardkit.samples.source import Found, Later, Place, Places, RawMember, Sample
from shardkit.samples.wanted import (
    Asked,
    Naming,
    Pending,
    Provider,
    Row,
    RowReader,
    Wanted,
    Where,
    cuts,
)
from shardkit.storage.cache import Cache
from shardkit.storage.filesystems import is_network_path
from shardkit.storage.flights import Cancelled
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.local import LocalStore
from shardkit.storage.protocol import Store
from shardkit.storage.requests import load_verified
from shardkit.storage.urls import is_local, local_path
from shardkit.transforms.pipeline import Pipeline

__all__ = ["Provider", "RawOptions", "RawSource"]

_SMALL = 64
"""Pieces of an order (batches) are looked up in the index together until they are so many rows."""


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
        ranged: names or exts of members that decoders read in parts.
        since_ns: far files that were cached before this time (nanoseconds since 1970) are asked
            about, once for all processes, before they are used; 0 takes them as they are.
        num_threads: requests in flight at once.
        lookahead_bytes: bound on what is fetched ahead.
    """

    naming: Naming = field(default_factory=Naming)
    allow_missing: bool = False
    as_paths: bool = False
    before: Pipeline = field(default_factory=Pipeline)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    ranged: Sequence[str] = ()
    since_ns: int = 0
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
        self._since_ns = options.since_ns
        self._local = LocalStore()
        self._auto = Decoders()
        self._providers = {name: _Provided(name, f) for name, f in options.providers.items()}
        self._rows = RowReader(
            index,
            options.naming,
            allow_missing=options.allow_missing,
            before=options.before,
            providers=options.providers,
            ranged=options.ranged,
            place=self._place,
        )
        # Guesses, which any thread may set: whether what comes is cached, and that this was wrong.
        self._seems_cached = self._was_wrong = False
        self._lock = threading.Lock()
        self._shared: Lookahead | None = None  # while something is ``ahead``; guarded by _lock
        self._num_ahead = 0  # guarded by _lock
        start_anew_in_children(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return RawSource, (self.index, self.store, self.cache, self.options)

    def forget_parent(self) -> None:
        """In a forked child: the parent's threads fetch nothing here."""
        self._lock = threading.Lock()
        self._shared, self._num_ahead = None, 0

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
        shared = None if self._rows.rewrites else self._shared
        if shared is not None:
            yield from self._read(shared, groups, rows, seeds)
            return
        num_threads = self.options.num_threads if self._is_worth_threads(len(rows)) else 0
        with self._lookahead(num_threads) as own:
            own.begin(self._blocks(own, groups, rows, seeds))
            yield from self._read(own, groups, rows, seeds)

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

    @contextlib.contextmanager
    def ahead(
        self, passes: Iterator[Iterator[Places]], later: Later | None = None
    ) -> Iterator[None]:
        """See ``Source``; of rows that callbacks see, nothing is made before they are read."""
        del later  # files are too many to say of each when it is needed next
        if self._rows.rewrites or self._rows.is_metadata_only:
            yield
            return
        with self._lock:
            if self._shared is None:
                self._shared = self._lookahead(self.options.num_threads)
            shared = self._shared
            self._num_ahead += 1
        begun = None
        try:
            begun = shared.begin(self._pieces(shared, itertools.chain.from_iterable(passes)))
            yield
        finally:
            if begun is not None:
                shared.end(begun)
            with self._lock:
                is_last = self._shared is shared and self._num_ahead == 1
                if self._shared is shared:
                    self._num_ahead -= 1
                    self._shared = None if is_last else shared
            if is_last:
                shared.close()

    def _is_worth_threads(self, num_rows: int) -> bool:
        """Whether there is more than one thing to fetch."""
        return num_rows > 1 or len(self.index.findings.files) + len(self._providers) > 1

    def _lookahead(self, num_threads: int) -> Lookahead:
        options = self.options
        return Lookahead(
            num_threads,
            options.lookahead_bytes,
            store=self.store,
            cache=self.cache,
            as_file=options.as_paths,
        )

    # -- blocks ---------------------------------------------------------------------------------

    def _read(
        self,
        lookahead: Lookahead,
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        seeds: Sequence[int],
    ) -> Iterator[Found]:
        for start, stop in cuts(len(rows)):
            here = groups[start:stop], rows[start:stop], seeds[start:stop]
            block = lookahead.block(
                _key(here[0], here[1]), functools.partial(self._block, lookahead, *here)
            )
            places = zip(here[0].tolist(), here[1].tolist(), strict=True)
            block.rows.reverse()  # emptied as it goes: the memory of members is free for the next
            try:
                while block.rows:
                    yield self._finished(block.rows.pop(), next(places), lookahead)
                    if self._was_wrong:
                        self._look_again(block, lookahead)
            finally:
                if block.rows:
                    lookahead.drop(block.slots)

    def _blocks(
        self,
        lookahead: Lookahead,
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        seeds: Sequence[int],
    ) -> Iterator[Block]:
        for start, stop in cuts(len(rows)):
            here = slice(start, stop)
            if not lookahead.was_passed(_key(groups[here], rows[here])):
                yield self._block(lookahead, groups[here], rows[here], seeds[here])

    def _pieces(self, lookahead: Lookahead, places: Iterator[Places]) -> Iterator[Block]:
        """Blocks as ``_read`` will ask for them; small ones are looked up together."""
        for pieces in _gathered(places):
            if len(pieces) == 1:
                yield from self._blocks(lookahead, *pieces[0], ())
                continue
            wanted = [piece for piece in pieces if not lookahead.was_passed(_key(*piece))]
            if not wanted:
                continue
            groups, rows = (np.concatenate(column) for column in zip(*wanted, strict=True))
            made = iter(self._rows.block(groups, rows, ()))
            for piece in wanted:
                part = [next(made) for _ in range(len(piece[0]))]
                yield self._with_slots(lookahead, _key(*piece), part)

    def _block(
        self,
        lookahead: Lookahead,
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        seeds: Sequence[int],
    ) -> Block:
        made = self._rows.block(groups, rows, seeds)
        return self._with_slots(lookahead, _key(groups, rows), made)

    def _with_slots(self, lookahead: Lookahead, key: object, rows: list[Row]) -> Block:
        """A block, and the work that its rows wait for."""
        block = Block(key, rows)
        for row in rows:
            for item in row if isinstance(row, list) else (row,):
                for wanted in item.wanted:
                    if wanted.where in ("far", "parts") and wanted.slot is None:
                        wanted.slot = self._slot(wanted, lookahead)
                        block.slots.append(wanted.slot)
                for asked in item.asked:
                    if asked.slot is None:
                        provide = self._providers[asked.name]
                        asked.slot = Slot(functools.partial(provide, asked.row, asked.seed))
                        block.slots.append(asked.slot)
        self._seems_cached = not block.slots
        return block

    def _slot(self, wanted: Wanted, lookahead: Lookahead) -> Slot:
        if wanted.where == "parts":
            return Slot(functools.partial(self._in_parts, wanted), 0)
        load = functools.partial(self._fetch, wanted, lookahead.closed)
        url = wanted.url if wanted.key and wanted.request is None else ""
        return Slot(load, wanted.size, url=url, key=wanted.key)

    def _look_again(self, block: Block, lookahead: Lookahead) -> None:
        """Look which members of the rest of a block are cached; what is not is fetched ahead."""
        self._was_wrong = False
        rest = self._with_slots(lookahead, block.key, self._rows.placed_again(block.rows))
        block.slots += rest.slots
        lookahead.add(rest.slots)  # the rows are in reverse, and so are these

    def _place(self, wanted: Wanted) -> Where:
        """Where a member is; a far one gets its key in the cache: URL, and size or range."""
        kind = _kind_of(folder_of(wanted.url))
        if kind == "here" and wanted.request is None:
            return "file"
        if kind != "far":
            return "far"
        since_ns = 0
        if wanted.request is not None:
            wanted.key = wanted.request.key(self.store)
        else:
            wanted.key = f"{wanted.url}\n{wanted.size if wanted.size >= 0 else ''}"
            since_ns = self._since_ns
        near = self._seems_cached or self.cache.holds(wanted.key, since_ns)
        return "cached" if near else "far"

    def _fetch(self, wanted: Wanted, cancelled: threading.Event | None = None) -> bytes:
        """A far member, kept in the cache if it is behind a network protocol."""
        request, url, store = wanted.request, wanted.url, self.store
        if not wanted.key:
            return load_verified(store, request) if request is not None else store.get(url)
        if request is not None:
            return self.cache.get(
                wanted.key,
                functools.partial(load_verified, store, request),
                cancelled=cancelled,
                as_file=self.options.as_paths,
            )
        return self.cache.get_fresh(
            wanted.key,
            functools.partial(store.get_versioned, url),
            functools.partial(_version_of, store, url),
            since_ns=self._since_ns,
            cancelled=cancelled,
            as_file=self.options.as_paths,
        )

    # -- rows → samples -------------------------------------------------------------------------

    def _finished(self, row: Row, place: tuple[int, int], lookahead: Lookahead) -> Found:
        """Give the samples of a row their members; the row's error if one can't be had."""
        if isinstance(row, list):
            found: list[Found] = [self._finished(item, place, lookahead) for item in row]
            failed = next((one for one in found if isinstance(one, Exception)), None)
            return failed or (found[0] if len(found) == 1 else found)  # type: ignore[return-value]
        try:
            if row.error is not None:
                raise row.error
            for wanted in row.wanted:
                self._put(row.sample, wanted, lookahead)
            for asked in row.asked:
                self._ask(row.sample, asked, lookahead)
        except Exception as error:  # noqa: BLE001 - the row's
            waits: Iterable[Wanted | Asked] = (*row.wanted, *row.asked)
            lookahead.drop(one.slot for one in waits if one.slot is not None)
            return self._naming_row(error, row, place)
        return row.sample

    def _put(self, sample: Sample, wanted: Wanted, lookahead: Lookahead) -> None:
        """Give the sample a member, named by its bytes where nothing else tells its ext."""
        try:
            data = self._data_of(wanted, lookahead)
        except NotFoundError:
            if not self.options.allow_missing:
                raise
            sample[wanted.name or wanted.member.name] = None
            return
        if not isinstance(data, bytes):
            sample[wanted.name or wanted.member.name] = RawMember(wanted.ext, data)
            return
        if not data and wanted.url and wanted.request is None:
            raise CorruptError(f"{wanted.url} is empty: zero bytes")
        ext = wanted.ext or sniff_ext(data) or "bin"
        name = wanted.name or self.options.naming.name(wanted.member, ext)
        sample[name] = self._path(wanted, data) if self.options.as_paths else RawMember(ext, data)

    def _data_of(self, wanted: Wanted, lookahead: Lookahead) -> bytes | Source:
        where = wanted.where
        if where == "file":
            return self._local.get(wanted.url)
        if where == "cached":
            since_ns = self._since_ns if wanted.request is None else 0
            data = self.cache.read(wanted.key, since_ns)
            if data is None:
                self._seems_cached, self._was_wrong = False, True
                data = self._fetch(wanted)
            return data
        if wanted.slot is None:
            return wanted.data
        try:
            return lookahead.take(wanted.slot)  # type: ignore[no-any-return]
        except Cancelled:  # the epoch for which it was fetched ahead has ended
            return self._in_parts(wanted) if where == "parts" else self._fetch(wanted)

    def _in_parts(self, wanted: Wanted) -> Source:
        """A member that decoders read by ranges; of a far one no more is asked than its size."""
        start = wanted.request.start if wanted.request is not None else 0
        if is_local(wanted.url):
            return FileSource(local_path(wanted.url), start, wanted.size)
        size = wanted.size if wanted.size >= 0 else self.store.stat(wanted.url).size
        return StoreSource(self.store, wanted.url, size, start)

    def _path(self, wanted: Wanted, data: bytes) -> str:
        """A path to a member whose bytes were just read.

        A local file as it is; a far one's entry in the cache, pinned; an anonymous file in memory
        for what is no file by itself (bytes of the index, a range) or found no room.
        """
        if not wanted.url or is_local(wanted.url):
            is_file = wanted.url and (wanted.request is None or wanted.request.is_whole)
            return local_path(wanted.url) if is_file else path_in_memory(data)
        entry = self.cache.find(wanted.key) if wanted.key else None
        return path_in_memory(data) if entry is None else PinnedPath(entry)

    def _ask(self, sample: Sample, asked: Asked, lookahead: Lookahead) -> None:
        data = None if asked.slot is None else lookahead.take(asked.slot)
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


def _key(groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> tuple[bytes, bytes]:
    """Names a block."""
    return groups.tobytes(), rows.tobytes()


def _gathered(places: Iterable[Places]) -> Iterator[list[Places]]:
    """Pieces that follow each other, as many as make ``_SMALL`` rows."""
    pieces: list[Places] = []
    num_rows = 0
    for groups, rows in places:
        pieces.append((groups, rows))
        num_rows += len(rows)
        if num_rows >= _SMALL:
            yield pieces
            pieces, num_rows = [], 0
    if pieces:
        yield pieces


def _version_of(store: Store, url: str) -> str:
    """The version of a far file; "" where its file system knows none."""
    try:
        return store.stat(url).version
    except (NotFoundError, TransientError):
        raise
    except StoreError:
        return ""


@functools.lru_cache(maxsize=4096)
def _kind_of(folder: str) -> Literal["here", "network", "far"]:
    """Whether files of a folder are on a disk of this machine, mounted, or behind a protocol."""
    if not is_local(folder):
        return "far"
    return "network" if is_network_path(local_path(folder)) else "here"
