"""Rows of an index → samples that wait for their members: what to fetch, and how to name it.

Two ways lead here. Plain rows are turned into dicts column by column. Rows that
``pre_download_transforms`` or data providers want to see become dicts first, may be rewritten,
multiplied or dropped, and what is then in the columns of files is what is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from shardkit.errors import IndexDataError, ShardkitError
from shardkit.format.keys import fit_key
from shardkit.index.columns import to_list
from shardkit.index.gather import gather_rows
from shardkit.index.index import Index
from shardkit.index.names import last_ext
from shardkit.index.rows import MemberColumn, RowError, Rows, member_name
from shardkit.samples.lookahead import Slot
from shardkit.samples.source import Sample
from shardkit.storage.requests import Request
from shardkit.transforms.pipeline import Pipeline

__all__ = ["Asked", "Naming", "Pending", "Provider", "Row", "RowReader", "Wanted", "Where", "cuts"]

Provider = Callable[..., bytes | None]
"""From an index row (a dict), and from ``rng`` if it asks for it, to a member's bytes."""

_FIRST_BLOCK = 64
_MOST_ROWS = 1_024
"""Rows looked up in the index together. The first block is small, so that one sample or one batch
costs what it is."""


@dataclass(frozen=True, slots=True)
class Naming:
    """How members are called in samples: by the one rule of ``member_name``, or by their column."""

    by_column: bool = False

    def name(self, member: MemberColumn, ext: str) -> str:
        """The member's name; "" where that needs an ext which is not known yet."""
        if self.by_column:
            return member.name
        return member_name(member.name, ext, qualified=member.qualified) if ext else ""

    def absent(self, member: MemberColumn, ext: str) -> str:
        """The name under which a sample says that it lacks the member."""
        return self.name(member, ext) or member.name


Where = Literal["here", "file", "cached", "far", "parts"]
"""Where a member's bytes are: in ``data``; in a file of this machine; in the cache, at the time of
looking; to be fetched; to be read in parts by who decodes it."""


@dataclass(slots=True)
class Wanted:
    """A member to come, or one that the index itself holds.

    Attributes:
        name: in the sample; "" where only the bytes will tell.
        ext: by which to decode it; "" where only the bytes will tell.
        member: its column.
        where: its bytes are.
        url: of them; "" where ``data`` has them.
        size: bytes, -1 unknown.
        key: in the cache, where it is far.
        request: what to ask for, where that is not the whole object.
        data: its bytes.
        slot: the work that brings what is far.
    """

    name: str
    ext: str
    member: MemberColumn
    where: Where = "here"
    url: str = ""
    size: int = -1
    key: str = ""
    request: Request | None = None
    data: bytes = b""
    slot: Slot | None = None


@dataclass(slots=True)
class Asked:
    """A provider that is to be asked for a member, by the work of ``slot``."""

    name: str
    row: Sample
    seed: int
    slot: Slot | None = None


@dataclass(slots=True)
class Pending:
    """A sample that waits for its members, in the order of ``wanted``."""

    sample: Sample
    wanted: Sequence[Wanted] = ()
    asked: Sequence[Asked] = ()
    error: Exception | None = None


Row: TypeAlias = "Pending | list[Pending]"
"""What becomes of a row: a sample, or as many as ``pre_download_transforms`` make of it."""


