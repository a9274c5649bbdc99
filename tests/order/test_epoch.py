"""The order of an epoch, as mathematics."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError
from shardkit.order import EpochOrder, ShuffleOptions
from shardkit.order.mixing import BufferMixing
from tests.order.orders import MODES, all_ids, make_order, orders


@given(orders())
def test_every_sample_stands_at_one_position(order: EpochOrder) -> None:
    assert np.array_equal(np.sort(all_ids(order)), np.arange(order.num_samples))


@given(orders(), st.data())
def test_any_stretch_can_be_asked_for_by_itself(order: EpochOrder, data: st.DataObject) -> None:
    ids = all_ids(order)
    start = data.draw(st.integers(0, order.num_samples))
    stop = data.draw(st.integers(start, order.num_samples))
    fresh = pickle.loads(pickle.dumps(order))
    assert np.array_equal(fresh.at(np.arange(start, stop)), ids[start:stop])


@given(orders(), st.data())
def test_scattered_positions_give_what_the_whole_gives(
    order: EpochOrder, data: st.DataObject
) -> None:
    if not order.num_samples:
        return
    numbers = st.integers(0, order.num_samples - 1)
    positions = np.array(data.draw(st.lists(numbers, max_size=30)), np.int64)
    assert np.array_equal(order.at(positions), all_ids(order)[positions])


@given(orders(), st.data())
def test_groups_lists_what_a_stretch_needs(order: EpochOrder, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, order.num_samples))
    stop = data.draw(st.integers(start, order.num_samples))
    counts = np.diff(order._starts, append=order.num_samples)
    needed = np.repeat(np.arange(len(counts)), counts)[order.at(np.arange(start, stop))]
    listed = order.groups(start, stop).tolist()
    assert set(needed.tolist()) <= set(listed)
    assert len(set(listed)) == len(listed)


def test_groups_come_in_the_order_of_first_need() -> None:
    order = make_order([10] * 20, shuffle="shard", num_lanes=1)
    ids = all_ids(order)
    firsts = [int(i) // 10 for i in ids[::10]]
    assert order.groups(0, 200).tolist() == firsts
    assert order.groups(35, 62).tolist() == firsts[3:7]


@given(orders())
def test_position_p_is_row_p_div_l_of_lane_p_mod_l(order: EpochOrder) -> None:
    ids = all_ids(order)
    for lane in range(order.num_lanes):
        expected = ids[lane :: order.num_lanes]
        size = -(-(order.num_samples - lane) // order.num_lanes)
        assert size == len(expected) or order.num_samples < lane
        assert np.array_equal(order.lane(lane, 0, len(expected)), expected)


@pytest.mark.parametrize("mode", ["none", "shard"])
@pytest.mark.parametrize("num_lanes", [1, 2, 7, 64])
def test_lanes_are_stretches_of_one_line(mode: str, num_lanes: int) -> None:
    line = all_ids(make_order(range(40), shuffle=mode, num_lanes=1))
    order = make_order(range(40), shuffle=mode, num_lanes=num_lanes)
    ids = all_ids(order)
    lanes = [ids[lane::num_lanes] for lane in range(num_lanes)]
    assert np.array_equal(np.concatenate(lanes), line)


def test_none_is_the_natural_order() -> None:
    assert all_ids(make_order(shuffle="none", num_lanes=1)).tolist() == list(range(51))


def test_shard_permutes_groups_and_keeps_their_rows_in_order() -> None:
    ids = all_ids(make_order([5] * 30, shuffle="shard", num_lanes=1)).reshape(30, 5)
    assert np.array_equal(ids % 5, np.tile(np.arange(5), (30, 1)))
    assert sorted(ids[:, 0] // 5) == list(range(30))
    assert ids[:, 0].tolist() != sorted(ids[:, 0])


@pytest.mark.parametrize("num_lanes", [1, 4])
@pytest.mark.parametrize("buffer_size", [100, 1000])
def test_a_sample_moves_by_one_and_a_half_buffer_sizes_at_most(
    num_lanes: int, buffer_size: int
) -> None:
    """Around the ends of its lane; places fluctuate by the square root of the width."""
    size = 20_000
    plain = all_ids(make_order([size], shuffle="shard", num_lanes=num_lanes))
    mixed = all_ids(make_order([size], buffer_size=buffer_size, num_lanes=num_lanes))
    before, after = np.empty(size, np.int64), np.empty(size, np.int64)
    before[plain] = np.arange(size)
    after[mixed] = np.arange(size)
    moved = np.abs(after - before)
    moved = np.minimum(moved, size - moved)
    bound = 1.5 * buffer_size
    assert moved.max() <= bound + 6 * num_lanes * (bound / num_lanes) ** 0.5
    assert moved.mean() == pytest.approx(bound / 2, rel=0.1)


def test_neighbours_come_from_buffer_size_apart_on_average() -> None:
    ids = all_ids(make_order([200_000], buffer_size=1000, num_lanes=1))
    distance = np.abs(np.diff(ids))
    assert np.median(distance) < 1000
    assert np.minimum(distance, 200_000 - distance).mean() == pytest.approx(1000, rel=0.03)


def test_a_buffer_of_the_whole_epoch_sends_samples_anywhere() -> None:
    places = np.empty((300, 20), np.int64)
    for seed in range(300):
        places[seed][all_ids(make_order([20], buffer_size=100, seed=seed, num_lanes=1))] = range(20)
    counts = np.bincount(places[:, 0], minlength=20)
    assert ((counts - 15) ** 2 / 15).sum() < 43.8  # 19 degrees of freedom, p = 0.001


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10), st.integers(1, 90))
def test_buffer_mixing_is_a_stable_sort_by_hashed_keys(
    size: int, width: int, key: int, block: int
) -> None:
    """Against the definition, written down without any seeking."""
    width = min(width, size)
    mixing = BufferMixing.over(1000, size, width, key)
    keyed = []
    for _, shifts, ties in mixing._pieces(0, size):
        keyed += [((row + int(shifts[row])) % size, int(ties[row]), row) for row in range(size)]
    # rows that came around the end stand before others of the same key and tie
    expected = sorted(
        keyed, key=lambda item: (item[0], item[1], item[2] - size * (item[2] > item[0]))
    )
    rows = [(row + width // 2) % size for _, _, row in expected]
    for start in range(0, size, block):
        stop = min(start + block, size)
        assert mixing.rows(start, stop).tolist() == rows[start:stop]


def test_any_place_of_a_long_lane_is_found_by_itself() -> None:
    """Enough seeks for the rare ones whose first guess of the key is too near."""
    mixing = BufferMixing.over(0, 6_000_000, 1000, 5)
    for block in range(0, 6_000_000, 1_000_000):
        whole = mixing.rows(block, block + 1_000_000)
        for start in range(0, 1_000_000, 700):
            assert mixing.rows(block + start, block + start + 1)[0] == whole[start]


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_random_access_over_a_large_epoch_gives_what_reading_along_gives(num_lanes: int) -> None:
    order = make_order([100_000] * 30, buffer_size=500, num_lanes=num_lanes)
    whole = np.concatenate(
        [order.at(np.arange(i, i + 60_000)) for i in range(0, 3_000_000, 60_000)]
    )
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 2_900_000, 20)[:, None] + np.arange(0, 80_000, 997)
    positions = rng.permutation(np.concatenate([clusters.ravel(), rng.integers(0, 3_000_000, 300)]))
    assert np.array_equal(order.at(positions), whole[positions])
    assert np.array_equal(np.sort(whole), np.arange(3_000_000))


@pytest.mark.parametrize("mode", ["shard", "buffer", "global"])
def test_epochs_and_seeds_and_data_sets_have_orders_of_their_own(mode: str) -> None:
    counts = np.full(50, 20)
    options = ShuffleOptions(mode, 50)  # type: ignore[arg-type]
    chosen = [
        EpochOrder(counts, options, 0),
        EpochOrder(counts, options, 1),
        EpochOrder(counts, ShuffleOptions(mode, 50, seed=1), 0),  # type: ignore[arg-type]
        EpochOrder(counts, options, 0, fingerprint="other"),
        EpochOrder(counts, options, 0, selection="other"),
    ]
    all_orders = [tuple(all_ids(order).tolist()) for order in chosen]
    assert len(set(all_orders)) == len(all_orders)
    assert tuple(all_ids(EpochOrder(counts, options, 0)).tolist()) == all_orders[0]


@pytest.mark.parametrize("mode", ["shard", "buffer", "global"])
def test_every_epoch_moves_samples_between_lanes(mode: str) -> None:
    stays = np.empty((2, 4000), np.int64)
    for epoch in range(2):
        ids = all_ids(make_order([50] * 80, epoch, shuffle=mode, num_lanes=4))
        stays[epoch][ids] = np.arange(4000) % 4
    assert 0.1 < (stays[0] == stays[1]).mean() < 0.4  # a quarter stays by chance


def test_lanes_are_mixed_independently() -> None:
    order = make_order([40_000], buffer_size=400, num_lanes=4)
    lanes = [order.lane(lane, 1000, 2000) - lane * 10_000 for lane in range(4)]
    assert (lanes[0] == lanes[1]).mean() < 0.05


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_of_nothing_is_empty(mode: str) -> None:
    order = make_order([0, 0], shuffle=mode)
    assert order.num_samples == 0
    assert all_ids(order).size == 0
    assert order.groups(0, 10).size == 0


@pytest.mark.parametrize("positions", [[-1], [51], [3, 99]])
def test_a_position_outside_the_epoch_is_an_index_error(positions: list[int]) -> None:
    with pytest.raises(IndexError, match="not all in an epoch of 51 samples"):
        make_order().at(np.array(positions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": "yes"}, "shuffle='yes' is not one of none, shard, buffer, global"),
        ({"buffer_size": 0}, 'buffer_size=0 .* or use shuffle="global"'),
        ({"buffer_size": 2.5}, "must be an integer"),
        ({"buffer_size": True}, "must be an integer"),
        ({"seed": -1}, "seed=-1"),
        ({"num_lanes": 0}, "num_lanes=0 .* number of nodes"),
    ],
)
def test_wrong_options_are_refused_with_the_bound(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_order(**options)


def test_a_negative_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, match="epochs count from 0"):
        make_order(epoch=-1)
