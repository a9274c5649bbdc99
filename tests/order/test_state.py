"""The state: plain JSON, every field checked, refusals that say why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shardkit.errors import StateError
from shardkit.order import ShuffleOptions, State


def make_state(**changes: Any) -> State:
    values: dict[str, Any] = {
        "fingerprint": "f1",
        "selection": "",
        "num_samples": 1000,
        "seed": 7,
        "epoch": 2,
        "position": 250,
        "global_batch_size": 64,
        "num_lanes": 4,
        "shuffle": "buffer",
        "buffer_size": 500,
        "remainder": "pad",
        "world_size": 8,
    }
    return State(**(values | changes))


def test_a_state_survives_json() -> None:
    state = make_state()
    assert State.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert all(type(value) in (str, int) for value in state.to_dict().values())


def test_a_state_gives_back_its_options() -> None:
    assert make_state().options() == ShuffleOptions("buffer", 500, 7, 4)


@pytest.mark.parametrize("field", list(make_state().to_dict()))
def test_each_missing_field_is_named(field: str) -> None:
    saved = make_state().to_dict()
    del saved[field]
    with pytest.raises(StateError, match=f"missing \\['{field}'\\]"):
        State.from_dict(saved)


@pytest.mark.parametrize("field", list(make_state().to_dict()))
@pytest.mark.parametrize("value", [None, True, 1.0, [], {}])
def test_each_field_of_a_wrong_type_is_named(field: str, value: object) -> None:
    with pytest.raises(StateError, match=f"{field}="):
        State.from_dict(make_state().to_dict() | {field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2, this shardkit reads 1"),
        ({"shuffle": "py2s"}, "shuffle='py2s'"),
        ({"remainder": "fill"}, "remainder='fill'"),
        ({"position": -1}, "position=-1, below 0"),
        ({"position": 1001}, "position 1001 in an epoch of 1000"),
        ({"epoch": -1}, "epoch=-1, below 0"),
        ({"global_batch_size": 0}, "global_batch_size=0, below 1"),
        ({"world_size": 0}, "world_size=0, below 1"),
        ({"num_lanes": 0}, "num_lanes=0"),
        ({"buffer_size": 0}, "buffer_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"extra": 1}, r"unknown \['extra'\]"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StateError, match=message):
        State.from_dict(make_state().to_dict() | changes)


@pytest.mark.parametrize("value", [None, [], "state", 3])
def test_what_is_no_mapping_is_refused(value: object) -> None:
    with pytest.raises(StateError, match="a state is a mapping"):
        State.from_dict(value)  # type: ignore[arg-type]


def check(state: State, **changes: Any) -> tuple[int, int]:
    values: dict[str, Any] = {"fingerprint": "f1", "selection": "", "num_samples": 1000}
    return state.check(**(values | changes))


def test_a_state_of_the_same_data_set_is_good() -> None:
    assert check(make_state()) == (2, 250)


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next() -> None:
    assert check(make_state(position=1000)) == (3, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "f2"}, "state is of data set 'f1', this is 'f2'"),
        ({"selection": "s"}, "selection '', this is 's': use the same where="),
        ({"num_samples": 999}, "1000 samples, this data set has 999"),
        ({"fingerprint": "f2", "extends": "f1".__eq__}, "only a state between epochs"),
    ],
)
def test_a_state_of_another_data_set_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        check(make_state(), **changes)


@pytest.mark.parametrize("position", [0, 1000])
def test_between_epochs_a_longer_data_set_takes_over(position: int) -> None:
    state = make_state(position=position)
    found = check(state, fingerprint="f2", extends=["f0", "f1"].__contains__, num_samples=1500)
    assert found == (2 + position // 1000, 0)


def test_another_order_version_is_refused_within_an_epoch_only() -> None:
    with pytest.raises(StateError, match="order version 99, this shardkit orders by version 1"):
        check(make_state(order_version=99))
    check(make_state(order_version=99, position=0))


def test_a_state_explains_itself() -> None:
    text = make_state(selection="5eed").explain()
    for part in (
        "epoch 2, position 250 of 1,000 (25.00 %)",
        "8 ranks in global batches of 64",
        "shuffle buffer within 500 samples, seed 7, 4 lanes",
        "data set f1, selection 5eed",
    ):
        assert part in text


def test_a_state_can_not_be_changed() -> None:
    state = make_state()
    with pytest.raises(AttributeError):
        state.position = 3  # type: ignore[misc]
    assert replace(state, position=3).position == 3
