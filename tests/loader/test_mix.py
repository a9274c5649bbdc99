"""Mixtures: weights met, exact states on any world, streams that come and go."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import DataLoader, Mix, ShardDataset, Stream, StreamingDataset
from shardkit.errors import ConfigError, StateError
from shardkit.world import World
from tests.dataset.photos import Packed
from tests.loader.numbers import numbers, numbers_of

WORLD = World()


def mix_of(*, world: World = WORLD, c: bool = False, weights: Any = None, **options: Any) -> Mix:
    """Three streams, of 60, 40 and 20 numbers."""
    names = {"a": 60, "b": 40} | ({"c": 20} if c else {})
    weights = weights or {"a": 0.6, "b": 0.4, "c": 0.2}
    streams = {
        name: (numbers(size, name=name, world=world), weights[name]) for name, size in names.items()
    }
    return Mix(streams, **options)


def named(batch: Any) -> list[tuple[str, int]]:
    """Stream and number of each sample that is no pad."""
    names = batch["__stream__"]
    if isinstance(names, str):
        names = [names] * len(batch["number"])
    pads = batch.get("__pad__", [False] * len(names))
    rows = zip(names, batch["number"].tolist(), pads, strict=True)
    return [(name, number) for name, number, pad in rows if not pad]


def tuple_of(samples: Any) -> tuple[int, ...]:
    return tuple(sample["number"] for sample in samples)


def epoch_of(loader: Any) -> list[list[tuple[str, int]]]:
    return [named(batch) for batch in loader]


class TestWeights:
    def test_sixty_forty_is_met_and_close_in_every_prefix(self) -> None:
        mix = Mix(
            {"a": (numbers(700, name="a"), 0.6), "b": (numbers(500, name="b"), 0.4)}, ends="never"
        )
        loader = DataLoader(mix, 1, num_workers=2)
        counts: Counter[str] = Counter()
        for step, batch in enumerate(itertools.islice(loader, 1_000)):
            counts.update(name for name, _ in named(batch))
            assert abs(counts["a"] - 0.6 * (step + 1)) <= 1
        assert abs(counts["a"] - 600) <= 1
        loader.close()

    def test_a_batch_mixes_by_weight_and_has_names_and_keys(self) -> None:
        loader = DataLoader(mix_of(), 10, num_workers=0)
        for batch in loader:
            assert Counter(batch["__stream__"]) == {"a": 6, "b": 4}
            assert batch["number"].shape == (10,)
        assert len(loader) == 10

    def test_by_batch_each_global_batch_is_of_one_stream(self) -> None:
        batches = {}
        for rank in range(2):
            loader = DataLoader(mix_of(by="batch", world=World(rank, 2)), 4, num_workers=1)
            batches[rank] = list(loader)
            loader.close()
        names = [batch["__stream__"] for batch in batches[0]]
        assert names == [batch["__stream__"] for batch in batches[1]]
        assert set(names) == {"a", "b"}

    def test_by_batch_streams_have_batch_sizes_and_accumulation_rounds(self) -> None:
        mix = Mix(
            {
                "a": Stream(numbers(60, name="a"), 0.5),
                "b": Stream(numbers(40, name="b"), 0.5, batch_size=2, num_accumulation=3),
            },
            by="batch",
            schedule="consecutive",
        )
        loader = DataLoader(mix, 8, num_workers=2)
        found = [
            (batch["__stream__"], len(batch["number"]), batch["__rounds_left__"])
            for batch in itertools.islice(loader, 8)
        ]
        turn = [("a", 8, 0), ("b", 2, 2), ("b", 2, 1), ("b", 2, 0)]
        assert found == turn * 2
        loader.close()

    def test_by_rank_each_draws_its_own_and_no_sample_comes_twice(self) -> None:
        seen: Counter[tuple[str, int]] = Counter()
        names = []
        for rank in range(3):
            loader = DataLoader(mix_of(by="rank", world=World(rank, 3)), 4, num_workers=1)
            batches = list(loader)
            names.append([batch["__stream__"] for batch in batches])
            seen.update(itertools.chain(*map(named, batches)))
            loader.close()
        assert len({len(one) for one in names}) == 1
        assert names[0] != names[1]
        assert max(seen.values()) == 1

    @pytest.mark.parametrize(
        ("ends", "num_batches", "times"), [("first", 10, {1}), ("all", 10, {1})]
    )
    def test_an_epoch_ends_with_the_first_stream_or_when_all_have_run_out(
        self, ends: Any, num_batches: int, times: set[int]
    ) -> None:
        loader = DataLoader(mix_of(ends=ends), 10, num_workers=0)
        batches = epoch_of(loader)
        assert len(batches) == len(loader) == num_batches
        assert set(Counter(itertools.chain(*batches)).values()) == times

    def test_a_stream_that_repeats_does_so_in_a_new_order(self) -> None:
        mix = mix_of(c=True, weights={"a": 0.6, "b": 0.4, "c": 1.0}, ends="all")
        order = [n for batch in epoch_of(DataLoader(mix, 10, num_workers=0)) for n in batch]
        of_c = [number for name, number in order if name == "c"]
        assert len(of_c) >= 60
        assert sorted(of_c[:20]) == sorted(of_c[20:40]) == list(range(20))
        assert of_c[:20] != of_c[20:40]

    def test_once_gives_every_sample_of_every_stream_once_and_marks_pads(self) -> None:
        loader = DataLoader(mix_of(c=True, ends="once"), 7, num_workers=2)
        for _ in range(2):
            batches = list(loader)
            assert {len(batch["number"]) for batch in batches} == {7}
            assert len(batches) == len(loader) == 18
            seen = Counter(itertools.chain(*map(named, batches)))
            assert len(seen) == 120
            assert set(seen.values()) == {1}
        loader.close()

    def test_groups_of_streams_are_drawn_together_and_may_be_collated_in_their_own_way(
        self,
    ) -> None:
        def make(rank: int) -> Mix:
            world = World(rank, 2)
            return Mix(
                {
                    "a": Stream(numbers(60, name="a", world=world), group="x"),
                    "b": Stream(numbers(60, name="b", world=world), group="x"),
                    "c": Stream(
                        numbers(60, name="c", world=world), 2, group="y", collate_fn=tuple_of
                    ),
                },
                by="rank",
            )

        ranks = []
        for rank in range(2):
            with DataLoader(make(rank), 4, num_workers=2) as loader:
                ranks.append(list(loader))
        names = {
            tuple("c" if isinstance(one, tuple) else one["__stream__"] for one in step)
            for step in zip(*ranks, strict=True)
        }
        assert names == {("a", "b"), ("b", "a"), ("c", "c")}

    def test_a_streams_global_batch_size_holds_on_any_number_of_ranks(self) -> None:
        def sets_of(world_size: int) -> list[list[tuple[str, int]]]:
            ranks = []
            for rank in range(world_size):
                world = World(rank, world_size)
                streams = {
                    "a": Stream(numbers(60, name="a", world=world), global_batch_size=12),
                    "b": Stream(numbers(60, name="b", world=world)),
                }
                loader = DataLoader(Mix(streams, by="batch"), global_batch_size=6, num_workers=0)
                ranks.append(epoch_of(loader))
            return [sorted(itertools.chain(*step)) for step in zip(*ranks, strict=True)]

        assert sets_of(1) == sets_of(2) == sets_of(3)
        assert {len(batch) for batch in sets_of(1)} == {6, 12}

    def test_a_weight_of_nothing_leaves_a_stream_out(self) -> None:
        mix = Mix({"a": (numbers(9), 1), "b": (numbers(9, name="b"), 0)})
        assert list(mix.streams) == ["a"]
        assert list(Mix([numbers(9), numbers(9, name="b")], [0, 2]).streams) == ["1"]

    def test_never_ending_has_no_length(self) -> None:
        with pytest.raises(TypeError, match="has no length"):
            len(DataLoader(mix_of(ends="never"), 4))

    def test_epochs_go_on_where_streams_are(self) -> None:
        loader = DataLoader(mix_of(weights={"a": 0.5, "b": 0.5}), 10, num_workers=2)
        first, second = epoch_of(loader), epoch_of(loader)
        seen = Counter(n for n in itertools.chain(*first, *second) if n[0] == "a")
        assert sum(seen.values()) == 80
        assert set(seen.values()) == {1, 2}  # 60 once, then 20 again
        loader.close()


@pytest.mark.parametrize("by", ["sample", "batch"])
@pytest.mark.parametrize("kind", [("threads", 0), ("threads", 2), ("processes", 2)])
def test_the_order_does_not_depend_on_workers(by: Any, kind: tuple[Any, int]) -> None:
    def two_epochs(workers: Any, num_workers: int) -> list[Any]:
        with DataLoader(mix_of(by=by), 6, workers=workers, num_workers=num_workers) as loader:
            return [epoch_of(loader) for _ in range(2)]

    assert two_epochs(*kind) == two_epochs("threads", 0)


class TestState:
    @pytest.mark.parametrize("by", ["sample", "batch", "rank"])
    @pytest.mark.parametrize("ends", ["first", "all"])
    def test_restored_after_every_batch_it_gives_the_rest_and_the_next_epoch(
        self, by: Any, ends: Any
    ) -> None:
        def make() -> DataLoader:
            return DataLoader(mix_of(by=by, ends=ends, c=True), 6, num_workers=0)

        loader = make()
        states, batches = [loader.state_dict()], []
        for batch in loader:
            batches.append(named(batch))
            states.append(loader.state_dict())
        after = epoch_of(loader)
        for done, state in enumerate(states):
            fresh = make()
            fresh.load_state_dict(json.loads(json.dumps(state)))
            if done < len(batches):
                assert epoch_of(fresh) == batches[done:]
            assert epoch_of(fresh) == after

    @settings(max_examples=10, deadline=None)
    @given(
        legs=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4),
        by=st.sampled_from(["sample", "batch"]),
        schedule=st.sampled_from(["balanced", "random", "random_order"]),
    )
    def test_any_worlds_in_a_row_give_the_uninterrupted_sets(
        self, legs: Any, by: Any, schedule: Any
    ) -> None:
        def leg(world_size: int, state: Any, num_batches: int) -> tuple[list[Any], Any]:
            parts, states = [], []
            for rank in range(world_size):
                mix = mix_of(world=World(rank, world_size), by=by, schedule=schedule, ends="never")
                loader = DataLoader(mix, global_batch_size=12, num_workers=0)
                if state is not None:
                    loader.load_state_dict(state)
                parts.append(epoch_of(itertools.islice(iter(loader), num_batches)))
                states.append(loader.state_dict())
            assert all({**s, "mix": 0} == {**states[0], "mix": 0} for s in states)
            whole = [sorted(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
            return whole, json.loads(json.dumps(states[0]))

        found, state = [], None
        for world_size, num_batches in legs:
            batches, state = leg(world_size, state, num_batches)
            found += batches
        assert found == leg(1, None, len(found))[0]

    def test_by_rank_refuses_another_world(self) -> None:
        loader = DataLoader(mix_of(by="rank", world=World(0, 2)), 4, num_workers=0)
        next(iter(loader))
        with pytest.raises(StateError, match="resume on as many"):
            mix_of(by="rank", world=World(0, 3)).load_state_dict(loader.state_dict())

    def test_streams_may_be_added_removed_and_re_weighted(self) -> None:
        loader = DataLoader(mix_of(ends="never"), 10, num_workers=0)
        before = [n for batch in itertools.islice(loader, 5) for n in named(batch)]
        changed = mix_of(c=True, ends="never", weights={"a": 0.2, "b": 0.2, "c": 0.6})
        changed.load_state_dict(loader.state_dict())
        fresh = DataLoader(changed, 10, num_workers=0)
        batches = [named(batch) for batch in itertools.islice(fresh, 6)]
        for batch in batches:
            assert Counter(name for name, _ in batch) == {"a": 2, "b": 2, "c": 6}
        of_a = [n for n in [*before, *itertools.chain(*batches)] if n[0] == "a"]
        assert len(of_a) == len(set(of_a)) == 42  # a goes on where it was
        alone = Mix({"b": numbers(40, name="b")})
        alone.load_state_dict(loader.state_dict())
        rest = [n for batch in epoch_of(DataLoader(alone, 5, num_workers=0)) for n in batch]
        of_b = {n for n in before if n[0] == "b"}
        assert not of_b & set(rest[:20])

    def test_a_stream_of_that_name_with_other_data_is_refused_and_changes_nothing(self) -> None:
        state = DataLoader(mix_of(), 4).state_dict()
        other = Mix({"a": numbers(60, name="a"), "b": numbers(41, name="b")})
        with pytest.raises(StateError, match="stream 'b': the state is of data set"):
            other.load_state_dict(state)
        assert other.state_dict()["streams"]["a"]["position"] == 0

    def test_a_data_sets_state_is_no_mixtures(self) -> None:
        with pytest.raises(StateError, match="not a state of a mixture"):
            mix_of().load_state_dict(numbers().state_dict())

    def test_set_epoch_takes_the_next_and_the_first_only(self) -> None:
        mix = mix_of()
        loader = DataLoader(mix, 10, num_workers=0)
        epochs = []
        for epoch in range(3):
            loader.set_epoch(epoch)
            epochs.append(epoch_of(loader))
        with pytest.raises(ConfigError, match="load a state instead"):
            loader.set_epoch(7)
        loader.set_epoch(0)
        assert epoch_of(loader) == epochs[0]


class TestBare:
    def test_iteration_gives_samples_with_their_streams_names(self) -> None:
        found = [(sample["__stream__"], sample["number"]) for sample in mix_of()]
        assert Counter(name for name, _ in found) == {"a": 60, "b": 40}
        assert len(set(found)) == 100

    def test_restored_at_every_sample_it_gives_the_rest(self) -> None:
        mix = mix_of(by="batch", schedule="random")
        states, found = [mix.state_dict()], []
        for sample in mix:
            found.append((sample["__stream__"], sample["number"]))
            states.append(mix.state_dict())
        for done in range(0, len(found), 7):
            fresh = mix_of(by="batch", schedule="random")
            fresh.load_state_dict(states[done])
            rest = [(sample["__stream__"], sample["number"]) for sample in fresh]
            assert rest == found[done:]

    def test_a_data_sets_policy_for_failures_holds(self) -> None:
        mix = Mix([numbers(20, bad=[3], on_error="skip"), numbers(20, name="more")])
        assert len(list(mix)) == 39
        assert mix.streams["0"].dataset.failures.count == 1
        loader = DataLoader(mix, 4, num_workers=0)
        list(loader)
        assert mix.streams["0"].dataset.failures.count == 2

    def test_a_copy_goes_on_from_the_start(self) -> None:
        mix = mix_of()
        expected = [sample["number"] for sample in mix_of()]
        assert [sample["number"] for sample in pickle.loads(pickle.dumps(mix))] == expected


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_ranks_agree_where_the_next_epoch_begins_if_the_last_batch_is_not_for_all(
    num_workers: int | None,
) -> None:
    """87 samples by two ranks: one by one (None), or in global batches of 86."""
    epochs = [Counter[tuple[str, int]]() for _ in range(3)]
    for rank in range(2):
        world = World(rank, 2)
        streams = {
            "a": (numbers(37, name="a", world=world), 0.6),
            "b": (numbers(50, name="b", world=world), 0.4),
        }
        mix = Mix(streams, ends="once")
        for epoch in epochs:
            if num_workers is None:
                epoch.update((sample["__stream__"], sample["number"]) for sample in mix)
                continue
            with DataLoader(mix, 43, num_workers=num_workers, remainder="keep") as loader:
                for batch in loader:
                    epoch.update(zip(batch["__stream__"], map(int, batch["number"]), strict=True))
    for epoch in epochs:
        assert len(epoch) == epoch.total() == 87


@pytest.mark.parametrize("by", ["batch", "rank"])
def test_a_rank_for_which_a_short_batch_holds_nothing_goes_on_with_the_next(by: Any) -> None:
    """Streams of 9 and 5 samples, in batches of two by each of two ranks."""
    seen = Counter[tuple[str, int]]()
    for rank in range(2):
        world = World(rank, 2)
        streams = [numbers(9, name="a", world=world), numbers(5, name="b", world=world)]
        mix = Mix(streams, by=by, ends="all", ranks_per_draw=2 if by == "rank" else 1)
        with DataLoader(mix, 2, num_workers=0, remainder="keep") as loader:
            for batch in loader:
                seen.update((batch["__stream__"], number) for number in numbers_of(batch))
    assert {count for (name, _), count in seen.items() if name == "0"} == {1}
    assert len(seen) == 14


class TestArguments:
    def test_weights_by_name_or_in_order(self) -> None:
        streams = [numbers(10), numbers(10, name="more")]
        assert [s.weight for s in Mix(streams, [1, 3]).streams.values()] == [1, 3]
        by_name = Mix({"a": streams[0], "b": streams[1]}, {"b": 3, "a": 1})
        assert [s.weight for s in by_name.streams.values()] == [1, 3]

    @pytest.mark.parametrize(
        ("streams", "weights", "message"),
        [
            ({}, None, "at least one data set"),
            ([1], None, "give a data set"),
            ([numbers(9)], [1, 2], "one for each of"),
            ([numbers(9)], {"a": 1}, "one for each of"),
            ({"a": (numbers(9), 2.0)}, [1], "given twice"),
            ([(numbers(9), 0)], None, "of a weight above 0"),
            ([(numbers(9), -1.0)], None, "positive"),
            (numbers(9), None, "streams is a SampleDataset: give data sets by name"),
            ([numbers(9), numbers(9, world=World(0, 2))], None, "different worlds"),
        ],
    )
    def test_wrong_streams_are_refused(self, streams: Any, weights: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Mix(streams, weights)

    def test_a_stream_has_one_batch_size_and_a_collate_of_its_own_only_in_batches_of_its_own(
        self,
    ) -> None:
        with pytest.raises(ConfigError, match="two ways to say one thing"):
            Stream(numbers(9), batch_size=2, global_batch_size=4)
        with pytest.raises(ConfigError, match='needs by="batch" or by="rank"'):
            Mix({"a": Stream(numbers(9), collate_fn=tuple_of)})
        with pytest.raises(ConfigError, match='a batch size of a stream needs by="batch"'):
            Mix({"a": Stream(numbers(9), batch_size=2)})

    def test_the_look_ahead_of_each_stream_gets_its_own_places(self) -> None:
        mix = mix_of()
        sources: list[Any] = [stream.dataset.stream.source for stream in mix.streams.values()]
        with DataLoader(mix, 10, num_workers=0) as loader:
            running = iter(loader)
            next(running)
            assert [source.num_ahead for source in sources] == [[60], [40]]


def test_packed_shards_and_raw_files_mix_and_resume(packed: Packed) -> None:
    def make() -> DataLoader:
        mix = Mix(
            {
                "packed": (ShardDataset(packed.url, members=["cls"]), 1),
                "raw": (StreamingDataset(packed.index, columns_to_load=["cls_path"]), 1),
            }
        )
        return DataLoader(mix, 10, num_workers=2)

    with make() as loader:
        running = iter(loader)
        first = [batch["__key__"] for _, batch in zip(range(7), running, strict=False)]
        state = json.loads(json.dumps(loader.state_dict()))
        rest = [batch["__key__"] for batch in running]
    assert len(first) + len(rest) == 20
    with make() as fresh:
        fresh.load_state_dict(state)
        assert [batch["__key__"] for batch in fresh] == rest
