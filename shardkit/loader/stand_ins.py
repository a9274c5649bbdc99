"""What stands in for a batch in which nothing is left, where other ranks wait for this one's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from shardkit.order.epoch import EpochOrder
from shardkit.order.hashing import Int64Array
from shardkit.order.mix import MixPart
from shardkit.order.split import lane_major
from shardkit.samples.failures import Failed
from shardkit.samples.stream import Outcome

if TYPE_CHECKING:
    from shardkit.loader.work import Feed

__all__ = ["StandIns"]

_LOOKED_AT = (1, 4, 16, 64)
"""Samples looked at together: the next one is good as a rule; in a long stretch of bad ones, so
many that what is far is fetched together. The last number holds on."""


class StandIns:
    """Finds the good sample that is nearest behind a batch, of the same stream. Thread-safe.

    Nearest on the line of lanes (``order.lanes``): along the batch's own lane, whose shards this
    node has near, then along the others, and around to the start of the epoch. So what it finds is
    a function of the order and of the data alone, whoever makes the batch. It is read anew for
    every batch; what is remembered is where nothing was, so that a long stretch of bad samples
    is walked once.
    """

    def __init__(self) -> None:
        # By stream and lane: an epoch, and the places from one of which on, up to the other,
        # nothing is good. Threads share both dicts without a lock: values are replaced whole, and
        # one that another thread has just replaced was right too.
        self._nothing: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._orders: dict[int, EpochOrder] = {}

    def nearest(
        self, part: MixPart, feed: Feed, look: Callable[[MixPart], Iterator[Outcome]]
    ) -> Outcome:
        """What the nearest good slot behind a part yields.

        Args:
            part: of a batch; nothing is left of it.
            feed: its stream.
            look: what the slots of a part yield, in order.

        Returns:
            Samples; where the epoch has none, its first failure from here on, or no sample.
        """
        order = self._order(part, feed)
        last = np.minimum(part.positions[-1:], order.num_samples - 1)  # pads lie behind the end
        lane, place = int(last[0]) % order.num_lanes, int(order.lanes.line(last)[0])
        since, start = self._seen(part, lane, place)
        first: Outcome = []
        for places, positions in _blocks(start, place + order.num_samples + 1, order):
            ids, is_pad = order.at(positions), np.zeros(len(positions), np.bool_)
            outcomes = look(replace(part, positions=positions, ids=ids, is_pad=is_pad))
            for at, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, Failed):
                    first = first or outcome
                elif outcome:
                    self._nothing[part.stream, lane] = (part.epoch, since, at)
                    return outcome
        return first

    def _seen(self, part: MixPart, lane: int, place: int) -> tuple[int, int]:
        """Since which place nothing is good, and the first one that has to be looked at."""
        epoch, since, stop = self._nothing.get((part.stream, lane), (-1, 0, 0))
        if epoch == part.epoch and since <= place < stop:
            return since, stop
        return place, place + 1

    def _order(self, part: MixPart, feed: Feed) -> EpochOrder:
        order = self._orders.get(part.stream)
        if order is None or order.epoch != part.epoch:
            order = self._orders[part.stream] = feed.stream.order(feed.options, part.epoch)
        return order


def _blocks(start: int, stop: int, order: EpochOrder) -> Iterator[tuple[range, Int64Array]]:
    """Places [start, stop) of the line, which goes around, and their positions, by and by."""
    sizes = itertools.chain(_LOOKED_AT, itertools.repeat(_LOOKED_AT[-1]))
    num_samples = order.num_samples
    while start < stop:
        begin = start % num_samples
        end = min(begin + next(sizes), begin + stop - start, num_samples)
        yield (
            range(start, start + end - begin),
            lane_major(begin, end, 0, num_samples, order.num_lanes),
        )
        start += end - begin
