"""How many batches an epoch of a mixture has, without drawing each of them."""

from __future__ import annotations

from shardkit.order.mix import MixOrder
from shardkit.order.mix_state import MixState

__all__ = ["count_batches"]

# Batches drawn one by one before another leap is tried, and steps that are not worth one.
_ONE_BY_ONE = 64


def count_batches(order: MixOrder) -> int | None:
    """Count the batches of the first epoch; None if it never ends.

    While no stream is near its end, steps are leapt over: what they draw is known in sum. Only
    the batches around the ends of streams are drawn one by one.
    """
    if order.options.ends == "never":
        return None
    state, num_batches, steps = order.start(), 0, 0
    while True:
        leap = _leap(order, state, steps)
        if leap is not None:
            state, num_steps, leapt = leap
            steps += num_steps
            num_batches += leapt
        for _ in range(_ONE_BY_ONE):
            after = order.step(state)
            if after is None:
                return num_batches
            num_batches += 1
            steps += not after.rounds_left
            if after.step < state.step:
                steps = 0  # a stream is out of the schedule, which starts anew
            state = after


def _leap(order: MixOrder, state: MixState, steps: int) -> tuple[MixState, int, int] | None:
    """The state after many steps that reach no stream's end, these steps, and their batches."""
    draws, num_draws = order.draws(state), order.num_draws
    stride = draws.stride(num_draws)
    if state.rounds_left or steps % stride:
        return None
    before = [place.draws for place in state.streams]
    room = [_room(order, state, number) for number in range(len(before))]
    steps_left = _steps_left(order, room)
    while (num_steps := steps_left // stride * stride) > _ONE_BY_ONE:
        drawn = draws.leap(before, num_draws, num_steps)
        taken = [number * order.draw_size(stream) for stream, number in enumerate(drawn)]
        if all(limit is None or n < limit for n, limit in zip(taken, room, strict=True)):
            return _moved(order, state, drawn, taken), num_steps, _num_batches(order, drawn)
        steps_left = num_steps // 2
    return None


def _room(order: MixOrder, state: MixState, number: int) -> int | None:
    """How many samples a stream can give before something else than giving them happens."""
    left = order.num_left(state, number)
    if order.options.by == "sample":
        return left or None  # its own epochs end unnoticed
    return order.streams[number].num_samples - state.streams[number].position


def _steps_left(order: MixOrder, room: list[int | None]) -> int:
    """About how many steps there are before a stream has no room; fewer rather than more."""
    total = sum(stream.weight for stream in order.streams)
    steps = [
        limit * total / (stream.weight * order.num_draws * order.draw_size(number))
        for number, (stream, limit) in enumerate(zip(order.streams, room, strict=True))
        if limit is not None
    ]
    return int(0.99 * min(steps, default=0)) - 2


def _moved(order: MixOrder, state: MixState, drawn: list[int], taken: list[int]) -> MixState:
    places = []
    for stream, place, n, m in zip(order.streams, state.streams, drawn, taken, strict=True):
        position = place.position + m
        if order.options.by == "sample":
            position %= stream.num_samples
        places.append(
            place._replace(position=position, given=place.given + m, draws=place.draws + n)
        )
    return state._replace(streams=tuple(places))


def _num_batches(order: MixOrder, drawn: list[int]) -> int:
    rounds = [1] * len(drawn)
    if order.options.by != "sample":
        rounds = [stream.num_accumulation for stream in order.streams]
    return sum(n * m for n, m in zip(drawn, rounds, strict=True)) // order.num_draws
