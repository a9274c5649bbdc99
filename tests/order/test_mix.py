"""Mixtures: exact, elastic, close to their weights in every batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError, StateError
from shardkit.order import (
    EpochOrder,
    MixBatch,
    MixOptions,
    MixOrder,
    MixState,
    MixStream,
    count_batches,
)
from tests.order.orders import make_order

STREAMS = (
    MixStream("photos", 101, 0.6, num_lanes=2),
    MixStream("clips", 50, 0.3),
    MixStream("texts", 13, 0.1, num_lanes=4),
)


def orders_of(streams: tuple[MixStream, ...]) -> Callable[[int, int], EpochOrder]:
    def order_of(stream: int, epoch: int) -> EpochOrder:
        chosen = streams[stream]
        return make_order([chosen.num_samples], epoch, num_lanes=chosen.num_lanes, seed=stream)

    return order_of


def make_mix(
    streams: tuple[MixStream, ...] = STREAMS,
    size: int = 12,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> MixOrder:
    return MixOrder(streams, MixOptions(**options), size, rank, world_size)


def run(mix: MixOrder, state: MixState | None = None, limit: int = 10**6) -> list[MixBatch]:
    batches = mix.iterate(state or mix.start(), orders_of(mix.streams))
    return [batch for batch, _ in zip(batches, range(limit), strict=False)]


def samples(*batches: MixBatch) -> list[tuple[int, int, int]]:
    """(stream, epoch, id) of what is no pad, sorted."""
    return sorted(
        (part.stream, part.epoch, int(i))
        for batch in batches
        for part in batch.parts
        for i in part.ids[~part.is_pad]
    )


def run_ranks(world_size: int, size: int = 12, **options: Any) -> list[tuple[MixBatch, ...]]:
    """All ranks' batches, step by step."""
    ranks = [
        run(make_mix(STREAMS, size, rank, world_size, **options)) for rank in range(world_size)
    ]
    return list(zip(*ranks, strict=True))


@pytest.mark.parametrize("by", ["sample", "batch"])
@pytest.mark.parametrize("ends", ["first", "all"])
@pytest.mark.parametrize("size", [12, 13])
def test_global_batches_are_equal_sets_on_any_world(by: str, ends: str, size: int) -> None:
    expected = [samples(*step) for step in run_ranks(1, size, by=by, ends=ends)]
    for world_size in (2, 3, 4):
        steps = run_ranks(world_size, size, by=by, ends=ends)
        assert [samples(*step) for step in steps] == expected


