"""``open_index``: any source → an ``Index``."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from xxhash import xxh3_128_hexdigest

from shardkit.errors import ConfigError, IndexDataError
from shardkit.executors import Executor
from shardkit.format.sidecar import KEY
from shardkit.index.arrows import arrow_tables, as_table
from shardkit.index.chosen import keys_fit
from shardkit.index.csvs import csv_tables
from shardkit.index.findings import Choices, Columns, Findings, find
from shardkit.index.groups import Groups, TableGroups
from shardkit.index.index import Index
from shardkit.index.joined import join_groups
from shardkit.index.jsons import json_tables
from shardkit.index.listing import Grouping, listing_tables
from shardkit.index.names import INDEX_EXTS, index_ext
from shardkit.index.parquet import open_parquet, parquet_tables
from shardkit.index.places import ShardPlaces
from shardkit.index.scratch import Scratch
from shardkit.index.sources import Source, identify
from shardkit.index.spool import Spool, Write, keep_tables, keep_unnamed
from shardkit.index.streams import open_stream
from shardkit.index.tar_groups import open_packed, open_tars
from shardkit.index.where import is_select, run_select, select_rows
from shardkit.storage.cache import Cache
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.store import open_store

__all__ = ["open_index"]

logger = logging.getLogger(__name__)

_VERSION = "1"  # of what is kept in scratch
_MOST_ROWS = 1 << 22  # of a row group that is read whole; some writers put 64 Mi rows into one
_IN_MEMORY = 64 << 20  # bytes of a table that is carried along when an index is pickled


def open_index(
    source: Any,
    *,
    key: str | None = None,
    files: Columns | None = None,
    inline: Columns | None = None,
    metadata: Sequence[str] | str | None = None,
    where: str | None = None,
    data_type: str | None = None,
    folder_as: str | None = None,
    max_files: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    store: Store | None = None,
    scratch: str | None = None,
    executor: Executor | None = None,
    cache: Cache | None = None,
) -> Index:
    """Open any index; nothing but footers, listings and the first rows is read.

    Args:
        source: path or URL of a ``.parquet``, ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, ``.arrow``
            or ``.feather`` file (compressed perhaps); a wildcard or brace expression; a list file
            (``.txt``); a folder of media files; a packed dataset; tars; a list of such names. Or an
            Arrow table, a DataFrame, anything with ``__arrow_c_stream__``, a list of dicts.
        key: key column; by default found by name, else keys are made from row numbers.
        files: columns that hold files, ``"column"`` or ``"column=ext"``; by default found.
        inline: columns whose values become members: ``"caption=txt"``.
        metadata: columns to keep as metadata; by default all others, and the key.
        where: condition in DuckDB's SQL (``"width > 512 AND label = 'cat'"``), or a whole
            ``SELECT … FROM dataframe``.
        data_type: of folders: keep samples with a member of this type (``"image"``, ``"video"``,
            ``"audio"``, ``"text"``, ``"latent"``).
        folder_as: of folders: metadata column that gets the name of a sample's folder, its class.
        max_files: take the first so many files of a wildcard or list.
        storage_options: see ``open_store``.
        store: to read through, in place of ``storage_options``.
        scratch: local folder for what has to be converted (all but Parquet and Arrow), scanned or
            filtered; kept and used again. By default the user's own below the system's for
            temporary files.
        executor: where plain tars are scanned; by default threads.
        cache: of the node, through which far Parquet is read, so that all its processes fetch a
            row group once; by default each fetches for itself.

    Raises:
        NotFoundError: nothing is there.
        ConfigError: an argument names a column that is not there; a filter that DuckDB refuses.
        IndexDataError: the index has no rows, or can't be read as one.
        CorruptError: a file is damaged.
    """
    choices = Choices(key, files, inline, metadata)
    if where is not None and not where.strip():
        raise ConfigError("where is empty; leave it out to take all rows")
    opener = _Opener(
        store or open_store(storage_options),
        Scratch(scratch),
        Grouping("", folder_as, data_type),
        executor,
        cache,
    )
    name, asked = _name(source), where
    opened = opener.open(source, max_files)
    if where is not None and is_select(where):
        opened = replace(opened, groups=run_select(opened.groups, where, opener.scratch, name))
        where = None
    groups = opened.groups
    if not groups.counts.sum():
        raise _no_rows(name, asked)
    if opened.files is not None:
        choices = _with_exts(choices, opened.files, groups.schema.names)
    findings = find(groups, choices, opener.store)
    if opened.keeps_key and choices.metadata is None and findings.key == KEY:
        findings = replace(findings, metadata=(KEY, *findings.metadata))
    if opened.left_out is not None:
        findings = _without_copy(findings, opened.left_out, choices)
    selection = None if where is None else select_rows(groups, where, opener.scratch)
    if selection is not None and not selection.counts.sum():
        raise _no_rows(name, asked)
    return Index(name, groups, findings, selection=selection, scratch=opener.scratch)


def _no_rows(name: str, where: str | None) -> IndexDataError:
    if where is None:
        return IndexDataError(f"{name} has no rows; check that it is the one you mean")
    return IndexDataError(f"{name} has no rows that where={where!r} leaves; check the filter")


def _names(source: Any) -> Sequence[str]:
    """The names that a source is, or a list of them; none where it is a table itself."""
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)]
    if isinstance(source, list | tuple) and all(isinstance(s, str | os.PathLike) for s in source):
        return [os.fspath(name) for name in source]
    return []


def _name(source: Any) -> str:
    names = _names(source)
    if not names:
        return f"a {type(source).__name__}"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _with_exts(choices: Choices, exts: Mapping[str, str], names: Sequence[str]) -> Choices:
    """Files of a listing are its columns of exts, whatever those are called."""
    if choices.files is not None:
        return choices
    return replace(choices, files={name: ext for name, ext in exts.items() if name in names})


def _without_copy(findings: Findings, metadata_ext: str, choices: Choices) -> Findings:
    """Leave out the member that a pack made from the metadata, unless the user names it."""
    if choices.files is not None:
        return findings
    files = tuple(column for column in findings.files if column.name != metadata_ext)
    note = f"{metadata_ext} members hold the metadata again, and are left out"
    return replace(findings, files=files, notes=(*findings.notes, note))


@dataclass(frozen=True)
class _Opened:
    """Groups of a source, and what is known of their columns before looking."""

    groups: Groups
    files: Mapping[str, str] | None = None
    left_out: str | None = None
    keeps_key: bool = False
    """Whether keys are metadata too, because a pack will have to rewrite some of them."""


@dataclass(frozen=True)
class _Opener:
    """What is needed to open any source: where to read, where to keep, how to group."""

    store: Store
    scratch: Scratch
    grouping: Grouping
    executor: Executor | None
    cache: Cache | None

    def open(self, source: Any, max_files: int | None) -> _Opened:
        """Return the groups of any source."""
        names = _names(source)
        if not names:
            self._check_folder(source, of_files=False)
            return _Opened(self._table(source))
        found = identify(self.store, names)
        self._check_folder(source, of_files=found.kind in ("folder", "media"))
        if max_files is not None:
            found = replace(found, files=found.files[:max_files])
        if found.kind == "packed":
            places = ShardPlaces.open(found.root, self.store)
            return _Opened(
                open_packed(places),
                left_out=places.manifest.metadata_ext,
                keeps_key=places.manifest.adopted is not None,
            )
        if found.kind == "tars":
            tars = open_tars(self.store, found.files, self.scratch, executor=self.executor)
            return _Opened(tars, keeps_key=not keys_fit(tars))
        if found.kind == "index":
            return _Opened(self._index_files(found.files))
        listed = self._media(found)
        exts = [n for n in listed.schema.names if n not in (KEY, self.grouping.folder_as)]
        return _Opened(listed, {ext: ext for ext in exts if not _is_size(ext, exts)})

    def _check_folder(self, source: Any, *, of_files: bool) -> None:
        if self.grouping.folder_as is not None and not of_files:
            raise ConfigError(
                f"folder_as={self.grouping.folder_as!r} is for folders of files, whose names "
                f"become a column, and {_name(source)} is none; leave it out"
            )

    def _table(self, source: Any) -> Groups:
        table = as_table(source)
        groups = TableGroups(table)
        if table.nbytes <= _IN_MEMORY:
            return groups
        return keep_tables(
            self.scratch,
            groups.identity,
            "",
            lambda _, write: write(table.schema, iter([table])),
        )

    def _index_files(self, files: Sequence[ObjectInfo]) -> Groups:
        """Runs of Parquet files are read in place, together; every other file is converted."""
        parts: list[Groups] = []
        for parquet, run in itertools.groupby(files, lambda info: _reader(info) == "parquet"):
            if parquet:
                parts.append(self._parquet(list(run)))
            else:
                parts.extend(self._convert(info) for info in run)
        return join_groups(parts)

    def _parquet(self, infos: Sequence[ObjectInfo]) -> Groups:
        """Read in place, unless a row group is so big that reading one would fill the memory."""
        groups = open_parquet(self.store, infos, self.cache)
        if not len(groups.counts) or groups.counts.max() <= _MOST_ROWS:
            return groups
        if len(infos) > 1:
            return join_groups([self._parquet([info]) for info in infos])
        logger.info(
            "%s has row groups of %s rows: it is copied to %s, in smaller groups, once",
            infos[0].url,
            f"{groups.counts.max():,}",
            self.scratch.folder,
        )
        name = xxh3_128_hexdigest(
            repr((_VERSION, infos[0].url, infos[0].size, infos[0].version)).encode()
        )
        return keep_tables(
            self.scratch,
            name,
            infos[0].url,
            lambda _, write: write(*parquet_tables(self.store, infos[0])),
        )

    def _convert(self, info: ObjectInfo) -> Groups:
        name = xxh3_128_hexdigest(repr((_VERSION, info.url, info.size, info.version)).encode())

        def make(part: str, write: Write) -> None:
            read = {"csv": csv_tables, "json": json_tables, "arrow": arrow_tables}[_reader(info)]
            with closing(open_stream(self.store, info.url)) as file, Spool(part) as spool:
                write(*read(file, info.url, spool))

        if not info.version:  # a web server that does not tell when a file changed
            return keep_unnamed(self.scratch, info.url, make)
        return keep_tables(self.scratch, name, info.url, make)

    def _media(self, found: Source) -> Groups:
        grouping = replace(self.grouping, root=found.root)
        infos = self.store.list(found.root) if found.kind == "folder" else iter(found.files)

        def make(part: str, write: Write) -> None:
            with Spool(part) as spool:
                write(*listing_tables(infos, grouping, spool))

        return keep_unnamed(self.scratch, found.root, make)


def _reader(info: ObjectInfo) -> str:
    return INDEX_EXTS[index_ext(info.url) or ""]


def _is_size(name: str, names: Sequence[str]) -> bool:
    return name.startswith("size.") and name.removeprefix("size.") in names
