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

# "balanced" has no table: its weights are whole numbers of this sum at most, as exact as a run
# of a billion draws can show.
_MAX_PERIOD = 2**30

# Draws by chance that are counted at once.
_PIECE = 2**20


class Schedule:
    """Draws streams by weight, without memory: equal arguments give equal draws.

    Args:
        name: "balanced" draws the stream that is furthest behind its weight (largest deficit
            first); "random" by chance; the others lay out rounds in which each stream has its
            count: "consecutive" (aabbb), "consecutive_interleaved" (ababb), "random_order" (each
            round shuffled anew) and "fixed_random_order" (every round shuffled alike).
        weights: finite and positive, one per stream; only their ratios matter.
        seed: of the drawn and shuffled schedules.

    Attributes:
        whole: the weights as whole numbers.
        period: their sum. In every so many draws each stream comes as often as ``whole`` says
            (but for "random").

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
        self._key = make_key("schedule", name, seed)
        self._round: Int64Array | None = None
        if name in ("balanced", "random"):
            self.whole = _whole(weights)
        else:
            self.whole = _counts_per_round(weights)
            self._round = _layout(name, self.whole)
        self.period = sum(self.whole)
        self._ends = np.cumsum(np.asarray(self.whole, np.float64) / self.period)[:-1]

    def draw(self, step: int, counts: Sequence[int], num_draws: int) -> Int64Array:
        """Return the streams of draws ``step`` to ``step + num_draws``: int64[num_draws].

        Args:
            step: draws made before.
            counts: of these, per stream; they sum to ``step``.
            num_draws: how many to make.
        """
        if self.name == "balanced":
            return interleave(self._balanced(step + num_draws, counts, num_draws))
        return self._drawn(step, num_draws)

    def count(self, step: int, counts: Sequence[int], num_draws: int) -> list[int]:
        """Return how often each stream comes in these draws; see ``draw``."""
        if self.name == "balanced":
            return self._balanced(step + num_draws, counts, num_draws)
        found: list[int] = np.bincount(
            self._drawn(step, num_draws), minlength=len(self.whole)
        ).tolist()
        return found

    def stride(self, num_draws: int) -> int:
        """Return how many steps of ``num_draws`` are a stretch that ``total`` can count."""
        if self.name != "balanced" or min(self.whole) * num_draws >= self.period:
            return 1
        return self.period // math.gcd(self.period, num_draws)

    def total(self, step: int, num_draws: int) -> list[int]:
        """Return how often each stream comes in very many draws, without making each.

        Both numbers are whole strides of the steps in which this schedule is drawn.
        """
        if self.name == "random":
            counted = np.zeros(len(self.whole), np.int64)
            for start in range(step, step + num_draws, _PIECE):
                drawn = self._drawn(start, min(_PIECE, step + num_draws - start))
                counted += np.bincount(drawn, minlength=len(self.whole))
            return counted.tolist()
        before, after = self._counts_at(step), self._counts_at(step + num_draws)
        return [n - m for n, m in zip(after, before, strict=True)]

    def _counts_at(self, step: int) -> list[int]:
        """How often each stream came in the draws before ``step``."""
        if self.name == "balanced":  # at a stride nobody is ahead: all at once is as in steps
            return self._balanced(step, [0] * len(self.whole), step)
        rounds, rest = divmod(step, self.period)
        last = np.bincount(self._drawn(step - rest, rest), minlength=len(self.whole)).tolist()
        return [rounds * number + more for number, more in zip(self.whole, last, strict=True)]

    def _drawn(self, step: int, num_draws: int) -> Int64Array:
        """Streams of draws that do not depend on those before."""
        if self._round is None:
            chance = (hash_range(step, step + num_draws, self._key) >> np.uint64(11)) * 2.0**-53
            return np.searchsorted(self._ends, chance, "right").astype(np.int64)
        rounds, places = np.divmod(np.arange(step, step + num_draws), len(self._round))
        if self.name.endswith("random_order"):
            for number in np.unique(rounds).tolist():
                here = rounds == number
                shuffled = permute_groups(len(self._round), self._round_key(number))
                places[here] = shuffled[places[here]]
        return self._round[places]

    def _round_key(self, number: int) -> int:
        return make_key("round", self._key, 0 if self.name.startswith("fixed") else number)

    def _balanced(self, total: int, counts: Sequence[int], num_draws: int) -> list[int]:
        """Return how often each stream is drawn next, so that all come nearest to their shares.

        In whole numbers: so ties are ties, and every ``period`` draws all shares are met exactly.
        """
        period = self.period
        deficits = [w * total - n * period for w, n in zip(self.whole, counts, strict=True)]
        if num_draws == 1:
            draws = [0] * len(deficits)
            draws[deficits.index(max(deficits))] = 1
            return draws
        draws = [max(deficit // period, 0) for deficit in deficits]
        missing = num_draws - sum(draws)
        while missing:
            ahead = [n * period - deficit for n, deficit in zip(draws, deficits, strict=True)]
            by_need = sorted(range(len(draws)), key=ahead.__getitem__)
            if missing < 0:
                by_need = [number for number in by_need if draws[number]]
            change = 1 if missing > 0 else -1
            for number in by_need[:missing] if missing > 0 else by_need[missing:]:
                draws[number] += change
            missing = num_draws - sum(draws)
        return draws


def interleave(counts: Sequence[int] | Int64Array) -> Int64Array:
    """Spread ``counts[i]`` times i evenly over their sum: int64[sum]; [2, 1] gives 0 1 0."""
    streams = np.repeat(np.arange(len(counts)), counts)
    total = np.asarray(counts, np.int64)
    turns = np.arange(len(streams)) - np.repeat(np.cumsum(total) - total, total)
    return streams[np.argsort((turns + 0.5) / total[streams], kind="stable")]


def _whole(weights: Sequence[float]) -> list[int]:
    """Turn weights into whole numbers of the same ratios, as they are written if that can be."""
    counts = _smallest([Fraction(repr(float(weight))) for weight in weights])
    total = sum(counts)
    if total <= _MAX_PERIOD:
        return counts
    return [max(1, count * _MAX_PERIOD // total) for count in counts]


def _counts_per_round(weights: Sequence[float]) -> list[int]:
    """Turn weights into the counts of a round, rounded to six digits."""
    counts = _smallest([Fraction(str(round(weight, _DIGITS))) for weight in weights])
    if 0 in counts or sum(counts) > _MAX_ROUND:
        raise ConfigError(
            f"weights {list(weights)} make a round of {sum(counts)} steps (at most {_MAX_ROUND}, "
            'at least one per stream): use rounder weights, or schedule="balanced"'
        )
    return counts


def _smallest(fractions: Sequence[Fraction]) -> list[int]:
    """Return the smallest whole numbers of the same ratios."""
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    counts = [int(fraction * scale) for fraction in fractions]
    divisor = max(1, math.gcd(*counts))
    return [count // divisor for count in counts]


def _layout(name: ScheduleName, counts: Sequence[int]) -> Int64Array:
    """Lay out one round: streams in a row, or in turns until each has had its count."""
    streams = np.repeat(np.arange(len(counts)), counts)
    if name != "consecutive_interleaved":
        return streams
    turns = np.concatenate([np.arange(count) for count in counts])
    return streams[np.argsort(turns, kind="stable")]
