"""Restore at every position, and any sequence of resumes on changing worlds."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.order import EpochOrder, Split, iterate_batches
from tests.order.orders import MODES, all_ids, make_order, orders, rank_batches, real_ids


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("remainder", ["pad", "drop", "keep"])
def test_restored_after_every_batch_the_rest_is_the_same(mode: str, remainder: str) -> None:
    order = make_order([40, 3, 0, 58], shuffle=mode, num_lanes=3)
    split = Split(101, 6, remainder, 1, 2, 3)  # type: ignore[arg-type]
    whole = list(iterate_batches(order, split))
    for done, batch in enumerate(whole, 1):
        fresh = pickle.loads(pickle.dumps(order))
        rest = list(iterate_batches(fresh, split, batch.stop))
        assert [b.ids.tolist() for b in rest] == [b.ids.tolist() for b in whole[done:]]


@pytest.mark.parametrize("mode", MODES)
def test_restored_at_every_position_nothing_is_lost_or_repeated(mode: str) -> None:
    order = make_order([30, 31], shuffle=mode, num_lanes=4)
    ids = all_ids(order)
    for position in range(order.num_samples + 1):
        for world_size in (1, 3):
            ranks = rank_batches(order, world_size, 5, "pad", position)
            seen = [i for batches in ranks for i in real_ids(batches)]
            assert sorted(seen) == sorted(ids[position:].tolist())


@given(
    orders(),
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 20), st.integers(0, 4)), max_size=6),
)
def test_any_sequence_of_resumes_yields_each_sample_once(
    order: EpochOrder, runs: list[tuple[int, int, int]]
) -> None:
    """Each run has its own world size and G, takes some batches, and dies."""
    seen: list[int] = []
    position = 0
    for world_size, extra, num_batches in [*runs, (2, 3, 10**6)]:
        ranks = rank_batches(order, world_size, world_size + extra, "pad", position)
        for batches in list(zip(*ranks, strict=True))[:num_batches]:
            assert len({(batch.start, batch.stop) for batch in batches}) == 1
            seen += real_ids(batches)
            position = batches[0].stop
    assert position == order.num_samples
    assert sorted(seen) == list(range(order.num_samples))


def test_resumed_on_4_then_2_then_3_ranks_the_global_batches_are_those_of_one_run() -> None:
    order = make_order([100] * 5, num_lanes=4)

    def sets(world_size: int, position: int) -> list[list[int]]:
        ranks = rank_batches(order, world_size, 12, "pad", position)
        return [
            sorted(i for b in batches for i in b.ids.tolist())
            for batches in zip(*ranks, strict=True)
        ]

    uninterrupted = sets(1, 0)
    assert sets(4, 0)[:10] + sets(2, 120)[:7] + sets(3, 120 + 84) == uninterrupted
