"""One batch, made: what a worker does, be it a thread or a process."""

from __future__ import annotations

import pickle
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import ShardkitError
from shardkit.loader.stand_ins import StandIns
from shardkit.order.epoch import ShuffleOptions
from shardkit.order.mix import MixPart
from shardkit.samples.failures import Failed, OnError, with_place
from shardkit.samples.source import Sample
from shardkit.samples.stream import Outcome, SampleStream, StageTimes, num_bytes_of

if TYPE_CHECKING:
    from shardkit.loader.plan import Job

__all__ = [
    "BatchMaker",
    "Cancelled",
    "Collate",
    "Feed",
    "Made",
    "keep_memory",
    "nothing_left",
]

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
        options: of its order; their seed is that of the samples' own seeds.
        collate: of batches of this stream alone; None: as the others.
    """

    name: str
    stream: SampleStream
    on_error: OnError
    options: ShuffleOptions
    collate: Collate | None = None


@dataclass(slots=True)
class Made:
    """A batch, and what is to be told of it.

    Attributes:
        value: what ``collate`` gave; None where nothing is left of the batch.
        num_samples: in it, pads included; 0 where nothing is left.
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
        stand_ins: for batches in which nothing is left: other ranks wait for as many batches as
            they have. None: they are left out, nobody waits for them.
    """

    feeds: tuple[Feed, ...]
    collate: Collate
    finish: Callable[[Any], Any] | None = None
    seeds_globals: bool = False
    stand_ins: StandIns | None = None

    def __call__(self, job: Job, is_cancelled: Callable[[], bool] = lambda: False) -> Made:
        """Read, decode, transform and collate the samples of a batch.

        Raises:
            Exception: of the first sample that failed (``on_error="raise"``), of ``collate``, or
                of the network.
            ShardkitError: nothing is left of the batch, and nothing can stand in for it.
            Cancelled: ``is_cancelled`` said so between two samples.
        """
        times = StageTimes()
        failures: list[tuple[int, Failed]] = []
        if self._is_plain(job):
            samples = self._read(job.parts[0], times, is_cancelled)
        else:
            slots = self._slots(job, times, is_cancelled)
            failures = [
                (slot.feed, slot.outcome) for slot in slots if isinstance(slot.outcome, Failed)
            ]
            samples = list(self._samples(slots, self._replacements(slots)))
            if not samples and self.stand_ins is not None:
                first = failures[0][1] if failures else None
                found = self._stand_in(self.stand_ins, job, first, times, is_cancelled)
                samples = list(self._samples(slots, self._filled(slots, found)))
        if not samples:
            return Made(None, 0, failures, times)
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
        is_fatal = self.feeds[part.stream].on_error == "raise"
        outcomes: list[Outcome] = []
        for outcome in self._look(part, times, is_cancelled):
            if is_fatal and isinstance(outcome, Failed):
                raise with_place(outcome)
            outcomes.append(outcome)
        return outcomes

    def _look(
        self, part: MixPart, times: StageTimes, is_cancelled: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """What the slots of a part yield, in order, failures as values."""
        feed = self.feeds[part.stream]
        for outcome in feed.stream.outcomes(
            part.ids,
            part.positions,
            seed=feed.options.seed,
            epoch=part.epoch,
            times=times,
            before=seed_global_generators if self.seeds_globals else None,
        ):
            if is_cancelled():
                raise Cancelled
            yield outcome

    def _samples(
        self, slots: Sequence[_Slot], replacements: Mapping[int, _Slot]
    ) -> Iterator[Sample]:
        """The samples of the slots; pads and replacements are marked where there are any."""
        marks_pads = any(slot.is_pad for slot in slots)
        for place, slot in enumerate(slots):
            marks: dict[str, Any] = {}
            shown = replacements.get(place, slot)
            name = self.feeds[shown.feed].name
            if name:
                marks["__stream__"] = name
            if marks_pads:
                marks["__pad__"] = slot.is_pad
            if replacements:
                marks["__replaced__"] = place in replacements
            for sample in [] if isinstance(shown.outcome, Failed) else shown.outcome:
                yield {**sample, **marks} if marks else sample

    def _replacements(self, slots: Sequence[_Slot]) -> Mapping[int, _Slot]:
        """For failed slots that are to be replaced: the nearest good one, of the same feed if any.

        Empty where no slot of the batch is good.
        """
        failed = self._to_replace(slots)
        good = [place for place, slot in enumerate(slots) if _is_good(slot.outcome)] * bool(failed)
        if not good:
            return {}
        found = {}
        for place in failed:
            feed = slots[place].feed
            nearest = min(good, key=lambda at: (slots[at].feed != feed, abs(at - place), at))
            found[place] = slots[nearest]
        return found

    def _stand_in(
        self,
        stand_ins: StandIns,
        job: Job,
        failed: Failed | None,
        times: StageTimes,
        is_cancelled: Callable[[], bool],
    ) -> _Slot:
        """What stands in for a batch of which nothing is left: a good slot near one of its parts.

        What fails as it is looked for is not counted: its own batch does that. ``failed`` is the
        first failure of this one, if it has any.

        Raises:
            ShardkitError: the epochs of all parts have none.
        """
        for part in job.parts:
            outcome = stand_ins.nearest(
                part, self.feeds[part.stream], lambda near: self._look(near, times, is_cancelled)
            )
            if _is_good(outcome):
                return _Slot(part.stream, outcome, is_pad=False)
            failed = failed or (outcome if isinstance(outcome, Failed) else None)
        raise nothing_left([self.feeds[part.stream] for part in job.parts], failed)

    def _filled(self, slots: Sequence[_Slot], stand_in: _Slot) -> Mapping[int, _Slot]:
        """The stand-in for each slot that is to be replaced, at least for one."""
        return dict.fromkeys(self._to_replace(slots) or [0], stand_in)

    def _to_replace(self, slots: Sequence[_Slot]) -> list[int]:
        return [
            place
            for place, slot in enumerate(slots)
            if isinstance(slot.outcome, Failed) and self.feeds[slot.feed].on_error == "replace"
        ]


def nothing_left(feeds: Iterable[Feed], failed: Failed | None) -> ShardkitError:
    """The error of an epoch of which no sample can be had; ``failed`` is one of them, if any is."""
    urls = ", ".join(dict.fromkeys(feed.stream.source.url for feed in feeds))
    error = ShardkitError(
        f"nothing is left of a whole epoch of {urls}: "
        + (
            f"every sample failed or was dropped by the transforms; the first failure: {failed}"
            if failed
            else "the transforms dropped every sample; look at what they drop"
        )
    )
    error.__cause__ = None if failed is None else failed.error
    return error


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
