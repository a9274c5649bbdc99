"""The batches of a mixture: see ``plan.Plan``."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shardkit.dataset import SampleDataset
from shardkit.errors import ConfigError
from shardkit.loader.plan import Job
from shardkit.loader.work import Collate, Feed
from shardkit.order.epoch import EpochOrder
from shardkit.order.hashing import Int64Array
from shardkit.order.mix import MixBatch, MixOrder, MixPart
from shardkit.order.mix_count import count_batches
from shardkit.order.mix_state import MixOptions, MixState, MixStream
from shardkit.samples.source import Places

__all__ = ["MixPlan", "Stream"]

_KEPT_PIECES = 10_000
"""Batches of ids that wait for a stream's look-ahead, some megabytes; beyond it the oldest are
forgotten: a stream on this machine never asks for them."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One data set of a mixture, and how it is drawn.

    Attributes:
        dataset: its samples.
        weight: share of samples (by="sample") or of turns (by="batch", "rank"): any positive
            number, 0 leaves the stream out; only ratios matter.
        batch_size: samples per batch of a rank, for by="batch" and "rank"; default the loader's.
        global_batch_size: of all ranks together, instead of ``batch_size``: keep it, and the
            stream's global batches are the same sets on any number of ranks.
        num_accumulation: batches in a row that one turn yields (by="batch", "rank").
        group: by="rank": all ranks draw from the streams of one group at a time, which is chosen
            by the sum of their weights. Streams of a group have one ``num_accumulation``.
        collate_fn: of batches of this stream (by="batch", "rank"); default the loader's.

    Raises:
        ConfigError: two batch sizes are given.
    """

    dataset: SampleDataset
    weight: float = 1.0
    batch_size: int | None = None
    num_accumulation: int = 1
    global_batch_size: int | None = None
    group: str = ""
    collate_fn: Collate | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.global_batch_size is not None:
            raise ConfigError(
                f"batch_size={self.batch_size} and global_batch_size={self.global_batch_size} of a "
                "stream are two ways to say one thing; give one of them"
            )


class MixPlan:
    """See ``Plan``; places are ``MixState``s.

    Args:
        streams: by name.
        options: of the mixture.
        global_batch_size: G of the mixture.
        counts: keeps ``num_batches``, which has to draw the whole schedule.
        bare: leave the streams' own batch sizes out: ``global_batch_size`` holds for all.

    Raises:
        ConfigError: streams, options and batch sizes do not fit together.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        options: MixOptions,
        global_batch_size: int,
        counts: dict[Any, int | None],
        *,
        bare: bool = False,
    ) -> None:
        self._datasets = [stream.dataset for stream in streams.values()]
        world = self._datasets[0].world
        self.feeds = tuple(
            Feed(
                name,
                stream.dataset.stream,
                stream.dataset.on_error,
                stream.dataset.options,
                stream.collate_fn,
            )
            for name, stream in streams.items()
        )
        self.failures = tuple(dataset.failures for dataset in self._datasets)
        self.num_lanes = tuple(dataset.options.num_lanes for dataset in self._datasets)
        self.order = MixOrder(
            [
                MixStream(
                    name,
                    stream.dataset.num_samples,
                    stream.weight,
                    stream.dataset.options.num_lanes,
                    _global_size(stream, world.world_size, bare=bare),
                    stream.num_accumulation,
                    stream.group,
                )
                for name, stream in streams.items()
            ],
            options,
            global_batch_size,
            world.rank,
            world.world_size,
        )
        self._counts = counts
        if options.by == "sample" and any(feed.collate is not None for feed in self.feeds):
            raise ConfigError(
                'collate_fn of a stream needs by="batch" or by="rank": batches by="sample" are of '
                "several streams; give the loader one"
            )
        if options.by == "sample" and any(_own_size(stream) for stream in streams.values()):
            raise ConfigError(
                'a batch size of a stream needs by="batch" or by="rank": batches by="sample" are '
                "of several streams, by weight; give the loader one"
            )
        self._accumulates = any(stream.num_accumulation > 1 for stream in streams.values())

    def num_batches(self) -> int | None:
        """See ``Plan``; of the mixture's first epoch."""
        key = (self.order.global_batch_size, self.order.options, self.order.streams)
        if key not in self._counts:
            self._counts[key] = count_batches(self.order)
        return self._counts[key]

    def is_over(self, place: MixState) -> bool:
        """See ``Plan``."""
        is_start = not any(stream.given for stream in place.streams)
        return not is_start and not self.order.has_batches(place)

    def jobs(self, place: MixState) -> Iterator[tuple[Job, MixState]]:
        """See ``Plan``."""
        for batch in self.order.iterate(place, _orders(self._datasets)):
            if batch.parts:
                yield self._job(batch), batch.state

    def spans_epoch(self, start: MixState, stop: MixState) -> bool:
        """See ``Plan``."""
        if not any(stream.given for stream in start.streams) and not self.order.has_batches(stop):
            return True
        passed = (
            (behind.epoch - before.epoch) * stream.num_samples + behind.position - before.position
            for stream, before, behind in zip(
                self.order.streams, start.streams, stop.streams, strict=True
            )
        )
        return all(
            num_passed >= 2 * stream.num_samples  # less may be parts of two epochs
            for stream, num_passed in zip(self.order.streams, passed, strict=True)
        )

    def end(self, place: MixState) -> MixState:
        """See ``Plan``: behind the last batches too, which may hold nothing for this rank."""
        while (behind := self.order.step(place)) is not None:
            place = behind
        return place

    def next_epoch(self, place: MixState) -> MixState:
        """See ``Plan``."""
        return self.order.next_epoch(self.end(place))

    @contextlib.contextmanager
    def ahead(self, place: MixState) -> Iterator[None]:
        """See ``Plan``."""
        pieces = _Pieces(self.jobs(place), len(self.feeds))
        with contextlib.ExitStack() as near:
            for number, feed in enumerate(self.feeds):
                passes = pieces.passes(number, feed.stream.selection.locate)
                near.enter_context(feed.stream.source.ahead(passes))
            yield

    def _job(self, batch: MixBatch) -> Job:
        marks: dict[str, Any] = {}
        if self.order.options.by != "sample":
            marks["__stream__"] = self.feeds[batch.parts[0].stream].name
            if self._accumulates:
                marks["__rounds_left__"] = batch.num_rounds_left
        interleave = batch.interleave if len(batch.parts) > 1 else None
        return Job(batch.parts, interleave, marks)


