"""Which stream of a mixture is next: pure functions of the step and of what was drawn before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from shardkit.errors import ConfigError
from shardkit.order.hashing import Int64Array, hash_range, make_key
from shardkit.order.permutation import permute_groups

__all__ = ["Schedule", "ScheduleName", "interleave"]

ScheduleName = Literal[
    "balanced",
    "random",
    "consecutive",
    "consecutive_interleaved",
    "random_order",
    "fixed_random_order",
]

# Weights are rounded to six digits before they become the counts of a round; a longer round than
# this is a table of its own, and "balanced" does the same without one.
_DIGITS = 6
_MAX_ROUND = 100_000


class Schedule:
    """Draws streams by weight, without memory: equal arguments give equal draws.

    Args:
        name: "balanced" draws the stream that is furthest behind its weight (largest deficit
            first); "random" by chance; the others lay out rounds in which each stream has its
            count: "consecutive" (aabbb), "consecutive_interleaved" (ababb), "random_order" (each
            round shuffled anew) and "fixed_random_order" (every round shuffled alike).
        weights: finite and positive, one per stream; only their ratios matter.
        seed: of the drawn and shuffled schedules.

    Raises:
        ConfigError: a weight is not positive, or the weights make too long a round.
    """

    def __init__(self, name: ScheduleName, weights: Sequence[float], seed: int = 0) -> None:
        if name not in get_args(ScheduleName):
            raise ConfigError(
                f"schedule={name!r} is not one of {', '.join(get_args(ScheduleName))}: choose one"
            )
        wrong = [weight for weight in weights if not (weight > 0 and math.isfinite(weight))]
        if wrong or not weights:
            raise ConfigError(
                f"weights {list(weights)} must be positive and finite, at least one: leave out "
                "streams that should not be drawn"
            )
        self.name = name
        self._shares = np.asarray(weights, np.float64) / math.fsum(weights)
        self._key = make_key("schedule", name, seed)
        self._round: Int64Array | None = None
        if name not in ("balanced", "random"):
            self._round = _layout(name, _counts_per_round(weights))

    def draw(self, step: int, counts: Sequence[int], num_draws: int) -> Int64Array:
        """Return the streams of draws ``step`` to ``step + num_draws``: int64[num_draws].

        Args:
            step: draws made before.
            counts: of these, per stream; they sum to ``step``.
            num_draws: how many to make.
        """
        if self.name == "balanced":
            return interleave(self._balanced(step + num_draws, counts, num_draws))
        if self._round is None:
            chance = (hash_range(step, step + num_draws, self._key) >> np.uint64(11)) * 2.0**-53
            ends = np.cumsum(self._shares)[:-1]
            return np.searchsorted(ends, chance, "right").astype(np.int64)
        rounds, places = np.divmod(np.arange(step, step + num_draws), len(self._round))
        if self.name.endswith("random_order"):
            for number in np.unique(rounds).tolist():
                here = rounds == number
                shuffled = permute_groups(len(self._round), self._round_key(number))
                places[here] = shuffled[places[here]]
        return self._round[places]

    def _round_key(self, number: int) -> int:
        return make_key("round", self._key, 0 if self.name.startswith("fixed") else number)

    def _balanced(self, total: int, counts: Sequence[int], num_draws: int) -> Int64Array:
        """Return how often each stream is drawn next, so that all come nearest to their shares."""
        deficits = self._shares * total - np.asarray(counts)
        draws: Int64Array = np.maximum(np.floor(deficits), 0).astype(np.int64)
        while (missing := num_draws - int(draws.sum())) != 0:
            by_need = np.argsort(draws - deficits, kind="stable")
            if missing > 0:
                draws[by_need[:missing]] += 1
            else:
                drawn = by_need[draws[by_need] > 0]
                draws[drawn[missing:]] -= 1
        return draws


def interleave(counts: Sequence[int] | Int64Array) -> Int64Array:
    """Spread ``counts[i]`` times i evenly over their sum: int64[sum]; [2, 1] gives 0 1 0."""
    streams = np.repeat(np.arange(len(counts)), counts)
    total = np.asarray(counts, np.int64)
    turns = np.arange(len(streams)) - np.repeat(np.cumsum(total) - total, total)
    return streams[np.argsort((turns + 0.5) / total[streams], kind="stable")]


def _counts_per_round(weights: Sequence[float]) -> list[int]:
    """Turn weights into the smallest whole counts of the same ratios."""
    fractions = [Fraction(str(round(weight, _DIGITS))) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    counts = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*counts)
    if 0 in counts or sum(counts) // divisor > _MAX_ROUND:
        raise ConfigError(
            f"weights {list(weights)} make a round of {sum(counts) // max(divisor, 1)} steps (at "
            f"most {_MAX_ROUND}, at least one per stream): use rounder weights, or "
            'schedule="balanced"'
        )
    return [count // divisor for count in counts]


def _layout(name: ScheduleName, counts: Sequence[int]) -> Int64Array:
    """Lay out one round: streams in a row, or in turns until each has had its count."""
    streams = np.repeat(np.arange(len(counts)), counts)
    if name != "consecutive_interleaved":
        return streams
    turns = np.concatenate([np.arange(count) for count in counts])
    return streams[np.argsort(turns, kind="stable")]
