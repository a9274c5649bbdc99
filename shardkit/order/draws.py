"""Which streams a step of a mixture draws: first a group of streams, then streams of the group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shardkit.order.hashing import Int64Array, make_key
from shardkit.order.schedule import Schedule, ScheduleName

__all__ = ["Draws"]


class Draws:
    """Draws of equal steps: each step chooses one group by weight and draws from it so many times.

    How far groups and streams are is told by how often each stream was drawn, and by nothing else.

    Args:
        name: of the schedules.
        weights: per stream; a group has the sum of its streams'.
        groups: number of each stream's group, from 0 without gaps; None leaves a stream out.
        seed: of the schedules.

    Raises:
        ConfigError: as ``Schedule``.
    """

    def __init__(
        self,
        name: ScheduleName,
        weights: Sequence[float],
        groups: Sequence[int | None],
        seed: int,
    ) -> None:
        numbers = sorted({group for group in groups if group is not None})
        self._num_streams = len(weights)
        self._members = [
            [stream for stream, group in enumerate(groups) if group == number] for number in numbers
        ]
        of_groups = [[weights[stream] for stream in members] for members in self._members]
        if len(of_groups) <= 1:
            self._streams = [Schedule(name, of_groups[0] if of_groups else (), seed)]
            return
        seeds = [make_key("group", seed, number) for number in numbers]
        self._streams = [Schedule(name, *pair) for pair in zip(of_groups, seeds, strict=True)]
        self._groups = Schedule(name, [math.fsum(group) for group in of_groups], seed)

    def count(self, draws: Sequence[int], num_draws: int) -> list[int]:
        """Return how often the next step draws each stream.

        Args:
            draws: how often each stream was drawn in the steps before.
            num_draws: per step.
        """
        group = self._group(draws, num_draws)
        before = [draws[stream] for stream in self._members[group]]
        found = self._streams[group].count(sum(before), before, num_draws)
        return self._spread([group], [found])

    def sequence(self, draws: Sequence[int], num_draws: int) -> Int64Array:
        """Return the stream of each of the next step's draws: int64[num_draws]."""
        group = self._group(draws, num_draws)
        before = [draws[stream] for stream in self._members[group]]
        drawn = self._streams[group].draw(sum(before), before, num_draws)
        return np.asarray(self._members[group])[drawn]

    def stride(self, num_draws: int) -> int:
        """Return of how many steps a ``leap`` must be a multiple, and begin at a multiple."""
        strides = [schedule.stride(num_draws) for schedule in self._streams]
        if len(self._members) <= 1:
            return strides[0]
        groups = self._groups.stride(1)
        if groups == 1 and set(strides) == {1}:
            return 1
        times = [s // math.gcd(s, w) for s, w in zip(strides, self._groups.whole, strict=True)]
        return math.lcm(groups, self._groups.period) * math.lcm(*times)

    def leap(self, draws: Sequence[int], num_draws: int, num_steps: int) -> list[int]:
        """Return how often so many steps draw each stream, without making each step."""
        chosen = [num_steps]
        if len(self._members) > 1:
            chosen = self._groups.total(sum(draws) // num_draws, num_steps)
        found = [
            schedule.total(sum(draws[stream] for stream in members), num_draws * times)
            for schedule, members, times in zip(self._streams, self._members, chosen, strict=True)
        ]
        return self._spread(range(len(found)), found)

    def _group(self, draws: Sequence[int], num_draws: int) -> int:
        if len(self._members) == 1:
            return 0
        chosen = [sum(draws[stream] for stream in one) // num_draws for one in self._members]
        return int(self._groups.draw(sum(chosen), chosen, 1)[0])

    def _spread(self, groups: Sequence[int], counts: Sequence[Sequence[int]]) -> list[int]:
        """Counts of groups' members as counts of all streams."""
        spread = [0] * self._num_streams
        for group, found in zip(groups, counts, strict=True):
            for stream, number in zip(self._members[group], found, strict=True):
                spread[stream] = number
        return spread
