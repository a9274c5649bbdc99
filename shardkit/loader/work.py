"""One batch, made: what a worker does, be it a thread or a process."""

from __future__ import annotations

import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import ShardkitError
from shardkit.order.mix import MixPart
from shardkit.samples.failures import Failed, OnError, with_place
from shardkit.samples.source import Sample
from shardkit.samples.stream import Outcome, SampleStream, StageTimes, num_bytes_of

if TYPE_CHECKING:
    from shardkit.loader.plan import Job

__all__ = ["BatchMaker", "Cancelled", "Collate", "Feed", "Made", "keep_memory"]

_LARGEST_BLOCK = (32 << 20) - (8 << 10)
"""DEFAULT_MMAP_THRESHOLD_MAX of glibc, less what it needs for itself; see mallopt(3)."""

Collate = Callable[[Sequence[Sample]], Any]


class Cancelled(Exception):  # noqa: N818 - no error: nobody waits for the batch any more
    """The loader was closed while the batch was being made."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What batches are made of: a stream of samples, and what to do with them.

    Attributes:
        name: of a stream of a mixture, "" otherwise.
        stream: its samples.
        on_error: what becomes of samples that fail.
        seed: of the samples' own seeds.
        collate: of batches of this stream alone; None: as the others.
    """

    name: str
    stream: SampleStream
    on_error: OnError
    seed: int
    collate: Collate | None = None


