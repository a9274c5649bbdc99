"""One batch, made: what a worker does, be it a thread or a process."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardkit.errors import ShardkitError
from shardkit.order.batches import Batch
from shardkit.samples.failures import Failed, OnError, with_place
from shardkit.samples.source import Sample
from shardkit.samples.stream import Outcome, SampleStream, StageTimes

__all__ = ["BatchMaker", "Made"]

Collate = Callable[[Sequence[Sample]], Any]


@dataclass(slots=True)
class Made:
    """A batch, and what is to be told of it.

    Attributes:
        value: what ``collate`` gave.
        num_samples: in it, pads included.
        failures: of its slots, when they were skipped or replaced.
        times: seconds per stage, spent in the worker.
    """

    value: Any
    num_samples: int
    failures: list[Failed] = field(default_factory=list)
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of one dataset. Picklable where the transforms and ``collate`` are."""

    stream: SampleStream
    collate: Collate
    on_error: OnError
    seed: int
    seeds_globals: bool = False
    """Seed random, numpy and torch from each sample's own seed: right only in a process."""

    def __call__(self, epoch: int, batch: Batch) -> Made:
        """Read, decode, transform and collate the samples of a batch.

        Raises:
            Exception: of the first sample that failed (``on_error="raise"``), of ``collate``, or
                of the network.
            ShardkitError: nothing is left of the batch.
        """
        times = StageTimes()
        before = seed_global_generators if self.seeds_globals else None
        outcomes = list(
            self.stream.outcomes(
                batch.ids, batch.positions, seed=self.seed, epoch=epoch, times=times, before=before
            )
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        if failures and self.on_error == "raise":
            raise with_place(failures[0])
        samples = list(_samples(outcomes, batch, replace=self.on_error == "replace"))
        if not samples:
            raise ShardkitError(
                f"nothing is left of the batch at position {batch.start:,} of epoch {epoch}: "
                f"{len(failures)} of its {len(batch.ids)} samples failed, the transforms dropped "
                f"the others{f'; the first failure: {failures[0]}' if failures else ''}"
            )
        began = time.perf_counter()
        value = self.collate(samples)
        times.collate += time.perf_counter() - began
        return Made(value, len(samples), failures, times)


def seed_global_generators(seed: int) -> None:
    """Seed what transforms may draw from besides their own generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what is meant
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed % 2**63)


def _samples(outcomes: list[Outcome], batch: Batch, *, replace: bool) -> Iterator[Sample]:
    """The samples of the slots, pads and replacements marked where there are any."""
    marks_pads = bool(batch.is_pad.any())
    good = [slot for slot, outcome in enumerate(outcomes) if not isinstance(outcome, Failed)]
    replaces = replace and len(good) < len(outcomes)
    for slot, (outcome, is_pad) in enumerate(zip(outcomes, batch.is_pad.tolist(), strict=True)):
        replaced = isinstance(outcome, Failed)
        if replaced and not (replaces and good):
            continue
        nearest = min(good, key=lambda other: (abs(other - slot), other)) if replaced else slot
        found = outcomes[nearest]
        for sample in [] if isinstance(found, Failed) else found:
            if marks_pads or replaces:
                marks = {"__pad__": is_pad} if marks_pads else {}
                if replaces:
                    marks["__replaced__"] = replaced
                yield {**sample, **marks}
            else:
                yield sample
