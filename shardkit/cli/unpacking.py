"""What ``shardkit unpack`` does: files of an index → files of a folder, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from shardkit.errors import ConfigError, CorruptError, ShardkitError, TransientError
from shardkit.format.keys import fit_key
from shardkit.format.sniff import sniff_ext
from shardkit.index.index import Index
from shardkit.index.rows import MemberColumn, Rows
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.fetch import Request, Result, fetch_in_order
from shardkit.storage.local import write_aside
from shardkit.storage.protocol import Store
from shardkit.storage.urls import given_url, is_local, local_path

__all__ = ["Unpacked", "unpack"]

_ROWS = 4_096  # looked up in the index together


@dataclass
class Unpacked:
    """What was done.

    Attributes:
        num_files: written now.
        num_bytes: of these.
        num_kept: files that were there from an earlier run.
        failures: a line for each member that could not be had.
    """

    num_files: int = 0
    num_bytes: int = 0
    num_kept: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Member:
    """A member to be written: of which row, key and column; its ext where it is known."""

    row: str
    key: str
    column: MemberColumn
    ext: str

    def name(self, ext: str) -> str:
        """Of its file: as it would be called in a tar."""
        return f"{self.key}.{self.column.name_for(ext)}"


def unpack(
    index: Index,
    store: Store,
    out: str,
    *,
    num_threads: int = 32,
    on_error: Literal["raise", "skip"] = "raise",
    report: Callable[[int, int], None] = lambda _samples, _num_bytes: None,
) -> Unpacked:
    """Write each member of each row of ``index`` as ``out/<key>.<ext>``, atomically.

    Names are those that ``pack`` gives members. Files that are there already (whole: that is how
    they are written) are not fetched again.

    Raises:
        NotFoundError, StoreError: a member can't be read, and ``on_error`` is "raise".
        TransientError: the network failed for good; run it again to go on.
        IndexDataError: two rows have one key, and would be one file.
    """
    if num_threads < 1:
        raise ConfigError(f"num_threads={num_threads} must be at least 1")
    index.check_keys()
    out = given_url(out)
    if not is_local(out):
        raise ConfigError(f"can't unpack into {out}: name a folder of this machine")
    out = local_path(out)
    with map_os_errors("make the folder", out):
        os.makedirs(out, exist_ok=True)
    writing = _Writing(out, report)
    requests = writing.requests(index)
    with fetch_in_order(store, requests, num_threads=num_threads) as results:
        for result in results:
            try:
                writing.write(result)
            except ShardkitError as error:
                if on_error == "raise" or isinstance(error, TransientError):
                    raise
                writing.done.failures.append(str(error))
    return writing.done


class _Writing:
    """Turns rows into requests, and results into files."""

    def __init__(self, out: str, report: Callable[[int, int], None]) -> None:
        self.done = Unpacked()
        self._out = out
        self._report = report
        self._there = frozenset(name for name in os.listdir(out) if not name.startswith("."))
        self._stems = frozenset(name.rpartition(".")[0] for name in self._there)

    def requests(self, index: Index) -> Iterator[Request]:
        """What is not there yet; members that the index itself holds are written on the way."""
        for rows, group, start in _batches(index):
            for row, key in enumerate(rows.keys):
                where = f"{index.describe_row(group, start + row)} (key {key!r})"
                for column in rows.members:
                    if not column.has(row):
                        continue
                    member = _Member(where, fit_key(key), column, column.exts[row])
                    value = column.values[row] if column.values is not None else None
                    if self._has(member, is_only=len(rows.members) == 1):
                        self.done.num_kept += 1
                    elif value is not None:
                        self._put(member, value)
                    else:
                        yield _request(column, row, member)
                self._report(1, 0)

    def write(self, result: Result) -> None:
        """Write what was fetched."""
        member: _Member = result.request.tag
        try:
            data = result.unwrap()
            if not data and result.request.stop is None:
                raise CorruptError(f"{result.request.url} is empty: zero bytes")
        except ShardkitError as error:
            raise type(error)(f"{member.row}: {error}") from error
        self._put(member, data)

    def _has(self, member: _Member, *, is_only: bool) -> bool:
        if member.ext:
            return member.name(member.ext) in self._there
        if is_only or member.column.qualified:  # else another member could have left that stem
            return member.name("").rstrip(".") in self._stems
        return False

    def _put(self, member: _Member, data: bytes) -> None:
        name = member.name(member.ext or sniff_ext(data) or "bin")
        write_aside(os.path.join(self._out, name), lambda file: file.write(data))
        self.done.num_files += 1
        self.done.num_bytes += len(data)
        self._report(0, len(data))


def _batches(index: Index) -> Iterator[tuple[Rows, int, int]]:
    """Rows, their group, and where in it they start."""
    for group, count in enumerate(index.counts.tolist()):
        for start in range(0, count, _ROWS):
            yield index.read(group, start, min(start + _ROWS, count)), group, start


def _request(column: MemberColumn, row: int, member: _Member) -> Request:
    url = column.urls[row] or ""
    size = column.sizes[row] if column.sizes is not None else -1
    checksum = column.checksums[row] if column.checksums is not None else None
    start, stop = 0, None
    if column.starts is not None and size >= 0:
        start, stop = column.starts[row], column.starts[row] + size
    return Request(url, size=size, checksum=checksum, start=start, stop=stop, tag=member)
