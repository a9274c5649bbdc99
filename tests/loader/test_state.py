"""States: exact after every batch, on any world, number and kind of workers, batch size."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import DataLoader, Mix
from shardkit.dataset import SampleDataset
from shardkit.errors import ShardkitError, StateError
from shardkit.world import World
from tests.loader.numbers import batches_of, numbers, numbers_of

MODES = ("none", "shard", "buffer", "global")
NUM_SAMPLES = 101


def drop_and_multiply(sample: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(sample) for _ in range(sample["number"] % 3)]


def resumed(state: dict[str, Any], dataset: SampleDataset, **options: Any) -> DataLoader:
    loader = DataLoader(dataset, **options)
    loader.load_state_dict(json.loads(json.dumps(state)))
    return loader


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("remainder", ["pad", "drop", "keep"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_restored_after_every_batch_a_fresh_loader_gives_the_rest_and_the_next_epoch(
    mode: Any, remainder: Any, num_workers: int
) -> None:
    def make() -> DataLoader:
        options = {"remainder": remainder, "num_workers": num_workers}
        return DataLoader(numbers(shuffle=mode), 8, **options)

    with make() as loader:
        states, batches = [loader.state_dict()], []
        for batch in loader:
            batches.append(list(map(int, batch["number"])))
            states.append(loader.state_dict())
        after = batches_of(loader)
    for done, state in enumerate(states):
        with make() as fresh:
            fresh.load_state_dict(json.loads(json.dumps(state)))
            if done < len(batches):
                assert batches_of(fresh) == batches[done:]
            assert batches_of(fresh) == after


def test_restored_in_processes_it_gives_the_rest() -> None:
    with DataLoader(numbers(), 8, num_workers=2, workers="processes") as loader:
        running = iter(loader)
        for _ in range(5):
            next(running)
        state = loader.state_dict()
        rest = [list(map(int, batch["number"])) for batch in running]
        loader.load_state_dict(state)
        assert batches_of(loader) == rest
    assert state["position"] == 40


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[int, int, str, int]]:
    """Legs of a run: world size, threads, batches till the next save."""
    leg = st.tuples(st.integers(1, 5), st.integers(0, 2), st.integers(0, 4))
    return draw(st.lists(leg, min_size=1, max_size=5))


class TestElastic:
    @settings(max_examples=30, deadline=None)
    @given(legs=runs(), mode=st.sampled_from(MODES), size=st.integers(5, 12))
    def test_with_equal_global_batches_any_worlds_in_a_row_give_the_uninterrupted_sets(
        self, legs: Any, mode: Any, size: int
    ) -> None:
        whole = [
            sorted(batch)
            for batch in batches_of(DataLoader(numbers(shuffle=mode), size, num_workers=0))
        ]
        found: list[list[int]] = []
        state: dict[str, Any] | None = None
        for world_size, num_workers, num_batches in [*legs, (1, 0, 1_000)]:
            parts: list[list[list[int]]] = []
            states = []
            for rank in range(world_size):
                dataset = numbers(shuffle=mode, world=World(rank, world_size))
                with DataLoader(dataset, global_batch_size=size, num_workers=num_workers) as loader:
                    if state is not None:
                        loader.load_state_dict(state)
                    running = iter(loader)
                    left = min(num_batches, len(whole) - len(found))
                    parts.append([list(map(int, next(running)["number"])) for _ in range(left)])
                    states.append(loader.state_dict())
            assert all(one == states[0] for one in states)
            state = states[0]
            found += [sorted(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
            if len(found) == len(whole):
                break
        assert found == whole

    @settings(max_examples=30, deadline=None)
    @given(
        legs=st.lists(
            st.tuples(st.integers(1, 5), st.integers(0, 2), st.integers(0, 4), st.integers(1, 6)),
            max_size=5,
        ),
        mode=st.sampled_from(MODES),
    )
    def test_with_other_batch_sizes_nothing_is_lost_or_repeated(self, legs: Any, mode: Any) -> None:
        seen: Counter[int] = Counter()
        state: dict[str, Any] | None = None
        for world_size, num_workers, num_batches, batch_size in [*legs, (2, 0, 1_000, 3)]:
            for rank in range(world_size):
                dataset = numbers(shuffle=mode, world=World(rank, world_size))
                with DataLoader(dataset, batch_size, num_workers=num_workers) as loader:
                    if state is not None:
                        loader.load_state_dict(state)
                    running = iter(loader)
                    for _ in range(num_batches):
                        batch = next(running, None)
                        if batch is None:
                            break
                        seen.update(numbers_of(batch))
                    after = loader.state_dict()
            state = after
            if state["position"] == NUM_SAMPLES:
                break
        assert seen == Counter(range(NUM_SAMPLES))

    @pytest.mark.parametrize("kind", ["threads", "processes"])
    def test_with_skipped_dropped_and_multiplied_samples(self, kind: Any) -> None:
        bad = {3, 50, 51, 99}
        options = {"bad": tuple(bad), "on_error": "skip", "transforms": [drop_and_multiply]}
        expected = Counter({n: n % 3 for n in range(NUM_SAMPLES) if n not in bad and n % 3})
        seen: Counter[int] = Counter()
        state: dict[str, Any] | None = None
        for world_size, num_batches in [(2, 2), (3, 1), (1, 100)]:
            lengths = set()
            for rank in range(world_size):
                dataset = numbers(world=World(rank, world_size), **options)  # type: ignore[arg-type]
                loader = DataLoader(dataset, global_batch_size=18, workers=kind, num_workers=1)
                with loader:
                    if state is not None:
                        loader.load_state_dict(state)
                    taken = [b for _, b in zip(range(num_batches), loader, strict=False)]
                    lengths.add(len(taken))
                    seen.update(number for batch in taken for number in numbers_of(batch))
                    after = loader.state_dict()
            assert len(lengths) == 1
            state = after
        assert seen == expected


class TestWhere:
    def test_a_state_is_the_same_plain_json_on_every_rank(self) -> None:
        states = []
        for rank in range(3):
            loader = DataLoader(numbers(world=World(rank, 3)), 4, num_workers=2)
            running = iter(loader)
            next(running)
            states.append(loader.state_dict())
            loader.close()
        assert states[0] == states[1] == states[2] == json.loads(json.dumps(states[0]))
        assert states[0]["position"] == 12
        assert states[0]["world_size"] == 3

    def test_batches_made_ahead_do_not_count(self) -> None:
        with DataLoader(numbers(), 2, num_workers=2, prefetch_factor=8) as loader:
            running = iter(loader)
            assert loader.state_dict()["position"] == 0
            next(running)
            assert loader.state_dict()["position"] == 2

    @pytest.mark.parametrize("remainder", ["pad", "drop", "keep"])
    def test_at_the_end_of_an_epoch_the_state_stands_there(self, remainder: Any) -> None:
        loader = DataLoader(numbers(), 8, num_workers=0, remainder=remainder)
        batches_of(loader)
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, NUM_SAMPLES)

    def test_less_than_a_batch_left_to_drop_begins_the_next_epoch(self) -> None:
        loader = DataLoader(numbers(), 10, num_workers=0, remainder="drop")
        running = iter(loader)
        for _ in range(9):
            next(running)
        fresh = resumed(
            loader.state_dict(), numbers(), batch_size=20, num_workers=0, remainder="drop"
        )
        assert len(batches_of(fresh)) == 5
        assert fresh.state_dict()["epoch"] == 1

    def test_the_data_sets_state_is_the_loaders(self) -> None:
        dataset = numbers()
        loader = DataLoader(dataset, 8, num_workers=0)
        running = iter(loader)
        next(running)
        rest = [int(sample["number"]) for sample in _continued(dataset)]
        assert sorted(rest) == sorted(n for batch in running for n in numbers_of(batch))

    @pytest.mark.parametrize("kind", ["data set", "mixture"])
    def test_another_loop_over_the_same_data_does_not_change_a_loaders_state(
        self, kind: str
    ) -> None:
        """A validation loader, a second training loop, or a look at the first sample."""
        data: Any = numbers() if kind == "data set" else Mix([numbers()])
        fresh: Any = numbers() if kind == "data set" else Mix([numbers()])
        with DataLoader(data, 8, num_workers=2) as loader, DataLoader(data, 10) as other:
            running = iter(loader)
            next(running)
            state = loader.state_dict()
            for _ in other:
                pass
            next(iter(data))
            assert loader.state_dict() == state
            rest = [list(map(int, batch["number"])) for batch in running]
        assert batches_of(resumed(state, fresh, batch_size=8)) == rest

    def test_set_epoch_before_a_restored_epoch_keeps_its_place(self) -> None:
        loader = DataLoader(numbers(), 8, num_workers=2)
        running = iter(loader)
        next(running)
        state = loader.state_dict()
        rest = [list(map(int, batch["number"])) for batch in running]
        fresh = resumed(state, numbers(), batch_size=8)
        fresh.set_epoch(0)
        assert batches_of(fresh) == rest
        fresh.set_epoch(0)
        assert len(batches_of(fresh)) == len(fresh)

    def test_set_epoch_repeats_an_epoch(self) -> None:
        with DataLoader(numbers(), 8) as loader:
            epochs = [batches_of(loader) for _ in range(3)]
            loader.set_epoch(1)
            assert batches_of(loader) == epochs[1]
            assert batches_of(loader) == epochs[2]

    def test_a_loop_that_was_left_goes_on_with_the_next_epoch(self) -> None:
        with DataLoader(numbers(), 8) as loader:
            epochs = [batches_of(loader) for _ in range(2)]
            loader.set_epoch(0)
            for _ in loader:
                break
            assert batches_of(loader) == epochs[1]


class TestRefusals:
    @pytest.mark.parametrize("state", [None, 3, "state", [1]])
    def test_what_is_no_state_is_refused(self, state: Any) -> None:
        for dataset in numbers(), Mix([numbers()]):
            with pytest.raises(StateError, match=f"a mapping, not a {type(state).__name__}"):
                DataLoader(dataset, 8).load_state_dict(state)

    def test_a_state_of_other_data_is_refused_and_changes_nothing(self) -> None:
        loader = DataLoader(numbers(), 8, num_workers=0)
        running = iter(loader)
        next(running)
        state = loader.state_dict()
        with pytest.raises(StateError, match="open the data set that it was saved on"):
            loader.load_state_dict(DataLoader(numbers(102), 8).state_dict())
        assert loader.state_dict() == state
        assert len(list(running)) == len(loader) - 1

    def test_a_state_of_another_shuffle_is_refused(self) -> None:
        state = DataLoader(numbers(shuffle="global"), 8).state_dict()
        with pytest.raises(StateError, match="use the same one to continue within its order"):
            DataLoader(numbers(), 8).load_state_dict(state)

    def test_another_seed_and_buffer_size_are_taken_from_the_state(self) -> None:
        loader = DataLoader(numbers(seed=4, buffer_size=50), 8, num_workers=0)
        running = iter(loader)
        next(running)
        fresh = resumed(loader.state_dict(), numbers(seed=1), batch_size=8, num_workers=0)
        assert batches_of(fresh) == [list(map(int, batch["number"])) for batch in running]

    def test_a_second_iteration_ends_the_first_with_a_clear_error(self) -> None:
        with DataLoader(numbers(), 8) as loader:
            first, second = iter(loader), iter(loader)
            next(first)
            next(second)
            with pytest.raises(ShardkitError, match="one iteration at a time"):
                next(first)
            next(second)


def _continued(dataset: SampleDataset) -> SampleDataset:
    fresh = numbers()
    fresh.load_state_dict(dataset.state_dict())
    return fresh
