"""A source, an order over it and a maker: what a position of an epoch yields."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shardkit.order.epoch import EpochOrder, ShuffleOptions
from shardkit.order.hashing import sample_seeds
from shardkit.order.selection import Selection
from shardkit.samples.failures import Failed, can_skip
from shardkit.samples.maker import SampleMaker, StageTimes
from shardkit.samples.source import RawMember, Sample, Source

__all__ = ["Outcome", "SampleStream", "StageTimes", "num_bytes_of"]

Int64Array = npt.NDArray[np.int64]
Outcome: TypeAlias = list[Sample] | Failed
"""What a slot yields: samples (one, unless transforms drop or multiply), or why there is none."""


@dataclass(frozen=True)
class SampleStream:
    """Pure wiring: which samples there are, and how to make them. Thread-safe, picklable.

    Attributes:
        source: where the bytes are.
        selection: which of its rows take part.
        maker: decode and transforms.
    """

    source: Source
    selection: Selection
    maker: SampleMaker

    @property
    def num_samples(self) -> int:
        """N: samples of an epoch."""
        return self.selection.num_samples

    def order(self, options: ShuffleOptions, epoch: int) -> EpochOrder:
        """The canonical order of an epoch."""
        return EpochOrder(
            self.selection.counts,
            options,
            epoch,
            fingerprint=self.source.fingerprint,
            selection=self.selection.key,
        )

    @property
    def is_plain(self) -> bool:
        """Whether samples leave as the source gives them, so that nothing is done per sample."""
        return self.maker.is_identity and bool(self.source.exts)

    def one(self, number: int) -> Sample:
        """One sample of bytes, where ``is_plain``."""
        groups, rows = self.selection.locate(np.array([number], dtype=np.int64))
        found: Any = self.source.one(int(groups[0]), int(rows[0]))
        return found  # type: ignore[no-any-return]

    def raw(self, ids: Int64Array) -> Iterator[Sample]:
        """Samples of bytes, in order, where ``is_plain``; ends with the error of the first."""
        found: Iterator[Any] = self.source.read(*self.selection.locate(ids))
        return found

    def outcomes(
        self,
        ids: Int64Array,
        positions: Int64Array,
        *,
        seed: int,
        epoch: int,
        times: StageTimes | None = None,
        before: Callable[[int], None] | None = None,
    ) -> Iterator[Outcome]:
        """What each slot yields, in order, failures as values.

        Args:
            ids: int64 [n], sample ids.
            positions: int64 [n], their canonical positions, for the samples' seeds.
            seed: of the order.
            epoch: from 0.
            times: adds up here what the stages take.
            before: called with each sample's seed before it is decoded.

        Raises:
            TransientError: the network failed past all retries: no sample is skipped for that.
        """
        groups, rows = self.selection.locate(ids)
        seeds = sample_seeds(seed, epoch, positions).tolist()
        spent = times or StageTimes()
        exts = self.source.exts
        start = 0
        while start < len(ids):
            samples = self.source.read(groups[start:], rows[start:], seeds[start:])
            for slot in range(start, len(ids)):
                start = slot + 1
                began = time.perf_counter()
                try:
                    found = next(samples)
                    spent.fetch += time.perf_counter() - began
                except Exception as error:  # noqa: BLE001 - a value here, raised by whoever must
                    yield self._failed(groups[slot], rows[slot], error)
                    break  # the iterator ended with its error: go on behind the slot
                if isinstance(found, Exception):
                    yield self._failed(groups[slot], rows[slot], found)
                    continue
                try:
                    if before is not None:
                        before(seeds[slot])
                    if times is not None:
                        for sample in found if isinstance(found, list) else (found,):
                            times.num_bytes += num_bytes_of(sample, exts)
                    made = self._made(found, exts, seeds[slot], spent)
                except Exception as error:  # noqa: BLE001 - same
                    yield self._failed(groups[slot], rows[slot], error)
                else:
                    yield made
            else:
                next(samples, None)  # let the source end: it notes what it has proved

    def _made(
        self, found: Sample | list[Sample], exts: Sequence[str], seed: int, spent: StageTimes
    ) -> list[Sample]:
        if isinstance(found, list):
            return [made for sample in found for made in self._made(sample, exts, seed, spent)]
        return self.maker(found, exts, seed, spent)

    def _failed(self, group: np.int64, row: np.int64, error: Exception) -> Failed:
        if not can_skip(error):
            raise error
        return Failed(self.source.place(int(group), int(row)), error)


def num_bytes_of(sample: Sample, exts: Sequence[str]) -> int:
    """Bytes of a sample's undecoded members."""
    num_bytes = 0
    for ext in exts:  # a loop: a third of what sum() of a generator takes
        data = sample.get(ext)
        if type(data) is bytes:
            num_bytes += len(data)
    if not exts:
        for value in sample.values():
            if type(value) is RawMember and type(value.data) is bytes:
                num_bytes += len(value.data)
    return num_bytes
