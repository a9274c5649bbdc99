"""The split over batches, ranks and workers: exactly once, equal numbers, equal sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.errors import ConfigError
from shardkit.order import EpochOrder, Split, iterate_batches, iterate_blocks
from tests.order.orders import all_ids, make_order, orders, rank_batches, real_ids

worlds = st.integers(1, 9)
extras = st.integers(0, 40)


@given(orders(), worlds, extras)
def test_keep_yields_every_sample_once(order: EpochOrder, world_size: int, extra: int) -> None:
    ranks = rank_batches(order, world_size, world_size + extra, "keep")
    seen = [i for batches in ranks for i in real_ids(batches)]
    assert sorted(seen) == list(range(order.num_samples))
    assert not any(batch.is_pad.any() for batches in ranks for batch in batches)


@given(orders(), worlds, extras)
def test_pad_yields_every_sample_once_in_full_batches_and_marks_the_rest(
    order: EpochOrder, world_size: int, extra: int
) -> None:
    size = world_size + extra
    ranks = rank_batches(order, world_size, size, "pad")
    seen = [i for batches in ranks for i in real_ids(batches)]
    assert sorted(seen) == list(range(order.num_samples))
    num_batches = -(-order.num_samples // size)
    assert {len(batches) for batches in ranks} == {num_batches}
    for rank, batches in enumerate(ranks):
        share = size // world_size + (rank < size % world_size)
        assert all(len(batch.ids) == share for batch in batches)


@given(orders(), worlds, extras)
def test_drop_leaves_out_less_than_a_batch(order: EpochOrder, world_size: int, extra: int) -> None:
    size = world_size + extra
    ranks = rank_batches(order, world_size, size, "drop")
    seen = [i for batches in ranks for i in real_ids(batches)]
    full = order.num_samples // size * size
    assert sorted(seen) == sorted(all_ids(order)[:full].tolist())
    assert {len(batches) for batches in ranks} == {order.num_samples // size}
    if ranks[0]:
        assert ranks[0][-1].stop == order.num_samples


@given(orders(), worlds, worlds, extras, st.sampled_from(["pad", "drop", "keep"]), st.data())
def test_global_batches_are_equal_sets_on_any_world_from_any_position(
    order: EpochOrder,
    one: int,
    other: int,
    extra: int,
    remainder: str,
    data: st.DataObject,
) -> None:
    size = max(one, other) + extra
    position = data.draw(st.integers(0, order.num_samples))
    sets = [
        [
            sorted(i for batch in batches for i in batch.ids.tolist())
            for batches in zip(
                *rank_batches(order, world_size, size, remainder, position), strict=True
            )
        ]
        for world_size in (one, other)
    ]
    assert sets[0] == sets[1]


@given(orders(), worlds, extras, st.sampled_from(["pad", "drop", "keep"]))
def test_a_batch_is_the_next_positions_in_lane_major_runs(
    order: EpochOrder, world_size: int, extra: int, remainder: str
) -> None:
    size = world_size + extra
    for batches in zip(*rank_batches(order, world_size, size, remainder), strict=True):
        start = batches[0].start
        stop = start + size if remainder == "pad" else min(start + size, order.num_samples)
        positions = np.arange(start, stop)
        expected = positions[np.lexsort((positions, positions % order.num_lanes))]
        found = np.concatenate([batch.positions for batch in batches])
        assert np.array_equal(found, expected)
        lengths = [len(batch.positions) for batch in batches]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("position", [0, 512, 13, 1000])
def test_nodes_own_disjoint_lanes_when_the_numbers_divide(position: int) -> None:
    """4 nodes of 2 ranks, 8 lanes, batches of 64."""
    order = make_order([1000] * 4, num_lanes=8)
    ranks = rank_batches(order, 8, 64, "pad", position)
    owned = [
        {int(p) % 8 for rank in (2 * node, 2 * node + 1) for b in ranks[rank] for p in b.positions}
        for node in range(4)
    ]
    assert owned == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]


@given(orders(), worlds, extras)
def test_pads_repeat_late_samples_of_the_same_lane(
    order: EpochOrder, world_size: int, extra: int
) -> None:
    split = Split(order.num_samples, world_size + extra, "pad", 0, world_size, order.num_lanes)
    if not order.num_samples:
        return
    pads = np.arange(order.num_samples, order.num_samples + split.global_batch_size)
    repeated = split.unpad(pads)
    assert repeated.min() >= max(0, order.num_samples - split.global_batch_size)
    assert repeated.max() < order.num_samples
    if min(order.num_samples, split.global_batch_size) >= order.num_lanes:
        assert np.array_equal(repeated % order.num_lanes, pads % order.num_lanes)


@given(orders(), worlds, st.integers(1, 5), st.data())
def test_bare_iteration_deals_positions_one_by_one(
    order: EpochOrder, world_size: int, num_workers: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, order.num_samples))
    seen: list[int] = []
    for rank in range(world_size):
        split = Split.bare(order.num_samples, rank, world_size, order.num_lanes)
        total = 0
        for worker in range(num_workers):
            for block in iterate_blocks(
                order, split, position, worker=worker, num_workers=num_workers
            ):
                assert np.array_equal(block.ids, order.at(block.positions))
                assert (np.diff(block.bounds) <= 1).all()
                seen += block.ids.tolist()
                total += len(block.ids)
        assert total == split.num_positions(position)
    assert sorted(seen) == sorted(all_ids(order)[position:].tolist())


def test_bare_iteration_of_one_rank_is_the_canonical_order() -> None:
    order = make_order([3000] * 3, num_lanes=3)
    blocks = list(iterate_blocks(order, Split.bare(9000, num_lanes=3)))
    assert np.array_equal(np.concatenate([block.ids for block in blocks]), all_ids(order))


@given(orders(), worlds, extras, st.integers(1, 5), st.sampled_from(["pad", "drop", "keep"]))
def test_workers_take_whole_batches_in_turn(
    order: EpochOrder, world_size: int, extra: int, num_workers: int, remainder: str
) -> None:
    split = Split(
        order.num_samples,
        world_size + extra,
        remainder,  # type: ignore[arg-type]
        world_size - 1,
        world_size,
        order.num_lanes,
    )
    alone = [(batch.start, batch.ids.tolist()) for batch in iterate_batches(order, split)]
    for worker in range(num_workers):
        own = iterate_batches(order, split, worker=worker, num_workers=num_workers)
        assert [(b.start, b.ids.tolist()) for b in own] == alone[worker::num_workers]


@pytest.mark.parametrize("num_samples", [1, 2, 7])
@pytest.mark.parametrize(("remainder", "num_batches"), [("pad", 1), ("drop", 0), ("keep", 1)])
def test_fewer_samples_than_ranks_still_give_equal_batch_counts(
    num_samples: int, remainder: str, num_batches: int
) -> None:
    order = make_order([num_samples])
    ranks = rank_batches(order, 8, 32, remainder)
    assert {len(batches) for batches in ranks} == {num_batches}
    if remainder == "pad":
        assert all(len(batches[0].ids) == 4 for batches in ranks)
        assert sorted(i for b in ranks for i in real_ids(b)) == list(range(num_samples))


def test_one_shard_serves_eight_ranks() -> None:
    ranks = rank_batches(make_order([101]), 8, 16)
    assert sorted(i for batches in ranks for i in real_ids(batches)) == list(range(101))


def test_counts_are_what_iteration_gives_from_every_position() -> None:
    order = make_order([50, 51], num_lanes=3)
    for remainder in ("pad", "drop", "keep"):
        for position in range(102):
            for rank, batches in enumerate(rank_batches(order, 3, 10, remainder, position)):
                split = Split(101, 10, remainder, rank, 3, 3)  # type: ignore[arg-type]
                assert len(batches) == split.num_batches(position)
                assert sum(len(b.ids) for b in batches) == split.num_positions(position)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 2, "pad", 0, 3), "global_batch_size=2 gives some of 3 ranks nothing"),
        ((10, 4, "fill"), "remainder='fill' is not one of pad, drop, keep"),
        ((10, 4, "pad", 3, 3), "rank 3 is not in a world of 3"),
        ((-1, 4, "pad"), "num_samples=-1"),
    ],
)
def test_wrong_splits_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Split(*arguments)  # type: ignore[arg-type]


def test_an_order_and_a_split_of_other_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="51 samples in 2 lanes can't be split as 50 in 2"):
        next(iterate_batches(make_order(), Split(50, 4, "pad", num_lanes=2)))
    with pytest.raises(ConfigError, match="position 52 is outside an epoch of 51"):
        next(iterate_batches(make_order(), Split(51, 4, "pad", num_lanes=2), 52))
    with pytest.raises(ConfigError, match="worker 2 is not one of 2"):
        split = Split(51, 4, "pad", num_lanes=2)
        next(iterate_batches(make_order(), split, worker=2, num_workers=2))
