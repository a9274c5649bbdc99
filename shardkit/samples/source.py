"""What a dataset reads from: rows in groups, given out as samples of undecoded members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shardkit.decode.source import Source as MemberSource

__all__ = ["Found", "Later", "Place", "Places", "RawMember", "Sample", "Source"]

Sample = dict[str, Any]
Found = Sample | list[Sample] | Exception
Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Groups and rows within them, int64 [n] each."""

Later = Callable[[], npt.NDArray[np.int64]]
"""Tells the groups of the next epoch by first need, int64; asked at most once."""


class RawMember(NamedTuple):
    """A member with the ext by which to decode it, whatever its name in the sample.

    ``data`` is its bytes, or a source where decoders are to read the parts that they need.
    """

    ext: str
    data: bytes | MemberSource


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample came from, as messages name it."""

    url: str
    key: str


class Source(Protocol):
    """Rows of a packed dataset or of an index. Thread-safe; picklable; opens lazily per process."""

    @property
    def url(self) -> str:
        """What was opened, for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the contents."""
        ...

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows per group (shard, or row group of an index)."""
        ...

    @property
    def exts(self) -> Sequence[str]:
        """Names of members that samples may have."""
        ...

    def read(
        self,
        groups: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        seeds: Sequence[int] = (),
    ) -> Iterator[Found]:
        """Yield what is at each (group, row), in order, lazily: members as bytes.

        A sample; or a list of samples where rows may become several or none; or the row's error,
        where the source can go on behind it. ``seeds`` are the samples' own, where they are known.

        Raises:
            CorruptError, NotFoundError, StoreError: of the sample that would come next. The
                iterator ends with it; the samples before were right.
        """
        ...

    def one(self, group: int, row: int) -> Found:
        """What ``read`` would yield for one place.

        Raises:
            CorruptError, NotFoundError, StoreError: it can't be read.
        """
        ...

    def place(self, group: int, row: int) -> Place:
        """Say where a sample is, even if it can't be read."""
        ...

    def ahead(
        self, passes: Iterator[Iterator[Places]], later: Later | None = None
    ) -> AbstractContextManager[None]:
        """Bring near what will be read, in this order, while the block runs.

        ``later`` tells the groups of the next epoch, by first need, if that is known: what is
        needed soonest is then kept.

        Each pass over the data (one, or several in a row) yields (groups, rows) in pieces as
        ``read`` will be asked for them. Passes are walked lazily, one after the other, on another
        thread, no further than a bounded number of bytes ahead; they may have no end.
        """
        ...
