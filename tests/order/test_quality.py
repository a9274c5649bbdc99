"""Shuffle quality: the measure itself, and what each mode must reach."""

from __future__ import annotations

import numpy as np
import pytest

from shardkit.errors import ConfigError
from shardkit.order import measure_quality, measure_stretches
from shardkit.order.hashing import hash_range
from tests.order.orders import all_ids, make_order

SIZE = 200_000
SHARDS = [1000] * 200


def ideal(seed: int) -> np.ndarray:
    return np.argsort(hash_range(0, SIZE, seed))


def test_an_ideal_permutation_measures_as_ideal() -> None:
    quality = measure_quality(ideal(1), SIZE)
    assert abs(quality.rank_correlation) < 0.01
    assert abs(quality.local_correlation) < 0.01
    assert quality.neighbour_distance == pytest.approx(1, abs=0.01)
    assert quality.label_run == pytest.approx(1, abs=0.01)
    assert quality.labels_per_window == pytest.approx(1, abs=0.01)


def test_sorted_data_measure_as_sorted() -> None:
    quality = measure_quality(np.arange(SIZE), SIZE)
    assert quality.rank_correlation == pytest.approx(1)
    assert quality.local_correlation == pytest.approx(1)
    assert quality.neighbour_distance < 1e-4
    assert quality.label_run > 190
    assert quality.labels_per_window < 0.02


def test_global_can_not_be_told_from_ideal_permutations() -> None:
    """Each figure within the spread of 20 ideal ones, over the epoch and at both of its ends."""
    base = [measure_stretches(ideal(seed), SIZE, 10_000) for seed in range(20)]
    found = [
        measure_stretches(all_ids(make_order(SHARDS, shuffle="global", seed=seed)), SIZE, 10_000)
        for seed in range(5)
    ]
    for stretch in ("epoch", "start", "middle", "end"):
        for field in ("rank_correlation", "local_correlation", "neighbour_distance", "label_run"):
            values = np.array([getattr(one[stretch], field) for one in base])
            mean = np.mean([getattr(one[stretch], field) for one in found])
            assert abs(mean - values.mean()) < 5 * values.std() / 5**0.5


def test_buffer_is_as_good_as_a_shuffle_buffer_of_as_many_samples() -> None:
    """A reservoir of B held samples, one drawn at a time, over the same shuffled shards."""
    rng = np.random.default_rng(0)
    for buffer_size in (300, 1000, 5000):
        line = all_ids(make_order(SHARDS, shuffle="shard", num_lanes=1))
        held, drawn = line[:buffer_size].tolist(), []
        for number in line[buffer_size:].tolist():
            place = int(rng.integers(buffer_size))
            drawn.append(held[place])
            held[place] = number
        theirs = measure_quality(np.array(drawn), SIZE)
        ours = measure_quality(
            all_ids(make_order(SHARDS, buffer_size=buffer_size, num_lanes=1)), SIZE
        )
        assert ours.neighbour_distance > 0.99 * theirs.neighbour_distance
        assert ours.label_run < 1.01 * theirs.label_run


@pytest.mark.parametrize("num_lanes", [1, 4])
def test_the_ends_of_an_epoch_are_mixed_as_its_middle(num_lanes: int) -> None:
    """Averaged over 40 epochs, for which shards lie at the ends is chance."""
    figures: dict[str, list[float]] = {"start": [], "middle": [], "end": []}
    for epoch in range(40):
        order = make_order([1000] * 40, epoch, buffer_size=4000, num_lanes=num_lanes)
        stretches = measure_stretches(all_ids(order), 40_000, 4000)
        for name, values in figures.items():
            values.append(stretches[name].label_run)
    means = {name: np.mean(values) for name, values in figures.items()}
    for name in ("start", "end"):
        assert means[name] == pytest.approx(means["middle"], rel=0.03)


def test_a_larger_buffer_mixes_better() -> None:
    runs = [
        measure_quality(all_ids(make_order(SHARDS, buffer_size=size)), SIZE).label_run
        for size in (100, 1000, 10_000)
    ]
    assert runs == sorted(runs, reverse=True)
    assert runs[-1] < 1.2


@pytest.mark.parametrize(("length", "window"), [(10, 256), (10, 1)])
def test_what_is_too_short_to_measure_is_refused(length: int, window: int) -> None:
    with pytest.raises(ConfigError, match="can't be measured"):
        measure_quality(np.arange(length), 10, window=window)


def test_a_short_epoch_can_still_be_measured() -> None:
    stretches = measure_stretches(np.arange(256), 256, 10_000)
    assert set(stretches) == {"epoch", "start", "middle", "end"}
