"""Samples of packed shards that lie on this machine: opened as they are needed, a few at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError, ShardkitError
from shardkit.index.shards import ShardSet
from shardkit.samples.gather import samples_of
from shardkit.samples.open_shard import OpenShard, Verify
from shardkit.samples.source import Place, Places, Sample
from shardkit.storage.urls import local_path

__all__ = ["ShardSource"]

_ROWS_AT_ONCE = 4_096
"""Rows of a block: enough that the work per block vanishes, few enough to start at once."""
_MAX_OPEN = 256
"""Shards kept open: a buffer of 10,000 samples spans ten shards of the usual size; the kernel
allows 65,530 maps a process and often 1,024 open files."""
_MAX_ROWS = 4_000_000
"""Rows of the layouts kept: about 100 bytes each, so 400 MB at the most."""


class ShardSource:
    """See ``Source``; groups are shards.

    Args:
        dataset: shards that lie on this machine.
        exts: members to give; default all but the tar's own copy of the metadata.
        metadata: metadata columns to give; default all.
        verify: see ``OpenShard``.
    """

    def __init__(
        self,
        dataset: ShardSet,
        *,
        exts: Sequence[str] | None = None,
        metadata: Sequence[str] | None = None,
        verify: Verify = "once",
    ) -> None:
        self.dataset = dataset
        self.exts = tuple(_exts(dataset, exts))
        self.metadata = tuple(_metadata(dataset, metadata))
        self._verify = verify
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # guarded by _lock
        self._opening: dict[int, threading.Lock] = {}  # one opener a shard; guarded by _lock
        self._proved: set[int] = set()  # shards proved whole by this process; guarded by _lock
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "exts": self.exts,
            "metadata": self.metadata,
            "verify": self._verify,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["dataset"],
            exts=state["exts"],
            metadata=state["metadata"],
            verify=state["verify"],
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

    def read(self, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Iterator[Sample]:
        """See ``Source``."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            here = groups[start : start + _ROWS_AT_ONCE]
            shards, stop, error = self._open_all(here)
            wanted = rows[start : start + stop]
            if stop:
                yield from samples_of(shards, here[:stop], wanted, self.exts, self.metadata)
            for shard in shards.values():
                shard.settle()
            if error is not None:
                raise error

    def _open_all(
        self, groups: npt.NDArray[np.int64]
    ) -> tuple[dict[int, OpenShard], int, ShardkitError | None]:
        """Open the shards of a block; where one fails, only what is needed for the rows before it.

        Returns the shards, how many rows they serve, and the error.
        """
        shards: dict[int, OpenShard] = {}
        numbers, firsts = np.unique(groups, return_index=True)
        in_order = np.argsort(firsts)
        for shard, first in zip(numbers[in_order].tolist(), firsts[in_order].tolist(), strict=True):
            try:
                shards[shard] = self._shard(shard)
            except ShardkitError as error:
                return shards, first, error
        return shards, len(groups), None

    def place(self, group: int, row: int) -> Place:
        """See ``Source``."""
        url = self.dataset.shard_url(group)
        try:
            return Place(url, str(self._shard(group).layout.keys[row]))
        except ShardkitError:  # the shard itself is the trouble
            return Place(url, f"sample {row} of the shard")

    def ahead(self, places: Iterator[Places]) -> AbstractContextManager[None]:
        """See ``Source``; local shards are near."""
        del places
        return contextlib.nullcontext()

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
            opened = self._opened(shard)
            with self._lock:
                self._opening.pop(shard, None)
                self._open[shard] = opened
                self._close_some()
            return opened

    def _opened(self, shard: int) -> OpenShard:
        dataset = self.dataset
        proved = self._verify == "once" and shard in self._proved
        url = dataset.shard_url(shard)
        return OpenShard(
            local_path(url),
            url,
            dataset.layout(shard, self.exts, self.metadata),
            dataset.num_bytes(shard),
            verify="never" if proved else self._verify,
            on_verified=lambda: self._note_proved(shard),
        )

    def _note_proved(self, shard: int) -> None:
        with self._lock:
            self._proved.add(shard)

    def _close_some(self) -> None:
        """Forget the longest unused shards; they close when their last reader is done."""
        num_rows = sum(len(shard.layout) for shard in self._open.values())
        while len(self._open) > 1 and (len(self._open) > _MAX_OPEN or num_rows > _MAX_ROWS):
            _, closed = self._open.popitem(last=False)
            num_rows -= len(closed.layout)


def _exts(dataset: ShardSet, exts: Sequence[str] | None) -> Sequence[str]:
    if exts is None:
        return dataset.default_exts
    lowered = [ext.lower().lstrip(".") for ext in exts]
    _check_known(dataset, "members", lowered, dataset.exts)
    return lowered


def _metadata(dataset: ShardSet, names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return dataset.metadata
    _check_known(dataset, "metadata columns", names, dataset.metadata)
    return names


def _check_known(dataset: ShardSet, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"{dataset.url} has no {what} {unknown}; it has {sorted(known)}")
