"""Mixtures: several epoch orders drawn from by weight, exact and elastic like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shardkit.errors import ConfigError
from shardkit.order.batches import BoolArray
from shardkit.order.epoch import EpochOrder
from shardkit.order.hashing import Int64Array, make_key
from shardkit.order.mix_state import (
    MixOptions,
    MixState,
    MixStream,
    StreamState,
    mix_state_from_dict,
    mix_state_to_dict,
)
from shardkit.order.permutation import permute_groups
from shardkit.order.schedule import Schedule, interleave
from shardkit.order.split import Split, lane_major

__all__ = ["MixBatch", "MixOrder", "MixPart"]

# Positions planned at once, as in batches.py: few at first, then enough to pay for mixing rarely.
_FIRST_PLAN = 4096
_PLAN = 65_536


@dataclass(frozen=True, slots=True)
class MixPart:
    """This rank's samples of one epoch of one stream in a batch; fields as in ``Batch``."""

    stream: int
    epoch: int
    positions: Int64Array
    ids: Int64Array
    is_pad: BoolArray


@dataclass(frozen=True, slots=True)
class MixBatch:
    """One rank's part of one global batch of a mixture.

    Attributes:
        parts: several for by="sample", one otherwise.
        interleave: int64, the order of the batch over the parts' samples laid in a row.
        num_rounds_left: batches of this turn that are still to come.
        state: to resume from when the batch has been consumed.
    """

    parts: tuple[MixPart, ...]
    interleave: Int64Array
    num_rounds_left: int
    state: MixState


@dataclass(slots=True)
class _Share:
    """A part before its ids are known."""

    stream: int
    epoch: int
    positions: Int64Array
    repeated: Int64Array  # the positions whose samples stand there
    num_samples: int
    ids: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))


