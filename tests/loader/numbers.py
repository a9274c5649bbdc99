"""Data sets of numbers in memory: a real ``Source``, quick enough for hundreds of epochs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardkit.dataset import SampleDataset
from shardkit.errors import CorruptError, TransientError
from shardkit.order import Selection
from shardkit.samples.maker import SampleMaker
from shardkit.samples.source import Later, Place, Places
from shardkit.samples.stream import SampleStream
from shardkit.world import World


@dataclass
class NumberSource:
    """See ``Source``; sample n is {"number": n, "bin": n as text}.

    ``bad`` samples raise CorruptError, ``broken`` ones TransientError.
    """

    counts: Any
    name: str = "numbers"
    bad: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    num_ahead: list[int] = field(default_factory=list)  # blocks of ``ahead`` that are open

    exts = ("bin",)

    @property
    def url(self) -> str:
        return f"memory://{self.name}"

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{int(self.counts.sum())}"

    def read(self, groups: Any, rows: Any, seeds: Any = ()) -> Iterator[dict[str, Any]]:
        starts = np.concatenate(([0], np.cumsum(self.counts)))
        for group, row in zip(groups.tolist(), rows.tolist(), strict=True):
            number = int(starts[group]) + row
            if number in self.bad:
                raise CorruptError(f"number {number} is bad")
            if number in self.broken:
                raise TransientError(f"number {number} can't be reached")
            yield {
                "__key__": f"{number:06d}",
                "__url__": f"{self.url}/{group}",
                "number": number,
                "bin": str(number).encode(),
            }

    def place(self, group: int, row: int) -> Place:
        starts = np.concatenate(([0], np.cumsum(self.counts)))
        return Place(f"{self.url}/{group}", f"{int(starts[group]) + row:06d}")

    def ahead(
        self, passes: Iterator[Iterator[Places]], later: Later | None = None
    ) -> AbstractContextManager[None]:
        @contextlib.contextmanager
        def near() -> Iterator[None]:
            pieces = itertools.chain.from_iterable(passes)
            pieces = itertools.islice(pieces, 100)  # a bounded way ahead
            self.num_ahead.append(sum(len(groups) for groups, _ in pieces))
            yield
            self.num_ahead.pop()

        return near()


def numbers(
    num_samples: int = 101,
    *,
    per_group: int = 7,
    name: str = "numbers",
    shuffle: Any = "buffer",
    buffer_size: int = 20,
    seed: int = 0,
    transforms: Sequence[Any] | None = None,
    decode: Any = None,
    on_error: Any = "raise",
    max_failures: int | None = None,
    world: World | None = None,
    bad: Sequence[int] = (),
    broken: Sequence[int] = (),
) -> SampleDataset:
    full, rest = divmod(num_samples, per_group)
    counts = np.array([per_group] * full + [rest] * bool(rest), dtype=np.int64)
    source = NumberSource(counts, name, frozenset(bad), frozenset(broken))
    return SampleDataset(
        SampleStream(source, Selection.all(counts), SampleMaker(decode, transforms, source.url)),
        shuffle=shuffle,
        buffer_size=buffer_size,
        seed=seed,
        on_error=on_error,
        max_failures=max_failures,
        world=world or World(),
    )


def numbers_of(batch: Any) -> list[int]:
    """The numbers of a batch that are no pads."""
    found = list(map(int, batch["number"]))
    pads = batch.get("__pad__")
    return found if pads is None else [n for n, pad in zip(found, pads, strict=True) if not pad]


def batches_of(loader: Any) -> list[list[int]]:
    """An epoch, as the numbers of each batch, pads included."""
    return [list(map(int, batch["number"])) for batch in loader]
