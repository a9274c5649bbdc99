"""``Mix``: several data sets as one, drawn from by weight; exact and elastic like one."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shardkit.dataset import IterableBase, SampleDataset, WorkerRows
from shardkit.errors import ConfigError, StateError
from shardkit.loader.mix_plan import MixPlan, Stream
from shardkit.loader.plan import Job
from shardkit.order.mix import MixPart
from shardkit.order.mix_state import MixBy, MixEnds, MixOptions, MixState, StreamState
from shardkit.order.schedule import ScheduleName
from shardkit.order.split import Remainder
from shardkit.order.state import State
from shardkit.samples.failures import Failed
from shardkit.samples.progress import split_worker_fields, worker_fields
from shardkit.samples.source import Sample
from shardkit.samples.stream import Outcome
from shardkit.world import World

__all__ = ["Mix", "Stream"]

logger = logging.getLogger(__name__)

# Steps of bare iteration that are read together: few at first, then enough that what a step costs
# beside its sample is shared by many (10 µs instead of 60).
_FIRST_BLOCK = 16
_BLOCK = 256


class MixProgress:
    """How far one iteration has come; see ``samples.progress.Progress``."""

    __slots__ = ("first", "place")

    def __init__(self, place: MixState, first: int) -> None:
        self.place = place
        self.first = first


class Mix(IterableBase):
    """Several data sets, mixed by weight; for ``DataLoader``, or a bare ``for``.

    Args:
        streams: data sets by name, with weights or without: ``{"photos": (photos, 0.6), "clips":
            (clips, 0.4)}``, or each as a ``Stream``; or a list, whose streams are named "0", "1", …
            A state knows streams by name.
        weights: by name or in the order of ``streams``, instead of weights among them.
        by: "sample" mixes within each batch, "batch" makes each global batch of one stream, "rank"
            lets each rank draw its own (its state fits the same world size only), among the
            streams of one ``group`` where they have some.
        schedule: "balanced" (as even as can be, in every prefix), "random", "consecutive",
            "consecutive_interleaved", "random_order" or "fixed_random_order": see
            ``docs/order.md``.
        ends: when an epoch of the mixture ends: before the "first" stream would run out, before the
            stream of the name given here would, when "all" have, or "never"; a stream that is
            drawn past its end goes on with its own next epoch, in a new order. With "once" a
            stream that has run out is not drawn any more, and the others go on by their weights
            until each has given all it has (by="sample" or "batch").
        seed: of the schedule.
        ranks_per_draw: by="rank": so many ranks in a row, those of a node perhaps, draw together.

    A weight of 0 leaves a stream out.

    Each sample has its stream's name as ``__stream__``. Batches of one stream (by="batch", "rank")
    have the name itself there, and as ``__rounds_left__`` the batches of a turn that are still to
    come, where a stream accumulates. Bare iteration gives each rank one sample at a time.

    A stream's order is that of its data set: seed, shuffle, filter and failure policy are the data
    set's own. An epoch of the mixture begins each stream where the epoch before left it.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        streams: Mapping[str, Any] | Sequence[Any],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        *,
        by: MixBy = "sample",
        schedule: ScheduleName = "balanced",
        ends: MixEnds | str = "first",
        seed: int = 0,
        ranks_per_draw: int = 1,
    ) -> None:
        self.streams = _streams(streams, weights)
        self.options = MixOptions(
            by=by, schedule=schedule, ends=ends, seed=seed, ranks_per_draw=ranks_per_draw
        )
        self.world = _world_of(self.streams)
        self._counts: dict[Any, int | None] = {}
        start = self._bare().order.start()
        self._rows = WorkerRows(len(_row(start, begun=False)))
        self._rows.write_all(_row(start, begun=False))
        self._first: int | None = None  # next batch of a loader worker whose own state was loaded
        self._progress: MixProgress | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        shares = ", ".join(f"{name!r}: {one.weight:g}" for name, one in self.streams.items())
        return f"<Mix of {{{shares}}}, by={self.options.by!r}, seed={self.options.seed}>"

    def plan(self, global_batch_size: int, remainder: Remainder) -> MixPlan:
        """Return the batches of this rank.

        Raises:
            ConfigError: the batch size does not fit the streams or the world.
        """
        options = replace(self.options, remainder=remainder)
        return MixPlan(self.streams, options, global_batch_size, self._counts)

    def __iter__(self) -> Iterator[Sample]:
        """Begin the next epoch, and yield this rank's (and loader worker's) samples of it."""
        world, plan = self.world.in_worker(), self._bare()
        progress = self.begin_epoch(world.worker)
        if world.num_workers == 1 and plan.is_over(progress.place):  # else wait for the others
            progress = self.begin_epoch(world.worker)
        return self._epoch(world, plan, progress)

    def _epoch(self, world: World, plan: MixPlan, progress: MixProgress) -> Iterator[Sample]:
        jobs = plan.jobs(progress.place)
        with plan.ahead(progress.place):
            mine = itertools.islice(jobs, progress.first, None, world.num_workers)
            for made, behind in self._made(mine):
                yield from made[:-1]  # the place moves with the last of them: nothing is lost
                progress.place, progress.first = behind, world.num_workers - 1
                yield from made[-1:]
        progress.place = plan.end(progress.place)  # the same for all ranks and workers
        self._rows.write(world.worker, _row(progress.place, begun=True))

    def begin_epoch(self, worker: int = 0) -> MixProgress:
        """Take the next epoch, or the rest of a restored one; whoever iterates moves it on.

        Raises:
            ConfigError: see ``SampleDataset.check_world``.
        """
        for stream in self.streams.values():
            stream.dataset.check_world()
        with self._lock:
            begun, place = self._read(worker)
            first = worker if self._first is None else self._first
            if begun:
                place, first = self._bare().order.next_epoch(place), worker
            self._first = None
            self._rows.write(worker, _row(place, begun=True))
            self._progress = MixProgress(place, first)
            return self._progress

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``: the next one, or 0 to start anew.

        Raises:
            ConfigError: it is another; where its streams begin is known only by going there.
        """
        with self._lock:
            begun, place = self._read(0)
            if epoch == place.epoch + begun:
                return
            if epoch:
                raise ConfigError(
                    f"epoch={epoch} of a mixture that is in epoch {place.epoch}: where streams "
                    "stand in another epoch is known only by going there; load a state instead"
                )
            self._rows.write_all(_row(self._bare().order.start(), begun=False))
            self._progress = self._first = None

    def state_dict(self, progress: MixProgress | None = None) -> dict[str, Any]:
        """How far the mixture and each of its streams have come, in plain JSON values.

        Exact as a data set's: see ``SampleDataset.state_dict``.
        """
        world = self.world.in_worker()
        with self._lock:
            begun, place = self._read(world.worker)
            first = world.worker if self._first is None else self._first
            if self._progress is not None:
                progress = progress or self._progress
                place, first = progress.place, progress.first
            elif begun and world.num_workers == 1:
                logger.warning(
                    "the state is that of the start or end of epoch %d: how far the workers of "
                    "torch's DataLoader are can't be seen from here; shardkit.DataLoader saves "
                    "exact states",
                    place.epoch,
                )
        state: dict[str, Any] = {
            "mix": self._bare().order.to_dict(place),
            "streams": {
                name: stream.dataset.state_at(at.epoch, at.position).to_dict()
                for (name, stream), at in zip(self.streams.items(), place.streams, strict=True)
            },
        }
        if world.num_workers == 1:
            return state
        return {**state, **worker_fields(world.worker, world.num_workers, first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken, on any world size (but for by="rank").

        Streams are known by name. One that is still here goes on where it was, on the same data; a
        new one starts; one that is gone is forgotten. If streams, weights, ``by``, schedule or seed
        changed, the schedule starts anew, so that the new weights hold from here on.

        Raises:
            StateError: a stream of that name has other data, or the state is no mixture's.
        """
        world = self.world.in_worker()
        fields, first = split_worker_fields(state, world.worker, world.num_workers)
        if set(fields) != {"mix", "streams"} or not isinstance(fields["streams"], Mapping):
            raise StateError("not a state of a mixture: pass what its state_dict() gave")
        found: dict[str, tuple[State, int, int]] = {}
        for name, stream in self.streams.items():
            if name in fields["streams"]:
                try:
                    saved = State.from_dict(fields["streams"][name])
                    found[name] = (saved, *stream.dataset.check_state(saved))
                except StateError as error:
                    raise StateError(f"stream {name!r}: {error}") from error
        place = self._bare().order.from_dict(fields["mix"])
        places = [
            at._replace(epoch=found[name][1], position=found[name][2]) if name in found else at
            for name, at in zip(self.streams, place.streams, strict=True)
        ]
        for name, (saved, _, _) in found.items():
            self.streams[name].dataset.adopt_options(saved.options())
        row = _row(place._replace(streams=tuple(places)), begun=False)
        with self._lock:
            if first is None:
                self._rows.write_all(row)
            else:
                self._rows.write(world.worker, row)
            self._first, self._progress = first, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_progress": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _bare(self) -> MixPlan:
        """Batches of one sample a rank, as bare iteration goes over them."""
        options = replace(self.options, remainder="keep")
        return MixPlan(self.streams, options, self.world.world_size, self._counts, bare=True)

    def _made(
        self, jobs: Iterator[tuple[Job, MixState]]
    ) -> Iterator[tuple[list[Sample], MixState]]:
        """The samples of each job, and the place behind it; streams are read many at a time."""
        names, limit = list(self.streams), _FIRST_BLOCK
        while block := list(itertools.islice(jobs, limit)):
            limit = _BLOCK
            outcomes = self._outcomes(block)
            for job, behind in block:
                samples = []
                for part in job.parts:
                    name = names[part.stream]
                    found = outcomes[part.stream, part.epoch]
                    for outcome in itertools.islice(found, len(part.ids)):
                        if isinstance(outcome, Failed):
                            self.streams[name].dataset.failed(outcome)
                            continue
                        samples += [{**sample, "__stream__": name} for sample in outcome]
                yield samples, behind

    def _outcomes(
        self, block: Sequence[tuple[Job, MixState]]
    ) -> dict[tuple[int, int], Iterator[Outcome]]:
        """What the slots of a block yield, one after the other, by stream and epoch."""
        parts: dict[tuple[int, int], list[MixPart]] = {}
        for job, _ in block:
            for part in job.parts:
                parts.setdefault((part.stream, part.epoch), []).append(part)
        datasets = [stream.dataset for stream in self.streams.values()]
        return {
            (number, epoch): datasets[number].stream.outcomes(
                np.concatenate([part.ids for part in several]),
                np.concatenate([part.positions for part in several]),
                seed=datasets[number].options.seed,
                epoch=epoch,
            )
            for (number, epoch), several in parts.items()
        }

    def _read(self, worker: int) -> tuple[bool, MixState]:
        """Whether the epoch has begun, and the place; under the lock."""
        if self._progress is not None:
            return True, self._progress.place
        begun, epoch, rounds_left, *rest = self._rows.read(worker)
        streams = tuple(StreamState(*rest[at : at + 4]) for at in range(0, len(rest), 4))
        return bool(begun), MixState(streams, epoch, rounds_left)