@pytest.mark.parametrize("by", ["sample", "batch", "rank"])
@pytest.mark.parametrize("ends", ["first", "all"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_make_equally_many_batches_of_equal_size_and_agree_on_the_state(
    by: str, ends: str, world_size: int
) -> None:
    steps = run_ranks(world_size, by=by, ends=ends)
    assert len(steps) == count_batches(make_mix(world_size=world_size, by=by, ends=ends))
    for step in steps:
        assert {len(batch.interleave) for batch in step} == {12 // world_size}
        assert len({batch.state for batch in step}) == 1


@pytest.mark.parametrize("by", ["sample", "batch", "rank"])
def test_no_sample_comes_twice_in_an_epoch_of_its_stream(by: str) -> None:
    steps = run_ranks(3, by=by, ends="all")
    seen = Counter(key for step in steps for key in samples(*step))
    assert max(seen.values()) == 1
    assert sum(epoch == 0 for stream, epoch, _ in seen if stream == 1) == 50


@settings(max_examples=40)
@given(
    st.lists(st.floats(0.05, 5), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(0, 30),
)
def test_by_sample_each_ranks_share_of_each_stream_differs_by_at_most_one(
    weights: list[float], world_size: int, extra: int
) -> None:
    streams = tuple(MixStream(f"s{i}", 500, weight) for i, weight in enumerate(weights))
    ranks = [
        run(make_mix(streams, world_size + extra, rank, world_size), limit=5)
        for rank in range(world_size)
    ]
    for step in zip(*ranks, strict=True):
        totals = [len(batch.interleave) for batch in step]
        assert max(totals) - min(totals) <= 1
        assert sum(totals) == world_size + extra
        for stream in range(len(streams)):
            shares = [
                sum(len(part.ids) for part in batch.parts if part.stream == stream)
                for batch in step
            ]
            assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_by_sample_the_surplus_of_a_stream_goes_around_the_ranks(world_size: int) -> None:
    """No rank sees more of a stream than others in the long run."""
    streams = (MixStream("a", 10_000, 0.55), MixStream("b", 10_000, 0.45))
    totals = [
        sum(
            len(part.ids)
            for batch in run(make_mix(streams, 10, rank, world_size), limit=500)
            for part in batch.parts
            if part.stream == 0
        )
        for rank in range(world_size)
    ]
    assert max(totals) - min(totals) <= 0.05 * max(totals)


@pytest.mark.parametrize("by", ["sample", "batch", "rank"])
@pytest.mark.parametrize("schedule", ["balanced", "random", "consecutive", "random_order"])
@pytest.mark.parametrize("ends", ["first", "all"])
def test_restored_after_every_batch_the_rest_is_the_same(by: str, schedule: str, ends: str) -> None:
    mix = make_mix(size=6, rank=1, world_size=2, by=by, schedule=schedule, ends=ends)
    whole = run(mix)
    for done, batch in enumerate(whole, 1):
        saved = json.loads(json.dumps(mix.to_dict(batch.state)))
        fresh = make_mix(size=6, rank=1, world_size=2, by=by, schedule=schedule, ends=ends)
        state = fresh.from_dict(saved)
        assert state == batch.state
        rest = run(fresh, state)
        assert [samples(b) for b in rest] == [samples(b) for b in whole[done:]]
        assert [b.state for b in rest] == [b.state for b in whole[done:]]


def test_resumed_on_other_worlds_the_global_batches_are_those_of_one_run() -> None:
    whole = [samples(*step) for step in run_ranks(1, ends="all")]
    state = make_mix(ends="all").start()
    found = []
    for world_size in (4, 2, 3):
        ranks = [
            run(make_mix(STREAMS, 12, rank, world_size, ends="all"), state, limit=4)
            for rank in range(world_size)
        ]
        found += [samples(*step) for step in zip(*ranks, strict=True)]
        state = ranks[0][-1].state
    assert found == whole[: len(found)]


def test_resumed_with_another_batch_size_nothing_is_lost_or_repeated() -> None:
    first = run(make_mix(size=12, ends="all"), limit=5)
    rest = run(make_mix(size=7, ends="all"), first[-1].state)
    seen = Counter(samples(*first, *rest))
    assert max(seen.values()) == 1
    for number, stream in enumerate(STREAMS):
        assert sum(key[:2] == (number, 0) for key in seen) == stream.num_samples


def test_first_ends_before_a_stream_would_repeat() -> None:
    batches = run(make_mix(ends="first"))
    assert {epoch for _, epoch, _ in samples(*batches)} == {0}
    assert sum(stream == 2 for stream, _, _ in samples(*batches)) == 13


def test_all_ends_when_every_stream_has_been_seen_whole() -> None:
    seen = samples(*run(make_mix(ends="all")))
    for number, stream in enumerate(STREAMS):
        assert len([key for key in seen if key[:2] == (number, 0)]) == stream.num_samples


def test_never_goes_on_over_epochs_and_keeps_its_weights() -> None:
    mix = make_mix(ends="never")
    assert count_batches(mix) is None
    batches = run(mix, limit=200)
    counts = Counter(stream for stream, _, _ in samples(*batches))
    assert [counts[stream] for stream in range(3)] == [1440, 720, 240]
    assert max(epoch for _, epoch, _ in samples(*batches)) > 10


def test_the_next_epoch_goes_on_in_every_stream() -> None:
    mix = make_mix(ends="first")
    first = run(mix)
    second = run(mix, mix.next_epoch(first[-1].state))
    seen = Counter(samples(*first, *second))
    assert max(seen.values()) == 1
    assert second[-1].state.epoch == 1
    assert len(second) == pytest.approx(len(first), abs=1)


def test_by_batch_a_turn_yields_its_rounds_in_a_row_with_its_own_batch_size() -> None:
    streams = (
        MixStream("a", 400, 0.5, global_batch_size=8, num_accumulation=3),
        MixStream("b", 400, 0.5, global_batch_size=4),
    )
    batches = run(make_mix(streams, by="batch", schedule="consecutive"), limit=12)
    assert [batch.parts[0].stream for batch in batches] == [0, 0, 0, 1] * 3
    assert [batch.num_rounds_left for batch in batches] == [2, 1, 0, 0] * 3
    assert [len(batch.interleave) for batch in batches] == [8, 8, 8, 4] * 3


def test_a_state_within_a_turn_finishes_the_turn() -> None:
    streams = (MixStream("a", 400, num_accumulation=3), MixStream("b", 400))
    mix = make_mix(streams, by="batch", schedule="consecutive")
    whole = run(mix, limit=8)
    state = mix.from_dict(mix.to_dict(whole[1].state))
    assert [b.parts[0].stream for b in run(mix, state, limit=6)] == [0, 1, 0, 0, 0, 1]


def test_a_turn_that_can_not_be_whole_ends_the_epoch() -> None:
    streams = (MixStream("a", 40, num_accumulation=3), MixStream("b", 400))
    batches = run(make_mix(streams, 10, by="batch", schedule="consecutive"))
    assert [b.parts[0].stream for b in batches] == [0, 0, 0, 1]


def test_by_batch_pads_are_marked_and_dropped_ends_are_left_out() -> None:
    streams = (MixStream("a", 25),)
    padded = run(make_mix(streams, 10, by="batch"))
    assert [int(b.parts[0].is_pad.sum()) for b in padded] == [0, 0, 5]
    assert len(samples(*padded)) == 25
    dropped = run(make_mix(streams, 10, by="batch", remainder="drop", ends="never"), limit=4)
    assert [b.parts[0].epoch for b in dropped] == [0, 0, 1, 1]


def test_by_rank_ranks_draw_streams_of_their_own_and_all_meet_the_weights() -> None:
    streams = (MixStream("a", 10_000, 0.5), MixStream("b", 10_000, 0.5))
    ranks = [run(make_mix(streams, 8, rank, 4, by="rank"), limit=300) for rank in range(4)]
    drawn = np.array([[batch.parts[0].stream for batch in batches] for batches in ranks])
    assert (drawn.sum(axis=0) == 2).all()  # two of four ranks at every step
    assert np.abs(drawn.mean(axis=1) - 0.5).max() < 0.1
    assert len({tuple(row) for row in drawn.tolist()}) == 4


def test_by_rank_a_state_of_another_world_size_is_refused() -> None:
    mix = make_mix(world_size=2, by="rank")
    saved = mix.to_dict(run(mix, limit=3)[-1].state)
    with pytest.raises(
        StateError, match="saved on 2 ranks, 1 to a draw; this is 4, 1 to a draw: resume on as many"
    ):
        make_mix(world_size=4, by="rank").from_dict(saved)


def changed(streams: tuple[MixStream, ...], **options: Any) -> tuple[MixState, MixState]:
    """The state after 5 batches, and what another mixture makes of it."""
    before = make_mix(ends="all")
    state = run(before, limit=5)[-1].state
    return state, make_mix(streams, ends="all", **options).from_dict(before.to_dict(state))


def test_with_a_stream_added_the_others_go_on_and_the_schedule_starts_anew() -> None:
    state, loaded = changed((*STREAMS, MixStream("new", 77, 0.5)))
    for old, new in zip(state.streams, loaded.streams, strict=False):
        assert (old.epoch, old.position, old.given) == (new.epoch, new.position, new.given)
    assert loaded.streams[3].position == 0
    assert loaded.step == 0


def test_with_a_stream_removed_or_moved_the_others_go_on() -> None:
    state, loaded = changed((STREAMS[2], STREAMS[0]))
    assert [place.position for place in loaded.streams] == [
        state.streams[2].position,
        state.streams[0].position,
    ]


def test_with_new_weights_they_hold_from_there_on() -> None:
    streams = (MixStream("photos", 101, 0.2, 2), MixStream("clips", 50, 0.8), STREAMS[2])
    state, loaded = changed(streams)
    assert state.step == 60
    assert loaded.step == 0


def test_unchanged_it_goes_on_exactly() -> None:
    state, loaded = changed(STREAMS)
    assert loaded == state


def test_a_stream_that_shrank_is_refused() -> None:
    with pytest.raises(StateError, match="stream 'photos' at position 36 of 20"):
        changed((MixStream("photos", 20),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9, this shardkit reads 1"),
        ({"epoch": "0"}, "epoch='0', not of type int"),
        ({"rounds_left": -1}, "a number below its least"),
        ({"more": 1}, r"unknown \['more'\]"),
        ({"streams": {"photos": {"epoch": 0}}}, "of stream 'photos' lacks"),
        ({"streams": []}, "streams="),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any], message: str) -> None:
    mix = make_mix()
    with pytest.raises(StateError, match=message):
        mix.from_dict(mix.to_dict(mix.start()) | change)


def test_a_negative_number_or_no_mapping_is_refused() -> None:
    mix = make_mix()
    saved = mix.to_dict(mix.start())
    saved["streams"]["photos"]["draws"] = -1
    with pytest.raises(StateError, match="negative number in stream 'photos'"):
        mix.from_dict(saved)
    with pytest.raises(StateError, match="a state is a mapping, not a list"):
        mix.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("streams", "options", "message"),
    [
        ((MixStream("a", 5), MixStream("a", 5)), {}, "need unique names"),
        ((), {}, "at least one"),
        ((MixStream("a", 0),), {}, "0 samples has not one batch"),
        ((MixStream("a", 5),), {"by": "batch", "remainder": "drop"}, "5 samples has not one batch"),
        ((MixStream("a", 50, num_accumulation=2),), {}, 'more than 1 needs by="batch"'),
        ((MixStream("a", 50, group="g"),), {"by": "batch"}, 'groups need by="rank"'),
        (STREAMS, {"ranks_per_draw": 2}, 'more than 1 needs by="rank"'),
        (STREAMS, {"by": "rank", "ranks_per_draw": 3, "world_size": 4}, "does not divide 4 ranks"),
        (STREAMS, {"by": "rank", "ends": "once"}, "leaves some ranks with nothing"),
        (
            (MixStream("a", 50), MixStream("b", 50, num_accumulation=2)),
            {"by": "rank", "world_size": 2},
            "give all of a group the same number",
        ),
        ((MixStream("a", 50, num_accumulation=0),), {"by": "batch"}, "must be at least 1"),
        ((MixStream("a", 50, global_batch_size=7),), {"by": "rank", "world_size": 2}, "multiple"),
        ((MixStream("a", 5), MixStream("b", 500)), {}, "runs out before the mixture's first batch"),
        (STREAMS, {"by": "step"}, "by='step' is not one of sample, batch, rank"),
        (
            STREAMS,
            {"ends": "last"},
            "ends='last' is not one of first, all, once, never, photos, clips, texts",
        ),
        (STREAMS, {"size": 2, "world_size": 3}, "gives some of 3 ranks nothing"),
    ],
)
def test_mixtures_that_can_not_be_are_refused(
    streams: tuple[MixStream, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_mix(streams, **options)


def test_the_order_of_a_batch_spreads_its_streams_evenly() -> None:
    streams = (MixStream("a", 1000, 0.5), MixStream("b", 1000, 0.25), MixStream("c", 1000, 0.25))
    batch = run(make_mix(streams, 16), limit=1)[0]
    row = np.concatenate([np.full(len(part.ids), part.stream) for part in batch.parts])
    mixed = row[batch.interleave]
    assert sorted(batch.interleave.tolist()) == list(range(16))
    assert all(np.bincount(mixed[i : i + 4], minlength=3).tolist() == [2, 1, 1] for i in (0, 4, 8))


GROUPED = (
    MixStream("a", 6000, 0.3, group="still"),
    MixStream("b", 6000, 0.3, group="still"),
    MixStream("c", 6000, 0.4, num_accumulation=2, group="moving"),
)


def drawn_by_ranks(
    streams: tuple[MixStream, ...], limit: int, world_size: int = 4, **options: Any
) -> list[list[int]]:
    """The stream of each rank, step by step."""
    ranks = [
        run(make_mix(streams, 8, rank, world_size, by="rank", **options), limit=limit)
        for rank in range(world_size)
    ]
    return [[batch.parts[0].stream for batch in step] for step in zip(*ranks, strict=True)]


def test_by_rank_each_turn_is_of_one_group_and_groups_meet_their_weights() -> None:
    steps = drawn_by_ranks(GROUPED, 140)
    assert {frozenset(step) for step in steps} == {frozenset({0, 1}), frozenset({2})}
    turns = Counter(frozenset(step) for step in steps)
    assert turns[frozenset({0, 1})] == 60  # 0.6 of the turns
    assert turns[frozenset({2})] == 80  # 0.4 of the turns, of two batches each
    assert all(Counter(step) == {0: 2, 1: 2} for step in steps if 2 not in step)


def test_by_rank_a_turn_of_several_rounds_keeps_each_ranks_stream() -> None:
    streams = tuple(MixStream(name, 600, 0.5, num_accumulation=3) for name in "ab")
    steps = drawn_by_ranks(streams, 12)
    assert [steps[i] for i in (0, 3, 6, 9)] == [steps[i] for i in (2, 5, 8, 11)]
    assert len({tuple(step) for step in steps}) > 1


def test_by_rank_so_many_ranks_in_a_row_draw_together() -> None:
    streams = (MixStream("a", 600, 0.5), MixStream("b", 600, 0.5))
    steps = drawn_by_ranks(streams, 20, ranks_per_draw=2)
    assert all(step[0] == step[1] and step[2] == step[3] for step in steps)
    assert {step[0] for step in steps} == {0, 1}
    saved = make_mix(streams, 8, 0, 4, by="rank", ranks_per_draw=2)
    state = saved.to_dict(run(saved, limit=3)[-1].state)
    more = make_mix(streams, 8, 0, 8, by="rank", ranks_per_draw=4)  # as many draws in a batch
    assert more.from_dict(state).streams == run(saved, limit=3)[-1].state.streams


@pytest.mark.parametrize("remainder", ["pad", "keep"])
@pytest.mark.parametrize("by", ["sample", "batch"])
@pytest.mark.parametrize("schedule", ["balanced", "random", "consecutive"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_once_gives_each_sample_of_each_stream_once(
    by: str, schedule: str, world_size: int, remainder: str
) -> None:
    options = {"by": by, "schedule": schedule, "ends": "once", "remainder": remainder}
    steps = run_ranks(world_size, **options)
    seen = Counter(key for step in steps for key in samples(*step))
    assert set(seen.values()) == {1}
    assert len(seen) == sum(stream.num_samples for stream in STREAMS)
    assert len(steps) == count_batches(make_mix(world_size=world_size, **options))
    if remainder == "pad":
        assert {len(batch.interleave) for step in steps for batch in step} == {12 // world_size}
    second = run(make_mix(**options), make_mix(**options).next_epoch(steps[-1][0].state))
    assert Counter(samples(*second)).keys() == {(stream, 1, i) for stream, _, i in seen}


def test_once_keeps_the_weights_of_the_streams_that_are_left() -> None:
    streams = (MixStream("a", 20, 0.5), MixStream("b", 400, 0.3), MixStream("c", 400, 0.2))
    batches = run(make_mix(streams, 10, ends="once"))
    counts = [Counter(stream for stream, _, _ in samples(batch)) for batch in batches]
    assert counts[:4] == [{0: 5, 1: 3, 2: 2}] * 4
    assert counts[4:30] == [{1: 6, 2: 4}] * 26


@pytest.mark.parametrize("by", ["sample", "batch"])
def test_once_restored_after_every_batch_the_rest_is_the_same(by: str) -> None:
    mix = make_mix(by=by, ends="once", schedule="random")
    whole = run(mix)
    for done, batch in enumerate(whole, 1):
        rest = run(mix, mix.from_dict(json.loads(json.dumps(mix.to_dict(batch.state)))))
        assert [samples(b) for b in rest] == [samples(b) for b in whole[done:]]


def test_an_epoch_can_end_with_a_stream_of_ones_choice() -> None:
    batches = run(make_mix(ends="clips"))
    counts = Counter(stream for stream, _, _ in samples(*batches))
    assert 50 - 4 < counts[1] <= 50  # less than a batch's share is left for the next epoch
    assert counts[2] > STREAMS[2].num_samples  # the smaller one has begun again
    assert count_batches(make_mix(ends="clips")) == len(batches)


def test_drop_ends_a_stream_at_its_last_full_batch() -> None:
    streams = (MixStream("a", 25), MixStream("b", 45))
    batches = run(make_mix(streams, 10, by="batch", remainder="drop", ends="all"))
    counts = Counter((part.stream, part.epoch) for b in batches for part in b.parts)
    assert counts[1, 0] == 4
    assert (1, 1) not in counts


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(20, 6000), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.5, 0.3, 1, 2, 7, 0.123456]), min_size=4, max_size=4),
    size=st.integers(1, 9),
    by=st.sampled_from(["sample", "batch", "rank"]),
    schedule=st.sampled_from(["balanced", "random", "consecutive_interleaved", "random_order"]),
    ends=st.sampled_from(["first", "all", "once", "s0"]),
    remainder=st.sampled_from(["pad", "drop", "keep"]),
    num_accumulation=st.integers(1, 3),
    has_groups=st.booleans(),
)
def test_batches_are_counted_as_if_each_was_drawn(
    sizes: list[int],
    weights: list[float],
    size: int,
    num_accumulation: int,
    has_groups: bool,
    **options: Any,
) -> None:
    by_rank = options["by"] == "rank"
    streams = tuple(
        MixStream(
            f"s{i}",
            num_samples,
            weight,
            num_accumulation=num_accumulation if options["by"] != "sample" else 1,
            group=f"g{i % 2}" if by_rank and has_groups else "",
        )
        for i, (num_samples, weight) in enumerate(zip(sizes, weights, strict=False))
    )
    try:
        mix = make_mix(streams, 2 * size, 0, 2, **options)
    except ConfigError:
        return  # what can not be is refused, as tests above say
    state: MixState | None = mix.start()
    drawn = -1
    while state is not None:
        state = mix.step(state)
        drawn += 1
    assert count_batches(mix) == drawn


@pytest.mark.parametrize("by", ["sample", "batch", "rank"])
@pytest.mark.parametrize("weights", [(0.6, 0.4), (2.0, 1.0), (0.999, 0.001)])
def test_the_batches_of_a_trillion_samples_are_counted_at_once(
    by: str, weights: tuple[float, float]
) -> None:
    streams = (MixStream("a", 10**12, weights[0]), MixStream("b", 10**12, weights[1]))
    found = count_batches(make_mix(streams, 256, 0, 4, by=by))
    share = weights[0] / sum(weights)
    assert found == pytest.approx(10**12 / 256 / share, rel=1e-6)
