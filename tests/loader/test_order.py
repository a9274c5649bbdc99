"""Batches in canonical order, whoever makes them; the same sets on any world."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import DataLoader, ShardDataset
from shardkit.errors import ConfigError
from shardkit.loader.mix import Mix
from shardkit.world import World
from tests.dataset.photos import NUM_SAMPLES, Packed
from tests.loader.numbers import batches_of, numbers, numbers_of

MODES = ("none", "shard", "buffer", "global")


def two_epochs(**options: Any) -> list[list[list[int]]]:
    with DataLoader(numbers(), **{"batch_size": 8, **options}) as loader:
        return [batches_of(loader) for _ in range(2)]


class TestSameOrder:
    @pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
    @pytest.mark.parametrize("prefetch_factor", [1, 3])
    @pytest.mark.parametrize("persistent", [True, False])
    def test_by_any_number_of_threads(
        self, num_workers: int, prefetch_factor: int, persistent: bool
    ) -> None:
        epochs = two_epochs(
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent,
        )
        assert epochs == two_epochs(num_workers=0)
        assert epochs[0] != epochs[1]

    @pytest.mark.parametrize(
        ("context", "num_workers", "persistent"),
        [("forkserver", 1, True), ("forkserver", 3, False), ("fork", 2, True), ("spawn", 1, True)],
    )
    def test_by_processes_of_any_kind(
        self, context: str, num_workers: int, persistent: bool
    ) -> None:
        epochs = two_epochs(
            num_workers=num_workers,
            workers="processes",
            multiprocessing_context=context,
            persistent_workers=persistent,
        )
        assert epochs == two_epochs(num_workers=0)

    def test_pinned_memory_changes_nothing_without_a_gpu(self) -> None:
        assert two_epochs(pin_memory=True) == two_epochs()

    def test_epochs_shorter_than_what_is_made_ahead_follow_each_other(self) -> None:
        def epochs(num_workers: int) -> list[Any]:
            options = {"batch_size": 2, "num_workers": num_workers, "prefetch_factor": 4}
            with DataLoader(numbers(3), **options) as loader:
                return [batches_of(loader) for _ in range(7)]

        assert epochs(4) == epochs(0)

    def test_a_batch_holds_members_keys_and_metadata(self, packed: Packed) -> None:
        batch = next(iter(DataLoader(ShardDataset(packed.url, shuffle="none"), 4)))
        assert batch["__key__"] == packed.keys[:4]
        assert batch["jpg"].shape == (4, 48, 64, 3)
        assert batch["jpg"].dtype == torch.uint8
        assert batch["cls"].tolist() == [0, 1, 2, 3]
        assert batch["txt"][2] == "a photo of 2"
        assert [len(array) for array in batch["npy"]] == [1, 2, 3, 4]
        assert batch["aspect"].tolist() == pytest.approx([0, 0.02, 0.04, 0.06])
        assert "__pad__" not in batch


class TestRemainder:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("world_size", [1, 2, 3, 8, 150])
    @pytest.mark.parametrize("num_samples", [1, 101])
    def test_pads_make_ranks_equal_and_each_sample_comes_once(
        self, mode: Any, world_size: int, num_samples: int
    ) -> None:
        seen: Counter[int] = Counter()
        lengths = set()
        for rank in range(world_size):
            dataset = numbers(num_samples, shuffle=mode, world=World(rank, world_size))
            loader = DataLoader(dataset, 2, num_workers=0)
            batches = list(loader)
            assert len(batches) == len(loader)
            assert all(len(batch["number"]) == 2 for batch in batches)
            seen.update(number for batch in batches for number in numbers_of(batch))
            lengths.add(len(batches))
        assert len(lengths) == 1
        assert seen == Counter(range(num_samples))

    @pytest.mark.parametrize("world_size", [1, 2, 3, 8])
    def test_drop_makes_ranks_equal_and_no_sample_comes_twice(self, world_size: int) -> None:
        seen: Counter[int] = Counter()
        for rank in range(world_size):
            dataset = numbers(world=World(rank, world_size))
            loader = DataLoader(dataset, 4, remainder="drop", num_workers=0)
            batches = batches_of(loader)
            assert len(batches) == len(loader) == 101 // (4 * world_size)
            seen.update(number for batch in batches for number in batch)
        assert set(seen.values()) == {1}

    @pytest.mark.parametrize("world_size", [1, 2, 3, 8])
    def test_keep_gives_each_sample_once_and_counts_right(self, world_size: int) -> None:
        seen: Counter[int] = Counter()
        for rank in range(world_size):
            dataset = numbers(world=World(rank, world_size))
            loader = DataLoader(dataset, 4, remainder="keep", num_workers=2)
            batches = batches_of(loader)
            assert len(batches) == len(loader)
            seen.update(number for batch in batches for number in batch)
        assert seen == Counter(range(101))

    def test_fewer_samples_than_a_batch_dropped_give_empty_epochs_and_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        loader = DataLoader(numbers(3), 4, remainder="drop")
        assert "every epoch is empty" in caplog.text
        assert [batches_of(loader) for _ in range(3)] == [[], [], []]
        assert loader.state_dict()["position"] == 3
        assert loader.state_dict()["epoch"] == 2


class TestWorld:
    @settings(max_examples=25, deadline=None)
    @given(
        num_samples=st.integers(1, 120),
        size=st.integers(6, 20),
        worlds=st.lists(st.integers(1, 6), min_size=2, max_size=3),
        mode=st.sampled_from(MODES),
    )
    def test_global_batches_are_the_same_sets_on_any_number_of_ranks(
        self, num_samples: int, size: int, worlds: list[int], mode: Any
    ) -> None:
        def global_batches(world_size: int) -> list[Counter[int]]:
            found: list[Counter[int]] = []
            for rank in range(world_size):
                dataset = numbers(num_samples, shuffle=mode, world=World(rank, world_size))
                loader = DataLoader(dataset, global_batch_size=size, num_workers=0)
                for number, batch in enumerate(batches_of(loader)):
                    if number == len(found):
                        found.append(Counter())
                    found[number].update(batch)
            return found

        assert len({str(sorted(map(sorted, map(dict, global_batches(w))))) for w in worlds}) == 1

    def test_ranks_of_a_model_parallel_group_see_the_same_batches(self) -> None:
        groups = [World(rank=0, world_size=2), World(rank=0, world_size=2)]
        first, second = (batches_of(DataLoader(numbers(world=world), 4)) for world in groups)
        assert first == second

    def test_nodes_that_can_not_own_lanes_are_told_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        dataset = numbers(world=World(0, 2, 0, 2))
        for _ in range(2):
            list(DataLoader(dataset, global_batch_size=3, num_workers=0))
        assert "some shards are fetched by several" in caplog.text


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size=0 must be at least 1"),
            ({"batch_size": None}, "iterate over the data set itself"),
            ({"batch_size": 4.5}, "batch_size=4.5 must be an integer"),
            ({"global_batch_size": "8"}, "global_batch_size='8' must be an integer"),
            ({"num_workers": "2"}, "num_workers='2' must be an integer"),
            ({"batch_size": 2, "global_batch_size": 4}, "two ways to say one thing"),
            ({"workers": "goblins"}, "'goblins' is not one of 'threads', 'processes'"),
            ({"num_workers": -1}, "num_workers=-1"),
            ({"prefetch_factor": 0}, "prefetch_factor=0"),
            ({"multiprocessing_context": "spoon"}, "'spoon' is not one of"),
            ({"remainder": "eat"}, "'eat' is not one of"),
        ],
    )
    def test_a_wrong_argument_is_refused_when_the_loader_is_made(
        self, options: Any, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            DataLoader(numbers(), **options)

    def test_integers_of_numpy_do_and_leave_a_state_of_plain_values(self) -> None:
        loader = DataLoader(numbers(), np.int64(8), num_workers=np.int64(0))
        next(iter(loader))
        assert json.loads(json.dumps(loader.state_dict()))["global_batch_size"] == 8

    def test_a_multiprocessing_context_does_as_its_name_does(self) -> None:
        context = multiprocessing.get_context("spawn")
        with DataLoader(
            numbers(), 8, num_workers=1, workers="processes", multiprocessing_context=context
        ) as loader:
            assert loader.multiprocessing_context == "spawn"
            assert len(batches_of(loader)) == len(loader)

    def test_another_kind_of_data_set_is_refused_with_what_to_use(self) -> None:
        with pytest.raises(ConfigError, match=r"use torch\.utils\.data\.DataLoader"):
            DataLoader([1, 2, 3])  # type: ignore[arg-type]

    def test_a_global_batch_smaller_than_the_world_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="make it at least the world size"):
            DataLoader(numbers(world=World(0, 4)), global_batch_size=3)

    def test_a_mixture_is_a_data_set_too(self) -> None:
        assert len(DataLoader(Mix([numbers(8), numbers(8, name="more")]), 4)) == 4

    def test_the_default_is_a_batch_of_one_by_as_many_threads_as_cores(self) -> None:
        loader = DataLoader(numbers())
        assert (loader.batch_size, loader.workers) == (1, "threads")
        assert loader.num_workers == len(os.sched_getaffinity(0))
        shared = numbers(world=World(5, 4_000))
        cores = os.cpu_count() or 1
        assert DataLoader(shared).num_workers == max(1, cores // 8)
        alone = numbers(world=World(1, 2, 1, 2))
        assert DataLoader(alone).num_workers == len(os.sched_getaffinity(0))


def test_the_look_ahead_is_told_the_whole_epoch_and_closed_with_the_loader() -> None:
    dataset = numbers()
    source: Any = dataset.stream.source
    loader = DataLoader(dataset, 8, num_workers=0, remainder="keep")
    running = iter(loader)
    next(running)
    assert source.num_ahead == [NUM_SAMPLES]
    loader.close()
    assert source.num_ahead == []
    del running


class TestHabits:
    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"shuffle": True}, "shuffle= belongs to the data set"),
            ({"sampler": [1, 2]}, "weights= say what comes"),
            ({"batch_sampler": [[1, 2]]}, "batch_size= say what comes"),
            ({"drop_last": True}, 'use remainder="drop"'),
            ({"timeout": 30}, "deadlines"),
            ({"generator": object()}, "seed= says all"),
            ({"in_order": False}, "canonical order always"),
            ({"num_wrokers": 2}, "num_wrokers=2 is no argument of DataLoader"),
        ],
    )
    def test_what_torchs_loader_takes_and_this_one_does_not_is_refused_with_the_remedy(
        self, option: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            DataLoader(numbers(), 4, **option)

    def test_torchs_defaults_do_no_harm(self) -> None:
        defaults = {"sampler": None, "drop_last": False, "timeout": 0, "generator": None}
        loader = DataLoader(
            numbers(8),
            4,
            num_workers=0,
            prefetch_factor=None,
            multiprocessing_context=None,
            **defaults,
        )
        assert len(list(loader)) == 2
