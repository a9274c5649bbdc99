"""Mixtures: several epoch orders drawn from by weight, exact and elastic like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from shardkit.errors import ConfigError
from shardkit.order.batches import BoolArray
from shardkit.order.draws import Draws
from shardkit.order.epoch import EpochOrder
from shardkit.order.hashing import Int64Array, make_key
from shardkit.order.mix_state import (
    MixEnds,
    MixOptions,
    MixState,
    MixStream,
    StreamState,
    mix_state_from_dict,
    mix_state_to_dict,
)
from shardkit.order.permutation import permute_groups
from shardkit.order.schedule import interleave
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

    Attributes:
        num_draws: per step: a sample each (by="sample"), or a stream for some ranks each.

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
        self.num_draws = {
            "sample": global_batch_size,
            "batch": 1,
            "rank": world_size // options.ranks_per_draw,
        }[options.by]
        self._groups = _numbered([stream.group for stream in self.streams])
        self._draws_of: dict[tuple[int, ...], Draws] = {}
        self._check()

    def start(self) -> MixState:
        """Return the state before the first batch."""
        return MixState(tuple(StreamState() for _ in self.streams))

    def next_epoch(self, state: MixState) -> MixState:
        """Return the state at the start of the mixture's next epoch; the streams go on."""
        anew = {"given": 0, "draws": 0} if self.options.ends == "once" else {"given": 0}
        streams = tuple(place._replace(**anew) for place in state.streams)
        return MixState(streams, state.epoch + 1)

    def has_batches(self, state: MixState) -> bool:
        """Whether the epoch of a state goes on after it."""
        return self.step(state) is not None

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
        while (plan := self._plan(state)) is not None:
            plans.append(plan)
            shares, state = plan
            planned += self._cost(shares)
            if planned >= limit:
                yield from self._resolve(plans, order_of)
                plans, planned, limit = [], 0, min(4 * limit, _PLAN)
        yield from self._resolve(plans, order_of)

    def step(self, state: MixState) -> MixState | None:
        """Return the state after the batch that follows, None at the end of the epoch."""
        plan = self._plan(state)
        return None if plan is None else plan[1]

    def draws(self, state: MixState) -> Draws:
        """Return what draws streams at a state: all, but those that have run out for "once"."""
        everyone: tuple[int, ...] = tuple(range(len(self.streams)))
        alive = everyone
        if self.options.ends == "once":  # at the end, whoever begins the next epoch
            alive = tuple(n for n in everyone if self.num_left(state, n)) or everyone
        if alive not in self._draws_of:
            groups = [group if n in alive else None for n, group in enumerate(self._groups)]
            weights = [stream.weight for stream in self.streams]
            options = self.options
            self._draws_of[alive] = Draws(options.schedule, weights, groups, options.seed)
        return self._draws_of[alive]

    def num_left(self, state: MixState, number: int) -> int:
        """Return how many samples a stream still has before it has run out."""
        left = self.streams[number].num_samples - state.streams[number].given
        is_short = self.options.by != "sample" and self.options.remainder == "drop"
        least = self.draw_size(number) // self.streams[number].num_accumulation if is_short else 1
        return left if left >= least else 0

    def batch_size(self, number: int) -> int:
        """Return G of a stream's batches."""
        if self.options.by == "sample":
            return self.global_batch_size
        return self.streams[number].global_batch_size or self.global_batch_size

    def draw_size(self, number: int) -> int:
        """Return how many samples one draw of a stream takes, all rounds of its turn together."""
        if self.options.by == "sample":
            return 1
        stream = self.streams[number]
        return self.batch_size(number) // self.num_draws * stream.num_accumulation

    def to_dict(self, state: MixState) -> dict[str, Any]:
        """Return a state as plain JSON values."""
        return mix_state_to_dict(state, self.streams, self.options, self.world_size)

    def from_dict(self, mapping: Mapping[str, Any]) -> MixState:
        """Build a state from ``to_dict``'s mapping, also of a mixture that was changed since.

        Streams are known by name: those still here go on where they were, new ones start, others
        are forgotten. If names, groups, weights, ``by``, schedule or seed changed, the schedule
        starts anew, so that the new weights hold from here on.

        Raises:
            StateError: the mapping is no such state, or by="rank" meets another world size.
        """
        return mix_state_from_dict(mapping, self.streams, self.options, self.world_size)

    def _check(self) -> None:
        options, names = self.options, [stream.name for stream in self.streams]
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError(f"streams {names} need unique names: the state knows them by name")
        known = (*get_args(MixEnds), *names)
        if options.ends not in known:
            raise ConfigError(f"ends={options.ends!r} is not one of {', '.join(known)}: choose one")
        if options.by == "rank" and self.world_size % options.ranks_per_draw:
            raise ConfigError(
                f"ranks_per_draw={options.ranks_per_draw} does not divide {self.world_size} ranks: "
                "use a number that does"
            )
        for number in range(len(names)):
            self._check_stream(number)
        self._check_rounds()
        if self._plan(self.start()) is None:
            raise ConfigError(
                "a stream runs out before the mixture's first batch is full: use a smaller batch, "
                'leave the smallest stream out, or use ends="all"'
            )

    def _check_stream(self, number: int) -> None:
        stream = self.streams[number]
        size = self.batch_size(number)
        split = Split(
            stream.num_samples,
            size,
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
        if self.options.by == "rank" and size % self.world_size:
            raise ConfigError(
                f"stream {stream.name!r} has global_batch_size={size}, "
                f'not a multiple of {self.world_size} ranks: by="rank" needs one'
            )
        if stream.group and self.options.by != "rank":
            raise ConfigError(
                f'stream {stream.name!r} has group={stream.group!r}: groups need by="rank"'
            )
        if stream.num_accumulation < 1 or (
            self.options.by == "sample" and stream.num_accumulation > 1
        ):
            raise ConfigError(
                f"stream {stream.name!r} has num_accumulation={stream.num_accumulation}: it "
                'must be at least 1, and more than 1 needs by="batch" or by="rank"'
            )

    def _check_rounds(self) -> None:
        """Refuse ranks that would accumulate for different times in one turn."""
        for group in set(self._groups) if self.num_draws > 1 else ():
            pairs = zip(self.streams, self._groups, strict=True)
            members = [stream for stream, number in pairs if number == group]
            if self.options.by == "rank" and len({one.num_accumulation for one in members}) > 1:
                rounds = {one.name: one.num_accumulation for one in members}
                raise ConfigError(
                    f"num_accumulation is {rounds}, and ranks draw these streams at the same time: "
                    "give all of a group the same number"
                )

    def _cost(self, shares: Sequence[_Share]) -> int:
        """Estimate the canonical positions that ids of these shares span."""
        return max(1, sum(len(share.positions) for share in shares)) * self.world_size

    def _plan(self, state: MixState) -> tuple[list[_Share], MixState] | None:
        """Plan the next batch: its shares, and the state after it; None if the epoch is over."""
        streams = range(len(self.streams))
        if self.options.ends in ("all", "once") and not any(
            self.num_left(state, number) for number in streams
        ):
            return None
        if self.options.by == "sample":
            return self._plan_samples(state)
        return self._plan_ranks(state)

    def _plan_samples(self, state: MixState) -> tuple[list[_Share], MixState] | None:
        """Give each rank its share of each stream; shares and totals differ by at most one."""
        counts, draws = self._counts(state)
        num_pads, padded = 0, -1
        if (short := self.num_draws - sum(counts)) and self.options.remainder != "keep":
            if self.options.remainder == "drop":
                return None
            num_pads, padded = short, counts.index(max(counts))
        shares, places = [], []
        # Dealing starts at a hashed rank, so that no rank gets the surplus more often than others.
        dealt, ranks = 0, self.world_size
        if ranks > 1:
            dealt = make_key("deal", self.options.seed, state.step) % ranks
        for number, count in enumerate(counts):
            place = state.streams[number]
            if not count:
                places.append(place._replace(draws=draws[number]))
                continue
            if self._has_run_out(number, place, count):
                return None
            total = count + num_pads * (number == padded)
            # Cards dealt in turn say how many a rank gets; lane-major runs say which.
            first, last = 0, total
            if ranks > 1:
                first = _dealt_before(dealt, total, ranks, self.rank)
                last = _dealt_before(dealt, total, ranks, self.rank + 1)
            found, (epoch, position) = self._stretch(number, place, count, total, first, last)
            shares += found
            places.append(StreamState(epoch, position, place.given + count, draws[number]))
            dealt += total
        return shares, MixState(tuple(places), state.epoch)

    def _counts(self, state: MixState) -> tuple[list[int], list[int]]:
        """How many samples of each stream come next, and the draws of each after that."""
        draws = [place.draws for place in state.streams]
        counts = self.draws(state).count(draws, self.num_draws)
        if self.options.ends != "once":
            return counts, [n + m for n, m in zip(draws, counts, strict=True)]
        total = [0] * len(counts)
        while True:  # as often as a stream runs out within the batch
            left = [self.num_left(state, number) for number in range(len(counts))]
            taken = [min(pair) for pair in zip(counts, left, strict=True)]
            total = [n + m for n, m in zip(total, taken, strict=True)]
            draws = [n + m for n, m in zip(draws, taken, strict=True)]
            if any(n and n == m for n, m in zip(taken, left, strict=True)):
                draws = [0] * len(counts)  # the others go on by their weights alone
            given = [n + place.given for n, place in zip(taken, state.streams, strict=True)]
            places = zip(state.streams, given, strict=True)
            state = MixState(tuple(place._replace(given=n) for place, n in places))
            missing = self.num_draws - sum(total)
            if not missing or taken == left:
                return total, draws
            counts = self.draws(state).count(draws, missing)

    def _stretch(
        self, number: int, place: StreamState, count: int, total: int, first: int, last: int
    ) -> tuple[list[_Share], tuple[int, int]]:
        """Take items [first, last) of a stream's next ``count`` positions, over epoch ends.

        Behind them stand pads, up to ``total`` in all. Returns also where the stream is then.
        """
        stream, (epoch, position, _, _) = self.streams[number], place
        shares = []
        done = 0
        while done < count:
            if position >= stream.num_samples:
                epoch, position = epoch + 1, 0
            size = min(count - done, stream.num_samples - position)
            end = position + size
            if done + size == count:
                size = total - done
            low, high = max(first - done, 0), min(last - done, size)
            if low < high:
                phase = position % stream.num_lanes
                positions = position + lane_major(low, high, phase, size, stream.num_lanes)
                repeated = positions
                if total > count:
                    split = Split(stream.num_samples, total, "pad", num_lanes=stream.num_lanes)
                    repeated = split.unpad(positions)
                shares.append(_Share(number, epoch, positions, repeated, stream.num_samples))
            position = end
            done += size
        return shares, (epoch, position)

    def _plan_ranks(self, state: MixState) -> tuple[list[_Share], MixState] | None:
        """Give each run of ranks a batch of the stream that it drew, for the rounds of a turn."""
        places = list(state.streams)
        drawn = self.draws(state).sequence([place.draws for place in places], self.num_draws)
        if self.num_draws > 1:
            key = make_key("ranks", self.options.seed, state.step)
            drawn = drawn[permute_groups(self.num_draws, key)]
        counts = np.bincount(drawn, minlength=len(places)).tolist()
        left = state.rounds_left or self._num_rounds(state, counts)
        if not left:
            return None
        per_draw = self.world_size // self.num_draws
        mine, within = divmod(self.rank, per_draw)
        shares = []
        for number, count in enumerate(counts):
            if not count:
                continue
            is_mine = int(drawn[mine]) == number
            ahead = int(np.count_nonzero(drawn[:mine] == number)) if self.num_draws > 1 else 0
            index = ahead * per_draw + within if is_mine else 0
            size = self.batch_size(number) * count // self.num_draws
            share, places[number] = self._take(
                number, places[number], size, index, count * per_draw
            )
            if is_mine and len(share.positions):  # a short batch may hold nothing for this rank
                shares.append(share)
            if left == 1:  # a turn counts when it is over: within it the same is drawn
                places[number] = places[number]._replace(draws=places[number].draws + count)
        after = MixState(tuple(places), state.epoch, left - 1)
        if left == 1 and self.draws(after) is not self.draws(state):
            after = after._replace(streams=tuple(one._replace(draws=0) for one in after.streams))
        return shares, after

    def _num_rounds(self, state: MixState, counts: Sequence[int]) -> int:
        """How many batches the next turn yields; 0 if it can't be whole and so ends the epoch."""
        rounds = 0
        for number in np.flatnonzero(counts).tolist():
            rounds = self.streams[number].num_accumulation  # all that are drawn at once have one
            size = self.batch_size(number) * counts[number] // self.num_draws
            if self.options.ends == "once":  # here the last turn may be shorter
                return min(rounds, -(-self.num_left(state, number) // size))
            last = size if self.options.remainder == "drop" else 1
            if self._has_run_out(number, state.streams[number], last + (rounds - 1) * size):
                return 0
        return rounds

    def _take(
        self, number: int, place: StreamState, size: int, rank: int, world_size: int
    ) -> tuple[_Share, StreamState]:
        """Take one rank's part of a stream's next batch, of its next epoch if this one is over."""
        stream = self.streams[number]
        split = Split(
            stream.num_samples, size, self.options.remainder, rank, world_size, stream.num_lanes
        )
        epoch, position, given, draws = place
        if split.num_batches(position) == 0:
            given += stream.num_samples - position  # what "drop" leaves out
            epoch, position = epoch + 1, 0
        positions = split.batch(position)
        share = _Share(number, epoch, positions, split.unpad(positions), stream.num_samples)
        stop = min(position + size, stream.num_samples)
        return share, StreamState(epoch, stop, given + stop - position, draws)

    def _has_run_out(self, number: int, place: StreamState, needed: int) -> bool:
        stream = self.streams[number]
        ends = self.options.ends in ("first", stream.name)
        return ends and place.given + needed > stream.num_samples

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
            done = 0
            for share in shares:
                share.ids = ids[done : done + len(share.repeated)]
                done += len(share.repeated)
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


def _numbered(names: Sequence[str]) -> list[int]:
    """The number of each name, in order of first sight."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def _dealt_before(first: int, count: int, num_hands: int, hand: int) -> int:
    """How many of cards ``first`` … ``first + count``, dealt in turn, hands before ``hand`` get."""

    def up_to(card: int) -> int:
        return card // num_hands * hand + min(card % num_hands, hand)

    return up_to(first + count) - up_to(first)


def _spread(parts: Sequence[MixPart]) -> Int64Array:
    """Return the places of the parts' samples, laid in a row, in the order of the batch."""
    counts = [len(part.positions) for part in parts]
    total = sum(counts)
    if len(parts) < 2:
        return np.arange(total)
    order = np.empty(total, np.int64)
    order[np.argsort(interleave(counts), kind="stable")] = np.arange(total)
    return order