class RowReader:
    """Reads rows of an index as pending samples.

    Args:
        index: the rows.
        naming: of members.
        allow_missing: a member that the row lacks is None, not an error.
        before: rewrites rows before anything is fetched.
        providers: members that functions give.
        ranged: names and exts of members that are read in parts.
        place: says of a member that is named by a URL where it is.
    """

    def __init__(
        self,
        index: Index,
        naming: Naming,
        *,
        allow_missing: bool,
        before: Pipeline,
        providers: Mapping[str, Provider],
        ranged: Collection[str],
        place: Callable[[Wanted], Where],
    ) -> None:
        self._index = index
        self._naming = naming
        self._allow_missing = allow_missing
        self._before = before
        self._providers = providers
        self._ranged = frozenset(ranged)
        self._place = place
        self.rewrites = bool(len(before)) or bool(providers)

    @property
    def is_metadata_only(self) -> bool:
        """Whether rows are samples as they are: nothing to fetch, nothing to rewrite."""
        return not self._index.findings.files and not self.rewrites

    def metadata(
        self, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> Iterator[Sample | Exception]:
        """Samples, where ``is_metadata_only``."""
        for start, stop in cuts(len(rows)):
            for found in self._read(groups[start:stop], rows[start:stop]):
                if isinstance(found, Exception):
                    yield found
                else:
                    yield from self._dicts(found)

    def block(
        self, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], seeds: Sequence[int]
    ) -> list[Row]:
        """What becomes of each row."""
        block: list[Row] = []
        for found in self._read(groups, rows):
            if isinstance(found, Exception):
                block.append(Pending({}, error=found))
            elif self.rewrites:
                block.extend(self._rewritten(found, seeds[len(block) : len(block) + len(found)]))
            else:
                block.extend(self._plain(found))
        return block

    def _read(
        self, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> Iterator[Rows | Exception]:
        """The rows; where one or a group is at fault, one by one: the others keep their turn."""
        try:
            yield gather_rows(self._index, groups, rows)
        except ShardkitError as error:
            is_all = (groups[0] == groups).all() and not isinstance(error, RowError)
            if is_all or len(rows) == 1:
                yield from [error] * len(rows)
                return
        else:
            return
        bad: dict[int, Exception] = {}
        for group, row in zip(groups.tolist(), rows, strict=True):
            if group in bad:
                yield bad[group]
                continue
            try:
                yield self._index.take(group, np.array([row]))
            except RowError as error:
                yield error
            except ShardkitError as error:
                bad[group] = error
                yield error

    def _dicts(self, rows: Rows) -> Iterator[Sample]:
        """Key, URL and metadata of each row; columns are turned into lists once."""
        names = ("__key__", "__url__", *rows.metadata.column_names)
        metadata = [to_list(column) for column in rows.metadata.columns]
        urls = _first_urls(rows, self._index.source)
        columns = zip(map(fit_key, rows.keys), urls, *metadata, strict=True)
        # As in gather.py: the same as a comprehension of dict(zip(names, values)), a third quicker.
        return map(dict, map(zip, repeat(names), columns))

    def _plain(self, rows: Rows) -> Iterator[Pending]:
        columns = [self._column(member) for member in rows.members]
        samples = self._dicts(rows)
        if columns and not any(None in member.urls for member in rows.members):
            yield from map(Pending, samples, zip(*columns, strict=True))
            return
        for row, sample in enumerate(samples):
            found = [wanted for column in columns if (wanted := column[row]) is not None]
            item = Pending(sample, found)
            if len(found) < len(columns):
                self._note_absent(item, rows, row)
            yield item

    def _note_absent(self, item: Pending, rows: Rows, row: int) -> None:
        for member in rows.members:
            if not member.has(row):
                self._lacks(item, member, member.exts[row])
        if not item.wanted and not self._allow_missing:
            item.error = item.error or IndexDataError("it names no file at all")

    def _column(self, member: MemberColumn) -> list[Wanted | None]:
        """The member of each row as the index has it; None where a row lacks it."""
        names = {ext: self._naming.name(member, ext) for ext in set(member.exts)}
        return [self._wanted(member, row, names[ext], ext) for row, ext in enumerate(member.exts)]

    def _wanted(self, member: MemberColumn, row: int, name: str, ext: str) -> Wanted | None:
        url = member.urls[row]
        if url is None:
            value = member.values[row] if member.values is not None else None
            return None if value is None else Wanted(name, ext, member, data=value)
        wanted = Wanted(name, ext, member, "file", url)
        if member.sizes is not None:
            wanted.size = member.sizes[row]
        if member.starts is not None or member.checksums is not None:
            wanted.request = _request(member, url, row)
        return self._placed(wanted)

    def _placed(self, wanted: Wanted) -> Wanted:
        """Say where a member is."""
        if self._ranged and (wanted.name in self._ranged or wanted.ext in self._ranged):
            wanted.where = "parts"
        else:
            wanted.where = self._place(wanted)
        return wanted

    def placed_again(self, rows: Sequence[Row]) -> list[Row]:
        """The same rows, with what was thought to be cached looked for."""
        for row in rows:
            for item in row if isinstance(row, list) else (row,):
                for wanted in item.wanted:
                    if wanted.where == "cached":
                        self._placed(wanted)
        return list(rows)

    def _lacks(self, item: Pending, member: MemberColumn, ext: str) -> None:
        if self._allow_missing:
            item.sample[self._naming.absent(member, ext)] = None
        elif self._naming.by_column:
            item.error = IndexDataError(
                f"there is nothing in column {member.name!r}; fill it, or say allow_missing=True "
                "to get None"
            )

    # -- rewritten rows -------------------------------------------------------------------------

    def _rewritten(self, rows: Rows, seeds: Sequence[int]) -> Iterator[Row]:
        metadata: list[Sample] = rows.metadata.to_pylist() if rows.metadata.num_columns else []
        for row, key in enumerate(rows.keys):
            cells = {member.name: _cell(member, row) for member in rows.members}
            record = {"__key__": key, **(metadata[row] if metadata else {}), **cells}
            # A generator of its own: transforms draw from the sample's seed itself.
            seed = (seeds[row] + 1) % 2**64 if row < len(seeds) else 1
            try:
                records = self._before(record, seed)
                yield [self._of_record(record, rows, row, seed) for record in records]
            except Exception as error:  # noqa: BLE001 - the row's: told where its turn comes
                yield Pending({"__key__": fit_key(key)}, error=error)

    def _of_record(self, record: Sample, rows: Rows, row: int, seed: int) -> Pending:
        """What a record wants: the files that are still in it, some of them others than before."""
        files = {member.name: member for member in rows.members}
        key = fit_key(str(record.get("__key__") or rows.keys[row]))
        item = Pending({"__key__": key, "__url__": self._index.source})
        item.sample |= {k: v for k, v in record.items() if k not in files and k != "__key__"}
        found: list[Wanted] = []
        for name, member in files.items():
            if name not in record:
                continue  # the transform does not want it
            wanted = self._of_cell(record[name], member, row)
            if wanted is None:
                self._lacks(item, member, member.exts[row])
            else:
                found.append(wanted)
        item.wanted = found
        urls = [wanted.url for wanted in found if wanted.url]
        item.sample["__url__"] = urls[0] if urls else self._index.source
        item.asked = [
            Asked(name, record, (seed + 1 + number) % 2**64)
            for number, name in enumerate(self._providers)
        ]
        return item

    def _of_cell(self, cell: object, member: MemberColumn, row: int) -> Wanted | None:
        """The member that a cell of a record names: the row's own, or another."""
        ext = member.exts[row]
        if cell == _cell(member, row):
            return self._wanted(member, row, self._naming.name(member, ext), ext)
        if isinstance(cell, bytes):
            return Wanted(self._naming.name(member, ""), "", member, data=cell)
        if not cell:
            return None
        url = str(cell)
        ext = last_ext(url)
        return self._placed(Wanted(self._naming.name(member, ext), ext, member, "file", url))


def cuts(num_rows: int) -> Iterator[tuple[int, int]]:
    """Where blocks start and stop."""
    start, size = 0, _FIRST_BLOCK
    while start < num_rows:
        yield start, min(start + size, num_rows)
        start, size = start + size, min(4 * size, _MOST_ROWS)


def _request(member: MemberColumn, url: str, row: int) -> Request:
    """A range of an object, or an object with a checksum."""
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