class MixOrder:
    """The canonical order of a mixture, split over ranks. Deterministic and stateless.

    Args:
        streams: at least one, with unique names.
        options: what the user chose.
        global_batch_size: G of the mixture.
        rank: from 0.
        world_size: ranks that share the mixture.

    Raises:
        ConfigError: the streams and options do not fit together.
    """

    def __init__(
        self,
        streams: Sequence[MixStream],
        options: MixOptions,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.streams = tuple(streams)
        self.options = options
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.schedule = Schedule(
            options.schedule, [stream.weight for stream in self.streams], options.seed
        )
        self._check()

    def start(self) -> MixState:
        """Return the state before the first batch."""
        return MixState(tuple(StreamState() for _ in self.streams))

    def next_epoch(self, state: MixState) -> MixState:
        """Return the state at the start of the mixture's next epoch; the streams go on."""
        streams = tuple(replace(stream, given=0) for stream in state.streams)
        return replace(state, streams=streams, epoch=state.epoch + 1, turn=-1, rounds_left=0)

    def has_batches(self, state: MixState) -> bool:
        """Whether the epoch of a state goes on after it."""
        return next(self._plans(state), None) is not None

    def num_batches(self, state: MixState | None = None) -> int | None:
        """Count the batches to the end of the epoch, by drawing them; None if it never ends."""
        if self.options.ends == "never":
            return None
        return sum(1 for _ in self._plans(state or self.start()))

    def iterate(
        self, state: MixState, order_of: Callable[[int, int], EpochOrder]
    ) -> Iterator[MixBatch]:
        """Yield this rank's batches from a state to the end of the mixture's epoch.

        Args:
            state: ``start()``, or a batch's.
            order_of: gives the order of (stream, epoch); called again for the same pair, so it
                should keep the latest of each stream.
        """
        plans, planned, limit = [], 0, _FIRST_PLAN
        for shares, after in self._plans(state):
            plans.append((shares, after))
            planned += self._cost(shares)
            if planned >= limit:
                yield from self._resolve(plans, order_of)
                plans, planned, limit = [], 0, min(4 * limit, _PLAN)
        yield from self._resolve(plans, order_of)

    def to_dict(self, state: MixState) -> dict[str, Any]:
        """Return a state as plain JSON values."""
        return mix_state_to_dict(state, self.streams, self.options, self.world_size)

    def from_dict(self, mapping: Mapping[str, Any]) -> MixState:
        """Build a state from ``to_dict``'s mapping, also of a mixture that was changed since.

        Streams are known by name: those still here go on where they were, new ones start, others
        are forgotten. If names, weights, ``by``, schedule or seed changed, the schedule starts
        anew, so that the new weights hold from here on.

        Raises:
            StateError: the mapping is no such state, or by="rank" meets another world size.
        """
        return mix_state_from_dict(mapping, self.streams, self.options, self.world_size)

    def _check(self) -> None:
        names = [stream.name for stream in self.streams]
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError(f"streams {names} need unique names: the state knows them by name")
        for number, stream in enumerate(self.streams):
            split = Split(
                stream.num_samples,
                self._batch_size(number),
                self.options.remainder,
                self.rank,
                self.world_size,
                stream.num_lanes,
            )
            enough = split.num_batches() if self.options.by != "sample" else stream.num_samples
            if enough < 1:
                raise ConfigError(
                    f"stream {stream.name!r} of {stream.num_samples} samples has not one batch: "
                    'leave it out, or use remainder="pad"'
                )
            if self.options.by == "rank" and split.global_batch_size % self.world_size:
                raise ConfigError(
                    f"stream {stream.name!r} has global_batch_size={split.global_batch_size}, "
                    f'not a multiple of {self.world_size} ranks: by="rank" needs one'
                )
            if stream.num_accumulation < 1 or (
                self.options.by != "batch" and stream.num_accumulation > 1
            ):
                raise ConfigError(
                    f"stream {stream.name!r} has num_accumulation={stream.num_accumulation}: it "
                    'must be at least 1, and more than 1 needs by="batch"'
                )
        if self._plan(self.start()) is None:
            raise ConfigError(
                "a stream runs out before the mixture's first batch is full: use a smaller batch, "
                'leave the smallest stream out, or use ends="all"'
            )

    def _batch_size(self, number: int) -> int:
        if self.options.by == "sample":
            return self.global_batch_size
        return self.streams[number].global_batch_size or self.global_batch_size

    def _cost(self, shares: Sequence[_Share]) -> int:
        """Estimate the canonical positions that ids of these shares span."""
        return max(1, sum(len(share.positions) for share in shares)) * self.world_size

    def _plans(self, state: MixState) -> Iterator[tuple[list[_Share], MixState]]:
        """Yield the shares of each batch and the state after it."""
        while not self._is_over(state):
            plan = self._plan(state)
            if plan is None:
                return
            yield plan
            state = plan[1]

    def _is_over(self, state: MixState) -> bool:
        pairs = zip(self.streams, state.streams, strict=True)
        return self.options.ends == "all" and all(
            place.given >= stream.num_samples for stream, place in pairs
        )

    def _plan(self, state: MixState) -> tuple[list[_Share], MixState] | None:
        """Plan the next batch; None if it needs a stream that has run out and ends="first"."""
        if self.options.by == "batch":
            return self._plan_batch(state)
        num_draws = self.global_batch_size if self.options.by == "sample" else self.world_size
        draws = [place.draws for place in state.streams]
        drawn = self.schedule.draw(state.step, draws, num_draws)
        counts = np.bincount(drawn, minlength=len(self.streams))
        if self.options.by == "sample":
            return self._plan_samples(state, counts)
        return self._plan_ranks(state, drawn, counts)

    def _plan_samples(
        self, state: MixState, counts: Int64Array
    ) -> tuple[list[_Share], MixState] | None:
        """Give each rank its share of each stream; shares and totals differ by at most one."""
        shares, places = [], []
        # Dealing starts at a hashed rank, so that no rank gets the surplus more often than others.
        dealt = make_key("deal", self.options.seed, state.step) % self.world_size
        for number, count in enumerate(counts.tolist()):
            place = state.streams[number]
            if self._has_run_out(number, place, count):
                return None
            # Cards dealt in turn say how many a rank gets; lane-major runs say which.
            before = np.concatenate(([0], np.cumsum(_dealt(dealt, count, self.world_size))))
            first, last = int(before[self.rank]), int(before[self.rank + 1])
            found, after = self._stretch(number, place, count, first, last)
            shares += found
            places.append(replace(after, given=place.given + count, draws=place.draws + count))
            dealt += count
        return shares, replace(state, streams=tuple(places))

    def _stretch(
        self, number: int, place: StreamState, count: int, first: int, last: int
    ) -> tuple[list[_Share], StreamState]:
        """Take items [first, last) of a stream's next ``count`` positions, over epoch ends."""
        stream = self.streams[number]
        shares = []
        done = 0
        while done < count:
            if place.position >= stream.num_samples:
                place = replace(place, epoch=place.epoch + 1, position=0)
            size = min(count - done, stream.num_samples - place.position)
            low, high = max(first - done, 0), min(last - done, size)
            if low < high:
                phase = place.position % stream.num_lanes
                positions = place.position + lane_major(low, high, phase, size, stream.num_lanes)
                shares.append(_Share(number, place.epoch, positions, positions, stream.num_samples))
            place = replace(place, position=place.position + size)
            done += size
        return shares, place

    def _plan_batch(self, state: MixState) -> tuple[list[_Share], MixState] | None:
        """Give the whole batch to one stream, several times in a row if it accumulates."""
        number, left = state.turn, state.rounds_left
        places = list(state.streams)
        if left == 0:
            draws = [place.draws for place in state.streams]
            number = int(self.schedule.draw(state.step, draws, 1)[0])
            left = self.streams[number].num_accumulation
            # A turn is whole or not at all.
            if self._has_run_out(number, places[number], 1 + (left - 1) * self._batch_size(number)):
                return None
            places[number] = replace(places[number], draws=places[number].draws + 1)
        size = self._batch_size(number)
        share, places[number] = self._take(number, places[number], size, self.rank, self.world_size)
        turn = number if left > 1 else -1
        return [share], MixState(tuple(places), state.epoch, turn, left - 1)

    def _plan_ranks(
        self, state: MixState, drawn: Int64Array, counts: Int64Array
    ) -> tuple[list[_Share], MixState] | None:
        """Give each rank a batch of the stream that it drew."""
        key = make_key("ranks", self.options.seed, state.step)
        mine = drawn[permute_groups(self.world_size, key)]  # the stream of each rank
        shares, places = [], list(state.streams)
        for number, count in enumerate(counts.tolist()):
            if not count:
                continue
            if self._has_run_out(number, places[number], 1):
                return None
            size = self._batch_size(number) // self.world_size * count
            index = int(np.count_nonzero(mine[: self.rank] == number))
            is_mine = int(mine[self.rank]) == number
            share, place = self._take(number, places[number], size, index if is_mine else 0, count)
            places[number] = replace(place, draws=place.draws + count)
            if is_mine:
                shares.append(share)
        return shares, replace(state, streams=tuple(places))

    def _take(
        self, number: int, place: StreamState, size: int, rank: int, world_size: int
    ) -> tuple[_Share, StreamState]:
        """Take one rank's part of a stream's next batch, of its next epoch if this one is over."""
        stream = self.streams[number]
        split = Split(
            stream.num_samples, size, self.options.remainder, rank, world_size, stream.num_lanes
        )
        if split.num_batches(place.position) == 0:
            skipped = stream.num_samples - place.position  # what "drop" leaves out
            place = replace(place, epoch=place.epoch + 1, position=0, given=place.given + skipped)
        positions = split.batch(place.position)
        share = _Share(number, place.epoch, positions, split.unpad(positions), stream.num_samples)
        stop = min(place.position + size, stream.num_samples)
        given = place.given + stop - place.position
        return share, replace(place, position=stop, given=given)

    def _has_run_out(self, number: int, place: StreamState, needed: int) -> bool:
        num_samples = self.streams[number].num_samples
        return self.options.ends == "first" and place.given + needed > num_samples

    def _resolve(
        self,
        plans: Sequence[tuple[list[_Share], MixState]],
        order_of: Callable[[int, int], EpochOrder],
    ) -> Iterator[MixBatch]:
        """Look up the ids of many batches, one call per stream and epoch; yield the batches."""
        by_order: dict[tuple[int, int], list[_Share]] = {}
        for shares, _ in plans:
            for share in shares:
                by_order.setdefault((share.stream, share.epoch), []).append(share)
        for (number, epoch), shares in by_order.items():
            ids = order_of(number, epoch).at(np.concatenate([one.repeated for one in shares]))
            bounds = np.cumsum([len(one.repeated) for one in shares])[:-1]
            for share, part in zip(shares, np.split(ids, bounds), strict=True):
                share.ids = part
        for shares, after in plans:
            parts = tuple(
                MixPart(
                    share.stream,
                    share.epoch,
                    share.positions,
                    share.ids,
                    share.positions >= share.num_samples,
                )
                for share in shares
            )
            yield MixBatch(parts, _spread(parts), after.rounds_left, after)


def _dealt(first: int, count: int, num_hands: int) -> Int64Array:
    """Return how many of cards ``first`` … ``first + count``, dealt in turn, each hand gets."""
    hands = np.arange(num_hands)
    later: Int64Array = (first + count - hands + num_hands - 1) // num_hands
    return later - (first - hands + num_hands - 1) // num_hands


def _spread(parts: Sequence[MixPart]) -> Int64Array:
    """Return the places of the parts' samples, laid in a row, in the order of the batch."""
    counts = [len(part.positions) for part in parts]
    total = sum(counts)
    if len(parts) < 2:
        return np.arange(total)
    order = np.empty(total, np.int64)
    order[np.argsort(interleave(counts), kind="stable")] = np.arange(total)
    return order
