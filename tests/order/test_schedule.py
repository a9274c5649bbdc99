"""Schedules: weights met in every prefix, rounds laid out as named."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError
from shardkit.order import Schedule
from shardkit.order.schedule import interleave

NAMES = (
    "balanced",
    "random",
    "consecutive",
    "consecutive_interleaved",
    "random_order",
    "fixed_random_order",
)


def draw_all(schedule: Schedule, num_streams: int, sizes: list[int]) -> list[int]:
    """Draw in pieces, counting along."""
    drawn: list[int] = []
    for size in sizes:
        counts = [drawn.count(stream) for stream in range(num_streams)]
        drawn += schedule.draw(len(drawn), counts, size).tolist()
    return drawn


def letters(name: str, weights: list[float], num_draws: int, seed: int = 0) -> str:
    schedule = Schedule(name, weights, seed)  # type: ignore[arg-type]
    return "".join("abc"[i] for i in schedule.draw(0, [0] * len(weights), num_draws))


def test_six_and_four_tenths_over_a_thousand_steps_are_600_and_400_and_close_before() -> None:
    schedule = Schedule("balanced", [0.6, 0.4])
    counts = [0, 0]
    for step in range(1000):
        counts[int(schedule.draw(step, counts, 1)[0])] += 1
        assert abs(counts[0] - 0.6 * (step + 1)) < 1
    assert counts == [600, 400]


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_balanced_is_near_its_weights_after_every_draw(
    weights: list[float], sizes: list[int]
) -> None:
    schedule = Schedule("balanced", weights)
    shares = np.array(weights) / sum(weights)
    counts = np.zeros(len(weights), np.int64)
    total = 0
    for size in sizes:
        drawn = schedule.draw(total, counts.tolist(), size)
        assert len(drawn) == size
        counts += np.bincount(drawn, minlength=len(weights))
        total += size
        assert np.abs(counts - shares * total).max() < len(weights) / 2 + 1


def test_a_stream_that_is_ahead_waits_for_the_others() -> None:
    schedule = Schedule("balanced", [1, 1, 1])
    assert sorted(schedule.draw(9, [9, 0, 0], 6).tolist()) == [1, 1, 1, 2, 2, 2]
    assert sorted(schedule.draw(10, [4, 4, 2], 1).tolist()) == [2]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_meets_its_weights(name: str) -> None:
    counts = Counter(letters(name, [2, 3, 4], 9000))
    slack = 200 if name == "random" else 1
    for letter, count in zip("abc", (2000, 3000, 4000), strict=True):
        assert abs(counts[letter] - count) <= slack


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_can_be_drawn_in_pieces(name: str) -> None:
    schedule = Schedule(name, [2, 3, 4], 1)  # type: ignore[arg-type]
    if name == "balanced":  # in larger pieces it spreads the same counts evenly
        pieces, whole = draw_all(schedule, 3, [1] * 90), draw_all(schedule, 3, [9] * 10)
        assert Counter(pieces) == Counter(whole)
    else:
        assert draw_all(schedule, 3, [1, 5, 20, 64]) == draw_all(schedule, 3, [90])


def test_rounds_are_laid_out_as_named() -> None:
    assert letters("consecutive", [2, 3, 4], 18) == "aabbbcccc" * 2
    assert letters("consecutive_interleaved", [2, 3, 4], 18) == "abcabcbcc" * 2
    fixed = letters("fixed_random_order", [2, 3, 4], 27)
    assert fixed == fixed[:9] * 3
    anew = letters("random_order", [2, 3, 4], 27)
    rounds = [anew[i : i + 9] for i in (0, 9, 18)]
    assert len(set(rounds)) > 1
    assert all(sorted(part) == sorted("aabbbcccc") for part in rounds)


def test_decimal_weights_make_the_smallest_round() -> None:
    assert letters("consecutive", [0.6, 0.4], 5) == "aaabb"
    assert letters("consecutive", [0.2, 0.2], 4) == "abab"


@pytest.mark.parametrize("name", ["random", "random_order", "fixed_random_order"])
def test_seeds_draw_differently(name: str) -> None:
    assert letters(name, [2, 3, 4], 40, seed=0) != letters(name, [2, 3, 4], 40, seed=1)


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, float("nan")], [float("inf")]])
def test_weights_that_are_not_positive_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="must be positive and finite"):
        Schedule("balanced", weights)


@pytest.mark.parametrize("weights", [[1, 0.1234567], [1e-9, 1]])
def test_too_long_a_round_is_refused_and_names_the_other_way(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match='or schedule="balanced"'):
        Schedule("consecutive", weights)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="schedule='round_robin' is not one of balanced"):
        Schedule("round_robin", [1])  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_interleaving_spreads_each_stream_evenly(counts: list[int]) -> None:
    spread = interleave(counts)
    total = sum(counts)
    assert np.bincount(spread, minlength=len(counts)).tolist() == counts
    for stream, count in enumerate(counts):
        seen = np.cumsum(spread == stream)
        expected = count * np.arange(1, total + 1) / max(total, 1)
        assert np.abs(seen - expected).max(initial=0) <= len(counts) / 2 + 0.5
