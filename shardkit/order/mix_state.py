"""What a mixture is made of, and how far it is: values, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

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
MixEnds = Literal["first", "all", "never"]

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
    """

    name: str
    num_samples: int
    weight: float = 1.0
    num_lanes: int = 1
    global_batch_size: int | None = None
    num_accumulation: int = 1


@dataclass(frozen=True, slots=True)
class MixOptions:
    """What the user chose about a mixture.

    Attributes:
        by: "sample" mixes within each batch, "batch" between batches, and with "rank" each rank
            draws its own stream for each batch.
        schedule: see ``Schedule``.
        ends: when an epoch of the mixture ends. A stream has run out when it has given as many
            samples as it has since that epoch began; "first" ends before a batch would need a
            stream that has run out, "all" when every stream has, "never" goes on. A stream that is
            drawn after its last sample goes on with its own next epoch.
        remainder: of each stream's last batch, for by="batch" and "rank".
        seed: of the schedule.
    """

    by: MixBy = "sample"
    schedule: ScheduleName = "balanced"
    ends: MixEnds = "first"
    remainder: Remainder = "pad"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the words that have no checker of their own."""
        for name, value, known in (
            ("by", self.by, get_args(MixBy)),
            ("ends", self.ends, get_args(MixEnds)),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is not one of {', '.join(known)}: choose one")


@dataclass(frozen=True, slots=True)
class StreamState:
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


@dataclass(frozen=True, slots=True)
class MixState:
    """How far a mixture is; the same on every rank.

    Attributes:
        streams: in the order of the mixture's streams.
        epoch: of the mixture.
        turn: the stream whose turn goes on, -1 for none.
        rounds_left: batches that the turn still yields.
    """

    streams: tuple[StreamState, ...]
    epoch: int = 0
    turn: int = -1
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
        "seed": options.seed,
        "world_size": world_size,
        "epoch": state.epoch,
        "turn": streams[state.turn].name if state.turn >= 0 else "",
        "rounds_left": state.rounds_left,
        "streams": {
            stream.name: {
                "weight": float(stream.weight),
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
    if saved["by"] == options.by == "rank" and saved["world_size"] != world_size:
        raise StateError(
            f"the state of a mixture by rank was saved on {saved['world_size']} ranks, this is "
            f'{world_size}: resume on as many, or mix by="sample" or by="batch"'
        )
    weights = {stream.name: float(stream.weight) for stream in streams}
    saved_weights = {name: place["weight"] for name, place in saved["streams"].items()}
    chosen = (options.by, options.schedule, options.seed, weights)
    unchanged = (saved["by"], saved["schedule"], saved["seed"], saved_weights) == chosen
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
    state = MixState(tuple(places), saved["epoch"])
    if unchanged and saved["turn"]:
        turn = [stream.name for stream in streams].index(saved["turn"])
        return replace(state, turn=turn, rounds_left=saved["rounds_left"])
    return state


def _checked(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check a saved mixture field by field."""
    if not isinstance(mapping, Mapping):
        raise StateError(
            f"a state is a mapping, not a {type(mapping).__name__}: pass what state_dict() gave"
        )
    kinds: dict[str, type] = {"by": str, "schedule": str, "turn": str, "streams": dict}
    numbers = ("version", "seed", "world_size", "epoch", "rounds_left")
    _check_names(mapping, kinds | dict.fromkeys(numbers, int), "the mixture")
    if mapping["version"] != _VERSION:
        raise StateError(
            f"the state of the mixture is of version {mapping['version']}, this shardkit reads "
            f"{_VERSION}: use the shardkit that saved it"
        )
    kinds = {"weight": float} | dict.fromkeys(("epoch", "position", "given", "draws"), int)
    for name, place in mapping["streams"].items():
        _check_names(place, kinds, f"stream {name!r}")
        if min(place["epoch"], place["position"], place["given"], place["draws"]) < 0:
            raise StateError(f"the state has a negative number in stream {name!r}: it is damaged")
    if mapping["turn"] and mapping["turn"] not in mapping["streams"]:
        raise StateError(f"the state is in a turn of {mapping['turn']!r}, no stream of its own")
    return mapping


def _check_names(values: Mapping[str, Any], kinds: Mapping[str, type], what: str) -> None:
    if set(values) != set(kinds):
        raise StateError(
            f"the state of {what} lacks {sorted(set(kinds) - set(values))} and has unknown "
            f"{sorted(set(values) - set(kinds))}: pass what state_dict() gave"
        )
    check_fields(values, kinds)