@dataclass(slots=True)
class Made:
    """A batch, and what is to be told of it.

    Attributes:
        value: what ``collate`` gave.
        num_samples: in it, pads included.
        failures: by number of the feed, of slots that were skipped or replaced.
        times: seconds per stage, spent in the worker.
    """

    value: Any
    num_samples: int
    failures: list[tuple[int, Failed]] = field(default_factory=list)
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place of a batch: whose it is, and what it yielded."""

    feed: int
    outcome: Outcome
    is_pad: bool


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches. Picklable where the transforms and ``collate`` are.

    Attributes:
        feeds: by number.
        collate: from samples to a batch.
        finish: done to each batch last, where it was made.
        seeds_globals: seed random, numpy and torch from each sample's own seed: right only in a
            process.
    """

    feeds: tuple[Feed, ...]
    collate: Collate
    finish: Callable[[Any], Any] | None = None
    seeds_globals: bool = False

    def __call__(self, job: Job, is_cancelled: Callable[[], bool] = lambda: False) -> Made:
        """Read, decode, transform and collate the samples of a batch.

        Raises:
            Exception: of the first sample that failed (``on_error="raise"``), of ``collate``, or
                of the network.
            ShardkitError: nothing is left of the batch.
            Cancelled: ``is_cancelled`` said so between two samples.
        """
        times = StageTimes()
        failures: list[tuple[int, Failed]] = []
        if self._is_plain(job):
            samples = self._read(job.parts[0], times, is_cancelled)
        else:
            slots = self._slots(job, times, is_cancelled)
            samples = list(self._samples(slots))
            failures = [
                (slot.feed, slot.outcome) for slot in slots if isinstance(slot.outcome, Failed)
            ]
        if not samples:
            num_slots = sum(len(part.ids) for part in job.parts)
            raise ShardkitError(
                f"nothing is left of the batch of {job}: {len(failures)} of its {num_slots} "
                "samples failed, the transforms dropped the others"
                + (f"; the first failure: {failures[0][1]}" if failures else "")
            )
        began = time.perf_counter()
        value = (self.feeds[job.parts[0].stream].collate or self.collate)(samples)
        if isinstance(value, dict):
            value.update(job.marks)
        if self.finish is not None:
            value = self.finish(value)
        times.collate += time.perf_counter() - began
        return Made(value, len(samples), failures, times)

    @property
    def only_reads(self) -> bool:
        """Whether all there is to do for a sample is to read it."""
        return all(feed.stream.is_plain and feed.on_error == "raise" for feed in self.feeds)

    def with_fresh_sources(self) -> BatchMaker:
        """Return the same with sources of its own: a forked child must not have locks of ours."""
        feeds = [
            replace(
                feed,
                stream=replace(feed.stream, source=pickle.loads(pickle.dumps(feed.stream.source))),
            )
            for feed in self.feeds
        ]
        return replace(self, feeds=tuple(feeds))

    def _is_plain(self, job: Job) -> bool:
        """Whether the batch is samples as the source gives them, with nothing to mark."""
        if len(job.parts) > 1 or job.parts[0].is_pad.any():
            return False
        feed = self.feeds[job.parts[0].stream]
        return feed.stream.is_plain and feed.on_error == "raise" and not feed.name

    def _read(
        self, part: MixPart, times: StageTimes, is_cancelled: Callable[[], bool]
    ) -> list[Sample]:
        """The samples of a plain part, in order."""
        stream = self.feeds[part.stream].stream
        began, computed, samples = time.perf_counter(), time.thread_time(), []
        for sample in stream.raw(part.ids):
            if is_cancelled():
                raise Cancelled
            samples.append(sample)
        spent = time.perf_counter() - began
        times.fetch += spent
        times.waiting += max(0.0, spent - (time.thread_time() - computed))
        exts = stream.source.exts
        times.num_bytes += sum(num_bytes_of(sample, exts) for sample in samples)
        return samples

    def _slots(self, job: Job, times: StageTimes, is_cancelled: Callable[[], bool]) -> list[_Slot]:
        """The slots of all parts, in the order of the batch."""
        slots: list[_Slot] = []
        for part in job.parts:
            outcomes = self._outcomes(part, times, is_cancelled)
            slots += map(_Slot, [part.stream] * len(outcomes), outcomes, part.is_pad.tolist())
        if job.interleave is None:
            return slots
        return [slots[place] for place in job.interleave.tolist()]

    def _outcomes(
        self, part: MixPart, times: StageTimes, is_cancelled: Callable[[], bool]
    ) -> list[Outcome]:
        """What the slots of a part yield, in order.

        Raises:
            Exception: as the call says.
        """
        feed = self.feeds[part.stream]
        outcomes: list[Outcome] = []
        for outcome in feed.stream.outcomes(
            part.ids,
            part.positions,
            seed=feed.seed,
            epoch=part.epoch,
            times=times,
            before=seed_global_generators if self.seeds_globals else None,
        ):
            if is_cancelled():
                raise Cancelled
            if isinstance(outcome, Failed) and feed.on_error == "raise":
                raise with_place(outcome)
            outcomes.append(outcome)
        return outcomes

    def _samples(self, slots: Sequence[_Slot]) -> Iterator[Sample]:
        """The samples of the slots; pads and replacements are marked where there are any."""
        marks_pads = any(slot.is_pad for slot in slots)
        replacements = self._replacements(slots)
        for place, slot in enumerate(slots):
            marks: dict[str, Any] = {}
            name = self.feeds[slot.feed].name
            if name:
                marks["__stream__"] = name
            if marks_pads:
                marks["__pad__"] = slot.is_pad
            if replacements:
                marks["__replaced__"] = place in replacements
            outcome = replacements.get(place, slot.outcome)
            for sample in [] if isinstance(outcome, Failed) else outcome:
                yield {**sample, **marks} if marks else sample

    def _replacements(self, slots: Sequence[_Slot]) -> Mapping[int, Outcome]:
        """For failed slots that are to be replaced: the nearest good one, of the same feed if any.

        Empty where no slot of the batch is good.
        """
        failed = [
            place
            for place, slot in enumerate(slots)
            if isinstance(slot.outcome, Failed) and self.feeds[slot.feed].on_error == "replace"
        ]
        good = [place for place, slot in enumerate(slots) if _is_good(slot.outcome)] * bool(failed)
        if not good:
            return {}
        found = {}
        for place in failed:
            feed = slots[place].feed
            nearest = min(good, key=lambda at: (slots[at].feed != feed, abs(at - place), at))
            found[place] = slots[nearest].outcome
        return found


def keep_memory() -> None:
    """Have malloc keep what a batch frees, for the next batch: else its pages are faulted in again.

    glibc keeps at the end of its heap twice the size of the largest block that was ever freed (up
    to 32 MiB). A process that has worked a while has freed a large one; a fresh one frees one here,
    without touching it. Measured: 47,000 samples/s of 100 KB became 110,000 (docs/decisions/602).
    """
    bytearray(_LARGEST_BLOCK)


def seed_global_generators(seed: int) -> None:
    """Seed what transforms may draw from besides their own generator.

    Not by ``torch.manual_seed``: that prepares for devices, 0.3 ms a call; a worker has none.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what is meant
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(seed % 2**63)


def _is_good(outcome: Outcome) -> bool:
    return not isinstance(outcome, Failed) and bool(outcome)