def _row(place: MixState, *, begun: bool) -> list[int]:
    """A place as integers."""
    head = [int(begun), place.epoch, place.rounds_left]
    return head + [value for stream in place.streams for value in stream]


def _streams(
    streams: Mapping[str, Any] | Sequence[Any],
    weights: Mapping[str, float] | Sequence[float] | None,
) -> dict[str, Stream]:
    """The streams by name, however they were given.

    Raises:
        ConfigError: they or their weights are given twice, or not as data sets.
    """
    if not isinstance(streams, Mapping | Sequence):
        raise ConfigError(
            f"streams is a {type(streams).__name__}: give data sets by name, or a list of them"
        )
    named = dict(streams if isinstance(streams, Mapping) else enumerate(streams))
    found = {str(name): _stream(str(name), value) for name, value in named.items()}
    if weights is not None:
        found = _weighted(found, weights)
    if not any(stream.weight for stream in found.values()):
        raise ConfigError("a mixture needs at least one data set of a weight above 0")
    return {name: stream for name, stream in found.items() if stream.weight}


def _weighted(
    found: Mapping[str, Stream], weights: Mapping[str, float] | Sequence[float]
) -> dict[str, Stream]:
    """The streams with weights by name or in order."""
    given = weights if isinstance(weights, Mapping) else dict(zip(found, weights, strict=False))
    if set(given) != set(found) or len(weights) != len(found):
        raise ConfigError(f"weights={weights!r} must be one for each of {list(found)}")
    if any(stream.weight != 1.0 for stream in found.values()):
        raise ConfigError("weights are given twice: among the streams and as weights=")
    return {name: replace(stream, weight=given[name]) for name, stream in found.items()}


def _stream(name: str, value: Any) -> Stream:
    stream = value
    if isinstance(value, SampleDataset):
        stream = Stream(value)
    elif isinstance(value, tuple) and len(value) == 2:
        stream = Stream(*value)
    if not isinstance(stream, Stream) or not isinstance(stream.dataset, SampleDataset):
        raise ConfigError(
            f"stream {name!r} is {value!r}: give a data set, (data set, weight) or a Stream"
        )
    return stream


def _world_of(streams: Mapping[str, Stream]) -> World:
    worlds = {stream.dataset.world for stream in streams.values()}
    if len(worlds) > 1:
        raise ConfigError(
            f"the data sets of a mixture are of different worlds: {worlds}; give all the same"
        )
    return worlds.pop()