class _Pieces:
    """One plan, walked once, for the look-ahead of several streams. Thread-safe."""

    def __init__(self, jobs: Iterator[tuple[Job, Any]], num_streams: int) -> None:
        self._lock = threading.Lock()
        self._jobs = jobs  # this and the queues: guarded by _lock
        self._queues = [deque[MixPart](maxlen=_KEPT_PIECES) for _ in range(num_streams)]

    def passes(
        self, stream: int, locate: Callable[[Int64Array], Places]
    ) -> Iterator[Iterator[Places]]:
        """What one stream will be read for, in order; a pass is an epoch of its own."""
        for _, parts in itertools.groupby(self._parts(stream), lambda part: part.epoch):
            yield (locate(part.ids) for part in parts)

    def _parts(self, stream: int) -> Iterator[MixPart]:
        queue = self._queues[stream]
        while True:
            with self._lock:
                while not queue:
                    job, _ = next(self._jobs, (None, None))
                    if job is None:
                        return
                    for part in job.parts:
                        self._queues[part.stream].append(part)
                part = queue.popleft()
            yield part


def _own_size(stream: Stream) -> int | None:
    return stream.batch_size or stream.global_batch_size


def _global_size(stream: Stream, world_size: int, *, bare: bool) -> int | None:
    if bare or stream.batch_size is None:
        return None if bare else stream.global_batch_size
    return stream.batch_size * world_size


def _orders(datasets: list[SampleDataset]) -> Callable[[int, int], EpochOrder]:
    """Orders of (stream, epoch), of which the latest of each stream is kept."""
    kept: dict[int, tuple[int, EpochOrder]] = {}

    def order_of(stream: int, epoch: int) -> EpochOrder:
        if stream not in kept or kept[stream][0] != epoch:
            kept[stream] = (epoch, datasets[stream].order(epoch))
        return kept[stream][1]

    return order_of
