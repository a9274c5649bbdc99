"""The state of an order: plain values, checked field by field before anything is built on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from shardkit.errors import ConfigError, StateError
from shardkit.order.epoch import ORDER_VERSION, Shuffle, ShuffleOptions
from shardkit.order.split import Remainder

__all__ = ["STATE_VERSION", "State", "check_fields", "check_mapping"]

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far a run has come; the same on every rank.

    ``position`` counts the samples of the epoch that all ranks together have *consumed*. Whatever
    reads a state takes seed, shuffle, buffer_size and num_lanes from it, so that the epoch goes on
    in its own order; world size, workers and batch size may be others.

    Attributes:
        fingerprint: of the data set.
        selection: key of the selection, "" for all samples.
        num_samples: N.
        seed: of the order.
        epoch: from 0.
        position: 0 to N.
        global_batch_size: G when it was saved.
        num_lanes: L.
        shuffle: the mode.
        buffer_size: in samples, resolved.
        remainder: of the last batch.
        world_size: of the run that saved it; only told, never checked.
        order_version: of the order's functions.
        version: of this record.
    """

    fingerprint: str
    selection: str
    num_samples: int
    seed: int
    epoch: int
    position: int
    global_batch_size: int
    num_lanes: int
    shuffle: Shuffle
    buffer_size: int
    remainder: Remainder
    world_size: int
    order_version: int = ORDER_VERSION
    version: int = STATE_VERSION

    def __post_init__(self) -> None:
        """Check every field by itself."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = ("fingerprint", "selection", "shuffle", "remainder")
        check_fields(values, {name: str if name in texts else int for name in values})
        if self.version != STATE_VERSION:
            raise StateError(
                f"the state is of version {self.version}, this shardkit reads {STATE_VERSION}: "
                "use the shardkit that saved it, or start the epoch again"
            )
        if self.shuffle not in get_args(Shuffle) or self.remainder not in get_args(Remainder):
            raise StateError(
                f"the state has shuffle={self.shuffle!r} and remainder={self.remainder!r}, which "
                "this shardkit does not know: use the shardkit that saved it"
            )
        lows = {"epoch": 0, "position": 0, "num_samples": 0, "global_batch_size": 1}
        for name, low in (lows | {"world_size": 1, "order_version": 1}).items():
            if values[name] < low:
                raise StateError(
                    f"the state has {name}={values[name]}, below {low}: it is damaged, "
                    "load an earlier one"
                )
        if self.position > self.num_samples:
            raise StateError(
                f"the state has position {self.position} in an epoch of {self.num_samples} "
                "samples: it is damaged, load an earlier one"
            )
        self.options()

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> State:
        """Build a state from ``to_dict``'s mapping, or from JSON of it.

        Raises:
            StateError: a field is missing, unknown, of a wrong type or out of range.
        """
        check_mapping(mapping)
        names = {field.name for field in fields(cls)}
        if set(mapping) != names:
            raise StateError(
                f"not a state of this version: missing {sorted(names - set(mapping))}, unknown "
                f"{sorted(map(str, set(mapping) - names))}; pass what state_dict() gave"
            )
        return cls(**mapping)

    def to_dict(self) -> dict[str, str | int]:
        """Return plain JSON values."""
        return asdict(self)

    def options(self) -> ShuffleOptions:
        """Return the shuffle options of the run that saved the state."""
        try:
            return ShuffleOptions(self.shuffle, self.buffer_size, self.seed, self.num_lanes)
        except ConfigError as error:
            raise StateError(f"the state can't be honoured: {error}") from error

    def check(
        self,
        *,
        fingerprint: str,
        selection: str,
        num_samples: int,
        extends: Callable[[str], bool] = lambda _: False,
    ) -> tuple[int, int]:
        """Refuse a state that is not of this data set and selection; return where to go on.

        Args:
            fingerprint: of the data set that the state is loaded into.
            selection: its selection's key.
            num_samples: its N.
            extends: whether it extends the data set of a fingerprint: a state of that one is good
                at an epoch's start or end.

        Returns:
            Epoch and position; the start of the next epoch for a state at the end of one.

        Raises:
            StateError: with what differs and what to do.
        """
        is_over = 0 < self.num_samples == self.position
        go_on = (self.epoch + 1, 0) if is_over else (self.epoch, self.position)
        between_epochs = is_over or self.position == 0
        if self.order_version != ORDER_VERSION and not between_epochs:
            raise StateError(
                f"the state was saved within an epoch of order version {self.order_version}, this "
                f"shardkit orders by version {ORDER_VERSION}: finish the epoch with the shardkit "
                "that saved it, or start the epoch again"
            )
        if self.fingerprint != fingerprint:
            if not extends(self.fingerprint):
                raise StateError(
                    f"the state is of data set {self.fingerprint!r}, this is {fingerprint!r}: "
                    "open the data set that it was saved on"
                )
            if not between_epochs:
                raise StateError(
                    f"the state is of data set {self.fingerprint!r}, which this one extends, at "
                    f"position {self.position} of {self.num_samples}: only a state between epochs "
                    "can move to the longer data set; finish the epoch on the shorter one"
                )
            return go_on
        if self.selection != selection:
            raise StateError(
                f"the state is of selection {self.selection!r}, this is {selection!r}: use the "
                "same where=, exclude= and weights ('' means all samples)"
            )
        if self.num_samples != num_samples:
            raise StateError(
                f"the state is of {self.num_samples} samples, this data set has {num_samples}: "
                "open the data set that it was saved on"
            )
        return go_on

    def explain(self) -> str:
        """Say in words where the run was: epoch, position, percent, world, order."""
        percent = 100 * self.position / self.num_samples if self.num_samples else 100.0
        mixed = f" within {self.buffer_size:,} samples" if self.shuffle == "buffer" else ""
        chosen = f", selection {self.selection}" if self.selection else ""
        return (
            f"epoch {self.epoch}, position {self.position:,} of {self.num_samples:,} "
            f"({percent:.2f} %)\n"
            f"saved on {self.world_size} ranks in global batches of {self.global_batch_size:,}, "
            f"remainder {self.remainder}\n"
            f"shuffle {self.shuffle}{mixed}, seed {self.seed}, {self.num_lanes} lanes, "
            f"order version {self.order_version}\n"
            f"data set {self.fingerprint}{chosen}"
        )


def check_mapping(state: object) -> None:
    """Refuse what is no state at all, such as the None that a checkpoint had in its place.

    Raises:
        StateError: it is no mapping.
    """
    if not isinstance(state, Mapping):
        raise StateError(
            f"a state is a mapping, not a {type(state).__name__}: pass what state_dict() gave"
        )


def check_fields(values: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Refuse values of other types than JSON would give (True is no integer here).

    Raises:
        StateError: naming the field.
    """
    for name, kind in types.items():
        value = values[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise StateError(
                f"the state has {name}={value!r}, not of type {kind.__name__}: pass what "
                "state_dict() gave"
            )
