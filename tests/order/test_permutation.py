"""Hashes and permutations: stateless, even, stable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.order.hashing import below, hash_counters, hash_range, make_key, sample_seeds
from shardkit.order.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 101, 4096, 4097, 65_537, 1_000_003])
def test_a_permutation_has_every_value_once(size: int) -> None:
    mapped = Permutation(size, 7)(np.arange(size))
    assert np.array_equal(np.sort(mapped), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 101, 4096, 4097, 65_537, 1_000_003])
def test_the_inverse_leads_back(size: int) -> None:
    values = np.arange(size)
    permutation = Permutation(size, 7)
    assert np.array_equal(permutation.inverse(permutation(values)), values)
    assert np.array_equal(values, np.arange(size)), "what was given is left as it was"


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_a_huge_permutation_stays_in_its_domain_and_is_injective(
    size: int, key: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True))
    mapped = Permutation(size, key)(np.array(values, np.int64))
    assert mapped.min() >= 0
    assert mapped.max() < size
    assert len(set(mapped.tolist())) == len(values)
    assert Permutation(size, key).inverse(mapped).tolist() == values


def test_all_permutations_of_four_values_are_equally_likely() -> None:
    seen = Counter(tuple(Permutation(4, key)(np.arange(4)).tolist()) for key in range(4800))
    assert len(seen) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in seen.values())
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001


def test_a_large_permutation_sends_each_value_anywhere() -> None:
    """Value 0 over 2,000 keys: uniform over 20 cells."""
    size = 10**9
    places = [int(Permutation(size, key)(np.array([0]))[0]) * 20 // size for key in range(2000)]
    counts = np.bincount(places, minlength=20)
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # 19 degrees of freedom, p = 0.001


def test_a_range_is_hashed_as_its_counters_are() -> None:
    counters = np.arange(10**12, 10**12 + 5000)
    assert np.array_equal(hash_range(10**12, 10**12 + 5000, 5), hash_counters(counters, 5))


def test_scaled_hashes_are_uniform() -> None:
    drawn = below(hash_range(0, 100_000, 11), 100)
    counts = np.bincount(drawn, minlength=100)
    assert ((counts - 1000) ** 2 / 1000).sum() < 148.2  # 99 degrees of freedom, p = 0.001


def test_keys_tell_their_parts_apart() -> None:
    parts = [(1, 23), (12, 3), (123,), ("1", 23), (1, "23"), (23, 1), ("1\n23",)]
    assert len({make_key(*part) for part in parts}) == len(parts)


def test_a_seed_plus_an_epoch_is_not_another_seeds_epoch() -> None:
    positions = np.arange(100)
    assert not np.array_equal(sample_seeds(0, 1, positions), sample_seeds(1, 0, positions))


def test_sample_seeds_are_distinct_and_do_not_depend_on_company() -> None:
    seeds = sample_seeds(5, 2, np.arange(10_000))
    assert len(set(seeds.tolist())) == 10_000
    assert sample_seeds(5, 2, np.array([777]))[0] == seeds[777]
