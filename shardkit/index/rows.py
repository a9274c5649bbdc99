"""What an index yields: batches of rows, columnar, so that costs are per column, not per row."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from shardkit.errors import IndexDataError

__all__ = ["MemberColumn", "RowError", "Rows", "member_name"]

_NOT_A_NAME = re.compile(r"[^a-z0-9_.\-]+")


def member_name(column: str, ext: str, *, qualified: bool) -> str:
    """Return the name of a member in its sample, and in a tar after the key and a dot.

    The one naming rule, for packing and for streaming alike: a member goes by its ext. Where two
    columns of the index share an ext, both are *qualified* in all rows: ``<column>.<ext>``, the
    column in lower case (readers of tars fold case) and with ``_`` for what tar names don't hold.

    >>> member_name("image_url", "jpg", qualified=False)
    'jpg'
    >>> member_name("Left eye", "jpg", qualified=True)
    'left_eye.jpg'
    """
    if not qualified:
        return ext
    return f"{_NOT_A_NAME.sub('_', column.lower())}.{ext}"


class RowError(IndexDataError):
    """One row is at fault; the others of its group can be had."""


@dataclass(frozen=True, slots=True)
class MemberColumn:
    """One member of each of N rows: where its bytes are, or the bytes themselves.

    A row has the member if ``urls[row]`` or ``values[row]`` is not None.

    Attributes:
        name: source column (the ext, for directories and tars).
        exts: [N]; lower case, no leading dot; ``""`` is not known until the bytes are seen
            (``shardkit.format.sniff.sniff_ext``).
        urls: [N]; None where the row has no such member, or has its bytes in ``values``.
        starts: [N]; first byte in ``urls[row]``; None where every member is a whole object.
        sizes: [N]; bytes, -1 where not known; None where no size is known.
        checksums: [N]; XXH3-64 of the bytes where known; None where none is.
        values: [N]; bytes that the index itself holds; None where it holds none.
        qualified: see ``member_name``.
    """

    name: str
    exts: list[str]
    urls: list[str | None]
    starts: list[int] | None = None
    sizes: list[int] | None = None
    checksums: list[int | None] | None = None
    values: list[bytes | None] | None = None
    qualified: bool = False

    @property
    def names(self) -> list[str | None]:
        """[N] names by ``member_name``; None where there is no member, or its ext is not known."""
        return [
            self.name_for(ext) if ext and self.has(row) else None
            for row, ext in enumerate(self.exts)
        ]

    def has(self, row: int) -> bool:
        """Whether the row has this member."""
        return self.urls[row] is not None or (
            self.values is not None and self.values[row] is not None
        )

    def name_for(self, ext: str) -> str:
        """Name of a member of this column with that ext, sniffed perhaps."""
        return member_name(self.name, ext, qualified=self.qualified)


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of an index.

    Attributes:
        keys: [N]; the user's own keys (``shardkit.format.keys.fit_key`` makes them fit a tar).
        members: the columns that hold files; a list column gives as many as its longest list.
        metadata: N rows; the user's columns with their own types.
    """

    keys: list[str]
    members: tuple[MemberColumn, ...]
    metadata: pa.Table

    def __len__(self) -> int:
        return len(self.keys)
