"""What a mixture is made of, and how far it is: values, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from shardkit.errors import ConfigError, StateError
from shardkit.order.schedule import ScheduleName
from shardkit.order.split import Remainder
from shardkit.order.state import check_fields

__all__ = [
    "MixBy",
    "MixEnds",
    "MixOptions",
    "MixState",
    "MixStream",
    "StreamState",
    "mix_state_from_dict",
    "mix_state_to_dict",
]

MixBy = Literal["sample", "batch", "rank"]
MixEnds = Literal["first", "all", "once", "never"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class MixStream:
    """One data set of a mixture.

    Attributes:
        name: unique; the state knows the stream by it.
        num_samples: N of its order.
        weight: positive; of samples for by="sample", else of turns.
        num_lanes: L of its order.
        global_batch_size: G for by="batch" and "rank"; None takes the mixture's.
        num_accumulation: batches in a row that one turn yields; 1 for by="sample".
        group: for by="rank": each turn is of the streams of one group.
    """

    name: str
    num_samples: int
    weight: float = 1.0
    num_lanes: int = 1
    global_batch_size: int | None = None
    num_accumulation: int = 1
    group: str = ""


@dataclass(frozen=True, slots=True)
class MixOptions:
    """What the user chose about a mixture.

    Attributes:
        by: "sample" mixes within each batch, "batch" between batches, and with "rank" each rank
            draws its own stream for each batch.
        schedule: see ``Schedule``.
        ends: when an epoch of the mixture ends. A stream has run out when it has given as many
            samples as it has since that epoch began; "first" ends before a batch would need a
            stream that has run out, a stream's name before a batch would need that stream, "all"
            when every stream has run out, "never" goes on: a stream that is drawn after its last
            sample goes on with its own next epoch. With "once" a stream that has run out is not
            drawn any more, and the others go on by their weights until all have.
        remainder: of each stream's last batch, for by="batch" and "rank"; of the mixture's last
            batch for "once".
        seed: of the schedule.
        ranks_per_draw: so many ranks in a row draw together, for by="rank".
    """

    by: MixBy = "sample"
    schedule: ScheduleName = "balanced"
    ends: MixEnds | str = "first"
    remainder: Remainder = "pad"
    seed: int = 0
    ranks_per_draw: int = 1

    def __post_init__(self) -> None:
        """Check the words that have no checker of their own."""
        if self.by not in get_args(MixBy):
            raise ConfigError(
                f"by={self.by!r} is not one of {', '.join(get_args(MixBy))}: choose one"
            )
        if self.ranks_per_draw < 1 or (self.ranks_per_draw > 1 and self.by != "rank"):
            raise ConfigError(
                f"ranks_per_draw={self.ranks_per_draw} must be at least 1, and more than 1 needs "
                'by="rank"'
            )
        if self.ends == "once" and self.by == "rank":
            raise ConfigError(
                'ends="once" leaves some ranks with nothing where each draws its own stream: use '
                'by="sample" or by="batch"'
            )


class StreamState(NamedTuple):
    """How far a stream is.

    Attributes:
        epoch: its own.
        position: in that epoch.
        given: positions since the mixture's epoch began.
        draws: of the schedule, since it was last set.
    """

    epoch: int = 0
    position: int = 0
    given: int = 0
    draws: int = 0


class MixState(NamedTuple):
    """How far a mixture is; the same on every rank.

    Attributes:
        streams: in the order of the mixture's streams.
        epoch: of the mixture.
        rounds_left: batches that the turn still yields; its draws count when it is over.
    """

    streams: tuple[StreamState, ...]
    epoch: int = 0
    rounds_left: int = 0

    @property
    def step(self) -> int:
        """Draws made since the schedule was last set."""
        return sum(stream.draws for stream in self.streams)


def mix_state_to_dict(
    state: MixState, streams: Sequence[MixStream], options: MixOptions, world_size: int
) -> dict[str, Any]:
    """Return a state as plain JSON values, streams by name."""
    return {
        "version": _VERSION,
        "by": options.by,
        "schedule": options.schedule,
        "ends": options.ends,
        "seed": options.seed,
        "world_size": world_size,
        "ranks_per_draw": options.ranks_per_draw,
        "epoch": state.epoch,
        "rounds_left": state.rounds_left,
        "streams": {
            stream.name: {
                "weight": float(stream.weight),
                "group": stream.group,
                "epoch": place.epoch,
                "position": place.position,
                "given": place.given,
                "draws": place.draws,
            }
            for stream, place in zip(streams, state.streams, strict=True)
        },
    }


def mix_state_from_dict(
    mapping: Mapping[str, Any],
    streams: Sequence[MixStream],
    options: MixOptions,
    world_size: int,
) -> MixState:
    """Build a state from a saved mapping; see ``MixOrder.from_dict``."""
    saved = _checked(mapping)
    _check_ranks(saved, options, world_size)
    chosen = {stream.name: [float(stream.weight), stream.group] for stream in streams}
    before = {name: [place["weight"], place["group"]] for name, place in saved["streams"].items()}
    same = ("by", "schedule", "seed")
    unchanged = chosen == before and all(saved[name] == getattr(options, name) for name in same)
    # Which streams "once" still draws follows from what they have given, in its own epochs only.
    unchanged &= (saved["ends"] == "once") == (options.ends == "once")
    places = []
    for stream in streams:
        place = saved["streams"].get(stream.name, {})
        if place.get("position", 0) > stream.num_samples:
            raise StateError(
                f"the state has stream {stream.name!r} at position {place['position']} of "
                f"{stream.num_samples}: it is of another data set"
            )
        names = ("epoch", "position", "given", "draws")[: 4 if unchanged else 3]
        places.append(StreamState(**{name: place.get(name, 0) for name in names}))
    return MixState(tuple(places), saved["epoch"], saved["rounds_left"] if unchanged else 0)


def _check_ranks(saved: Mapping[str, Any], options: MixOptions, world_size: int) -> None:
    """Refuse a state by rank where another number of draws makes a batch."""
    if not saved["by"] == options.by == "rank":
        return
    draws = saved["world_size"] // max(1, saved["ranks_per_draw"])
    if draws != world_size // options.ranks_per_draw:
        raise StateError(
            f"the state of a mixture by rank was saved on {saved['world_size']} ranks, "
            f"{saved['ranks_per_draw']} to a draw; this is {world_size}, {options.ranks_per_draw} "
            'to a draw: resume on as many, or mix by="sample" or by="batch"'
        )


def _checked(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check a saved mixture field by field."""
    if not isinstance(mapping, Mapping):
        raise StateError(
            f"a state is a mapping, not a {type(mapping).__name__}: pass what state_dict() gave"
        )
    kinds: dict[str, type] = {"by": str, "schedule": str, "ends": str, "streams": dict}
    numbers = ("version", "seed", "world_size", "ranks_per_draw", "epoch", "rounds_left")
    _check_names(mapping, kinds | dict.fromkeys(numbers, int), "the mixture")
    if mapping["version"] != _VERSION:
        raise StateError(
            f"the state of the mixture is of version {mapping['version']}, this shardkit reads "
            f"{_VERSION}: use the shardkit that saved it"
        )
    kinds = {"weight": float, "group": str} | dict.fromkeys(
        ("epoch", "position", "given", "draws"), int
    )
    for name, place in mapping["streams"].items():
        _check_names(place, kinds, f"stream {name!r}")
        if min(place["epoch"], place["position"], place["given"], place["draws"]) < 0:
            raise StateError(f"the state has a negative number in stream {name!r}: it is damaged")
    if min(mapping["epoch"], mapping["rounds_left"]) < 0 or mapping["world_size"] < 1:
        raise StateError("the state of the mixture has a number below its least: it is damaged")
    return mapping


def _check_names(values: Mapping[str, Any], kinds: Mapping[str, type], what: str) -> None:
    if set(values) != set(kinds):
        raise StateError(
            f"the state of {what} lacks {sorted(set(kinds) - set(values))} and has unknown "
            f"{sorted(set(values) - set(kinds))}: pass what state_dict() gave"
        )
    check_fields(values, kinds)
