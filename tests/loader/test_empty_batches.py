"""Batches of which nothing is left: one rank goes on without them, several stay equal."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardkit import DataLoader, Mix, ShardDataset, Stream, StreamingDataset
from shardkit.dataset import SampleDataset
from shardkit.errors import NotFoundError, ShardkitError
from shardkit.world import World
from tests.dataset.photos import NUM_SAMPLES, Packed
from tests.loader.numbers import batches_of, numbers, numbers_of
from tests.s3 import serve_s3
from tests.streaming.build import make_photos

KINDS = [("threads", 0), ("threads", 2), ("processes", 2)]
STRETCHES = [range(21), range(42, 70), range(84, NUM_SAMPLES)]
"""Samples of whole shards: at the start, in the middle, at the end of an epoch."""


def drop_odd(sample: dict[str, Any]) -> dict[str, Any] | None:
    return None if sample["number"] % 2 else sample


def drop_late(sample: dict[str, Any]) -> dict[str, Any] | None:
    return None if sample["number"] >= 40 else sample


def double(sample: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(sample), dict(sample)]


def open_packed(packed: Packed, folder: Path, lost: range, **options: Any) -> ShardDataset:
    """The photos, without the shards of the ``lost`` samples."""
    if not folder.exists():
        shutil.copytree(packed.url, folder)
    for shard in {number // 7 for number in lost}:
        (folder / f"shard-{shard:06d}.tar").unlink(missing_ok=True)
    options = {"shuffle": "none", "decode": None, "members": ["cls"], **options}
    return ShardDataset(str(folder), **options)


def keys_of(loader: Any) -> list[list[str]]:
    return [list(batch["__key__"]) for batch in loader]


@pytest.mark.parametrize("on_error", ["skip", "replace"])
@pytest.mark.parametrize(("kind", "num_workers"), KINDS)
class TestOneRank:
    @pytest.mark.parametrize("lost", STRETCHES)
    def test_samples_behind_a_lost_stretch_still_come_and_any_state_goes_on(
        self,
        packed: Packed,
        tmp_path: Path,
        on_error: Any,
        kind: Any,
        num_workers: int,
        lost: range,
    ) -> None:
        dataset = open_packed(packed, tmp_path / "lost", lost, on_error=on_error)
        options = {"batch_size": 4, "workers": kind, "num_workers": num_workers}
        with DataLoader(dataset, **options) as loader:
            states, batches = [loader.state_dict()], []
            good: Counter[str] = Counter()
            for batch in loader:
                size = len(batch["__key__"])
                batches.append(list(batch["__key__"]))
                marks = np.zeros(size, np.bool_)
                for name in "__pad__", "__replaced__":
                    marks |= np.asarray(batch.get(name, [False] * size))
                good.update(itertools.compress(batch["__key__"], ~marks))
                assert on_error == "skip" or size == 4
                states.append(loader.state_dict())
            found = loader.state_dict()
            assert good == Counter(key for n, key in enumerate(packed.keys) if n not in lost)
            assert dataset.failures.count >= len(lost)  # a pad can be a lost one again
            assert {int(failed.place.key) for failed in dataset.failures} == set(lost)
            assert (found["epoch"], found["position"]) == (0, NUM_SAMPLES)
            assert loader.stats()["batches"] == len(batches)
            assert loader.stats()["samples"] == sum(map(len, batches))
            every = states if num_workers == 0 else states[:: max(1, len(states) - 1)]
            for state in every:
                loader.load_state_dict(json.loads(json.dumps(state)))
                if state["position"] < NUM_SAMPLES:
                    assert keys_of(loader) == batches[states.index(state) :]
                assert keys_of(loader) == batches

    def test_streams_of_files_go_on_behind_a_lost_folder(
        self, tmp_path: Path, on_error: Any, kind: Any, num_workers: int
    ) -> None:
        photos = make_photos(tmp_path / "photos", 40)
        rows = [
            {"data_id": key, "data_url": str(tmp_path / "photos" / "img" / f"{key}.jpg")}
            for key in photos
        ]
        for key in list(photos)[8:33]:
            (tmp_path / "photos" / "img" / f"{key}.jpg").unlink()
        dataset = StreamingDataset(
            rows, str(tmp_path / "cache"), shuffle="none", on_error=on_error, decode=None
        )
        options = {"workers": kind, "num_workers": num_workers}
        with DataLoader(dataset, 4, **options) as loader:
            expected = [key for n, key in enumerate(photos) if n < 8 or n >= 33]
            found = keys_of(loader)
            assert sorted(set(itertools.chain(*found))) == expected
            assert len(found) == 4
            assert dataset.failures.count == len(dataset.failures) == 25

    def test_an_epoch_of_which_nothing_is_left_is_an_error_and_the_next_one_another(
        self, packed: Packed, tmp_path: Path, on_error: Any, kind: Any, num_workers: int
    ) -> None:
        dataset = open_packed(packed, tmp_path / "lost", range(NUM_SAMPLES), on_error=on_error)
        message = r"nothing is left of a whole epoch of .*lost.*first failure: .*shard-000000.tar"
        with DataLoader(dataset, 8, workers=kind, num_workers=num_workers) as loader:
            for epoch in range(2):
                with pytest.raises(ShardkitError, match=message) as caught:
                    next(iter(loader))
                assert isinstance(caught.value.__cause__, NotFoundError)
                assert loader.state_dict()["epoch"] == epoch

    def test_max_failures_still_ends_the_run(
        self, on_error: Any, kind: Any, num_workers: int
    ) -> None:
        dataset = numbers(shuffle="none", bad=range(8, 90), on_error=on_error, max_failures=50)
        with DataLoader(dataset, 4, workers=kind, num_workers=num_workers) as loader:
            running = iter(loader)
            next(running)
            next(running)
            with pytest.raises(ShardkitError, match="more than max_failures=50"):
                next(running)
            assert dataset.failures.count == 51
            assert loader.state_dict()["position"] == 56  # 48 have failed by then: it would go on


@pytest.mark.parametrize(("kind", "num_workers"), KINDS)
class TestDrops:
    @pytest.mark.parametrize("transform", [drop_odd, drop_late])
    def test_a_filter_can_drop_all_of_a_batch(
        self, kind: Any, num_workers: int, transform: Any
    ) -> None:
        expected = [[n] for n in range(101) if transform({"number": n})]
        dataset = numbers(shuffle="none", transforms=[transform])
        with DataLoader(dataset, 1, workers=kind, num_workers=num_workers) as loader:
            assert batches_of(loader) == expected
            assert batches_of(loader) == expected
            assert loader.state_dict()["position"] == 101

    def test_a_rest_of_which_nothing_is_left_ends_the_epoch(
        self, kind: Any, num_workers: int
    ) -> None:
        def make() -> DataLoader:
            dataset = numbers(shuffle="none", transforms=[drop_late])
            return DataLoader(dataset, 8, workers=kind, num_workers=num_workers)

        with make() as loader:
            for batch in loader:
                if 39 in numbers_of(batch):
                    break
            state = loader.state_dict()
        with make() as loader:
            loader.load_state_dict(state)
            assert batches_of(loader) == []
            assert len(batches_of(loader)) == 5

    def test_what_was_left_out_counts_as_time_and_not_as_batches(
        self, kind: Any, num_workers: int
    ) -> None:
        dataset = numbers(shuffle="none", transforms=[drop_late])
        with DataLoader(dataset, 8, workers=kind, num_workers=num_workers) as loader:
            batches_of(loader)
            stats = loader.stats()
        assert (stats["batches"], stats["samples"]) == (5, 40)
        assert int(stats["bytes"]) >= sum(len(str(n)) for n in range(101))


def run_ranks(
    make: Any, world_size: int, batch_size: int = 4, num_nodes: int = 1, **options: Any
) -> list[list[Any]]:
    """An epoch of each rank, as batches."""
    found = []
    for rank in range(world_size):
        node = rank * num_nodes // world_size
        dataset = make(world=World(rank, world_size, node, num_nodes))
        with DataLoader(dataset, batch_size, **options) as loader:
            found.append(list(loader))
    return found


def marked(batch: Any) -> list[tuple[int, bool]]:
    """Number, and whether it stands in or is a pad."""
    size = len(batch["number"])
    marks = np.zeros(size, np.bool_)
    for name in "__pad__", "__replaced__":
        marks |= np.asarray(batch.get(name, [False] * size))
    return list(zip(map(int, batch["number"]), marks.tolist(), strict=True))


class TestSeveralRanks:
    @pytest.mark.parametrize("on_error", ["skip", "replace"])
    @pytest.mark.parametrize("lost", [range(30), range(40, 70), range(75, 101)])
    def test_they_stay_equal_and_every_good_sample_comes_once(
        self, on_error: Any, lost: range
    ) -> None:
        def make(world: World) -> SampleDataset:
            return numbers(shuffle="none", bad=lost, on_error=on_error, world=world)

        by_kind = []
        for kind, num_workers in KINDS:
            ranks = run_ranks(make, 2, workers=kind, num_workers=num_workers)
            assert {len(batches) for batches in ranks} == {13}
            by_kind.append([[marked(batch) for batch in batches] for batches in ranks])
            assert on_error == "skip" or {len(b["number"]) for r in ranks for b in r} == {4}
        assert by_kind[0] == by_kind[1] == by_kind[2]
        seen = Counter(
            number for number, mark in itertools.chain(*itertools.chain(*by_kind[0])) if not mark
        )
        assert seen == Counter(n for n in range(101) if n not in lost)

    @pytest.mark.parametrize(("on_error", "copies"), [("skip", 1), ("replace", 4)])
    def test_the_next_good_sample_stands_in_and_around_the_end_the_first(
        self, on_error: Any, copies: int
    ) -> None:
        def make(world: World) -> SampleDataset:
            lost = (*range(32, 47), *range(80, 101))
            return numbers(101, shuffle="none", bad=lost, on_error=on_error, world=world)

        first, second = run_ranks(make, 2, num_workers=2)
        assert marked(first[4]) == marked(second[4]) == [(47, True)] * copies
        assert marked(first[5]) == [(47, True)] * copies
        assert [number for number, _ in marked(second[5])][-1] == 47
        assert marked(first[10]) == marked(second[11]) == [(0, True)] * copies
        assert all("__replaced__" not in batch for batch in first[:4])

    def test_failures_are_counted_by_the_batches_whose_they_are(self) -> None:
        datasets = []

        def make(world: World) -> SampleDataset:
            options = {"bad": range(16, 80), "on_error": "skip", "max_failures": 32}
            datasets.append(numbers(96, shuffle="none", world=world, **options))  # type: ignore[arg-type]
            return datasets[-1]

        run_ranks(make, 2, num_workers=2)
        assert [dataset.failures.count for dataset in datasets] == [32, 32]

    def test_states_go_on_wherever_they_were_taken(self) -> None:
        def make() -> DataLoader:
            lost = (*range(20), *range(50, 81), *range(90, 101))
            dataset = numbers(shuffle="none", bad=lost, on_error="skip", world=World(1, 2))
            return DataLoader(dataset, 4, num_workers=2)

        with make() as loader:
            states, batches = [loader.state_dict()], []
            for batch in loader:
                batches.append(marked(batch))
                states.append(loader.state_dict())
        for done, state in enumerate(states[:-1]):
            with make() as fresh:
                fresh.load_state_dict(state)
                assert [marked(batch) for batch in fresh] == batches[done:]

    @pytest.mark.parametrize("on_error", ["raise", "skip", "replace"])
    def test_where_transforms_drop_all_one_stands_in(self, on_error: Any) -> None:
        def make(world: World) -> SampleDataset:
            options = {"transforms": [drop_odd], "on_error": on_error}
            return numbers(100, shuffle="none", world=world, **options)

        even, odd = run_ranks(make, 2, 1, num_workers=0)
        assert [marked(batch) for batch in even] == [[(n, False)] for n in range(0, 100, 2)]
        assert [marked(batch) for batch in odd] == [[(n % 100, True)] for n in range(2, 102, 2)]

    def test_a_stand_in_yields_all_that_transforms_make_of_it(self) -> None:
        def make(world: World) -> SampleDataset:
            options = {"transforms": [double], "on_error": "replace", "bad": range(16)}
            return numbers(32, shuffle="none", world=world, **options)  # type: ignore[arg-type]

        for batches in run_ranks(make, 2, num_workers=0):
            assert marked(batches[0]) == [(16, True)] * 8

    def test_an_error_that_is_not_to_be_skipped_is_raised_by_its_own_batch(self) -> None:
        def make(world: World) -> SampleDataset:
            options = {"transforms": [drop_late], "bad": [99]}
            return numbers(100, shuffle="none", world=world, **options)  # type: ignore[arg-type]

        with DataLoader(make(World(0, 2)), 1, num_workers=0) as loader:
            assert len(batches_of(loader)) == 50
        with (
            DataLoader(make(World(1, 2)), 1, num_workers=0) as loader,
            pytest.raises(ShardkitError, match="number 99 is bad"),
        ):
            batches_of(loader)

    def test_each_node_takes_stand_ins_from_its_own_lane(self) -> None:
        def make(world: World) -> SampleDataset:
            return numbers(112, shuffle="shard", transforms=[drop_odd], world=world)

        ranks = run_ranks(make, 2, 1, num_nodes=2, num_workers=0)
        own = [
            {n for batch in batches for n, mark in marked(batch) if not mark} for batches in ranks
        ]
        assert own[0] | own[1] == set(range(0, 112, 2))
        for rank, batches in enumerate(ranks):
            assert len(batches) == 56
            stand_ins = {n for batch in batches for n, mark in marked(batch) if mark}
            # but the last ones of a lane: behind it the next lane begins
            assert len(stand_ins - own[rank]) <= 1

    @pytest.mark.parametrize("mode", ["none", "shard", "buffer", "global"])
    @pytest.mark.parametrize("num_nodes", [1, 3])
    def test_one_good_sample_is_found_from_anywhere(self, mode: Any, num_nodes: int) -> None:
        def make(world: World) -> SampleDataset:
            lost = [n for n in range(101) if n != 60]
            return numbers(shuffle=mode, bad=lost, on_error="replace", world=world)

        ranks = run_ranks(make, 3, 3, num_nodes=num_nodes, num_workers=2)
        assert {len(batches) for batches in ranks} == {12}
        found = [pair for batches in ranks for batch in batches for pair in marked(batch)]
        assert len(found) == 3 * 12 * 3
        assert {number for number, _ in found} == {60}
        assert sum(not mark for _, mark in found) == 1

    @pytest.mark.parametrize(("kind", "num_workers"), KINDS)
    def test_streams_of_far_files_too(self, tmp_path: Path, kind: Any, num_workers: int) -> None:
        folder = tmp_path / "s3" / "bucket"
        photos = list(make_photos(folder, 64))
        rows = [
            {"data_id": key, "data_url": f"s3://bucket/img/{key}.jpg", "number": number}
            for number, key in enumerate(photos)
        ]
        for key in photos[10:50]:
            (folder / "img" / f"{key}.jpg").unlink()
        with serve_s3(tmp_path / "s3") as s3:

            def make(world: World) -> SampleDataset:
                return StreamingDataset(
                    rows,
                    str(tmp_path / "cache"),
                    shuffle="none",
                    decode=None,
                    on_error="skip",
                    storage_options=s3.storage_options,
                    world=world,
                )

            ranks = run_ranks(make, 2, workers=kind, num_workers=num_workers)
        found = [[marked(batch) for batch in batches] for batches in ranks]
        assert [len(batches) for batches in found] == [8, 8]
        assert found[0][2:6] == [[(50, True)]] * 4
        seen = Counter(n for n, mark in itertools.chain(*itertools.chain(*found)) if not mark)
        assert seen == Counter((*range(10), *range(50, 64)))

    @pytest.mark.parametrize(("kind", "num_workers"), KINDS)
    def test_nothing_left_of_an_epoch_is_an_error_on_every_rank(
        self, packed: Packed, tmp_path: Path, kind: Any, num_workers: int
    ) -> None:
        def make(world: World) -> SampleDataset:
            lost = range(NUM_SAMPLES)
            return open_packed(packed, tmp_path / "lost", lost, on_error="skip", world=world)

        for rank in range(2):
            with (
                DataLoader(
                    make(World(rank, 2)), 4, workers=kind, num_workers=num_workers
                ) as loader,
                pytest.raises(ShardkitError, match=r"nothing is left of .*shard-000000\.tar"),
            ):
                next(iter(loader))

    def test_a_long_stretch_is_walked_once(self) -> None:
        made: list[int] = []

        def drop_most(sample: dict[str, Any]) -> dict[str, Any] | None:
            made.append(sample["number"])
            return None if 10 <= sample["number"] < 1_990 else sample

        dataset = numbers(2_000, shuffle="none", transforms=[drop_most], world=World(0, 2))
        with DataLoader(dataset, 1, num_workers=1) as loader:
            assert len(batches_of(loader)) == 1_000
        # 1,000 of its own, 1,980 on the way, and the stand-in again for each of 990
        assert len(made) <= 1_000 + 1_980 + 990 + 64

    def test_closing_does_not_wait_for_the_end_of_a_search(self) -> None:
        made: list[int] = []

        def drop_slowly(sample: dict[str, Any]) -> dict[str, Any] | None:
            made.append(sample["number"])
            if sample["number"] == 0:
                return sample
            time.sleep(0.005)
            return None

        dataset = numbers(100_000, shuffle="none", transforms=[drop_slowly], world=World(0, 2))
        loader = DataLoader(dataset, 1, num_workers=1, prefetch_factor=1)
        next(iter(loader))
        _wait_for(lambda: len(made) > 20)
        loader.close()
        _wait_for(lambda: not any(t.name == "shardkit-loader-0" for t in threading.enumerate()))
        assert len(made) < 50_000


def _wait_for(claim: Any) -> None:
    until = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.01)


def mix_of(by: Any, world: World, **options: Any) -> Mix:
    """Two streams; of "a" a stretch is lost that is longer than several batches."""
    on_error = options.pop("on_error", "skip")
    streams = {
        "a": numbers(
            60, name="a", shuffle="none", bad=range(10, 40), on_error=on_error, world=world
        ),
        "b": numbers(60, name="b", shuffle="none", transforms=[drop_late], world=world),
    }
    return Mix({name: Stream(one) for name, one in streams.items()}, by=by, ends="all", **options)


def marked_by_stream(batch: Any) -> list[tuple[str, int, bool]]:
    names = batch["__stream__"]
    found = marked(batch)
    names = [names] * len(found) if isinstance(names, str) else names
    return [(name, *pair) for name, pair in zip(names, found, strict=True)]


@pytest.mark.parametrize("by", ["sample", "batch", "rank"])
class TestMix:
    def test_on_one_rank_what_is_left_comes_and_any_state_goes_on(self, by: Any) -> None:
        def make() -> DataLoader:
            return DataLoader(mix_of(by, World()), 2, num_workers=2)

        with make() as loader:
            states, batches = [loader.state_dict()], []
            for batch in loader:
                batches.append(marked_by_stream(batch))
                states.append(loader.state_dict())
            after = [marked_by_stream(batch) for batch in loader]
        assert all(batches)
        seen = {(name, n) for batch in batches for name, n, mark in batch if not mark}
        good = [n for n in range(60) if not 10 <= n < 40]
        assert seen == {*(("a", n) for n in good), *(("b", n) for n in range(40))}
        for done, state in enumerate(states):
            with make() as fresh:
                fresh.load_state_dict(json.loads(json.dumps(state)))
                rest = [marked_by_stream(batch) for batch in fresh]
                if done < len(batches):
                    assert rest == batches[done:]
                    rest = [marked_by_stream(batch) for batch in fresh]
                assert (rest or [marked_by_stream(batch) for batch in fresh]) == after

    @pytest.mark.parametrize("on_error", ["skip", "replace"])
    def test_several_ranks_stay_equal_with_stand_ins_of_the_same_stream(
        self, by: Any, on_error: Any
    ) -> None:
        def make(world: World) -> Mix:
            return mix_of(by, world, on_error=on_error)

        alone = run_ranks(make, 2, 2, num_workers=0)
        others = run_ranks(make, 2, 2, num_workers=2)
        assert len(alone[0]) == len(alone[1])
        found = [[marked_by_stream(batch) for batch in batches] for batches in alone]
        assert found == [[marked_by_stream(batch) for batch in batches] for batches in others]
        good = {"a": {*range(10), *range(40, 60)}, "b": {*range(40)}}
        seen = {
            (name, n) for batches in found for batch in batches for name, n, m in batch if not m
        }
        assert seen == {(name, n) for name in good for n in good[name]}
        for name, number, _ in itertools.chain(*itertools.chain(*found)):
            assert number in good[name]

    def test_where_nothing_is_left_it_ends_even_if_the_mixture_never_does(self, by: Any) -> None:
        for ends in "first", "never":
            lost = [numbers(n, name=str(n), bad=range(n), on_error="skip") for n in (30, 10)]
            with (
                DataLoader(Mix(lost, by=by, ends=ends), 4, num_workers=2) as loader,
                pytest.raises(ShardkitError, match=r"whole epoch of memory://30, memory://10: ev"),
            ):
                next(iter(loader))


def test_a_replacement_from_another_stream_has_that_streams_name() -> None:
    a = numbers(10, name="a", bad=range(10), on_error="replace")
    b = numbers(10, name="b")
    with DataLoader(Mix({"a": a, "b": b}), 4, num_workers=0) as loader:
        batch = next(iter(loader))
    assert batch["__stream__"] == ["b"] * 4
    assert sum(batch["__replaced__"].tolist()) == 2


def test_failures_are_a_sequence_of_what_is_listed() -> None:
    dataset = numbers(shuffle="none", bad=[3, 5, 8], on_error="skip")
    failures = dataset.failures
    assert not failures
    assert len(failures) == 0
    batches_of(DataLoader(dataset, 4, num_workers=0))
    assert failures
    assert len(failures) == failures.count == 3
    assert [failed.place.key for failed in failures] == ["000003", "000005", "000008"]
    assert failures[0] is failures.listed[0]
    assert failures[-1:] == failures.listed[2:]
    assert failures[1] in failures


def test_only_the_first_thousand_failures_are_listed() -> None:
    dataset = numbers(1_200, bad=range(1, 1_200), on_error="skip")
    batches_of(DataLoader(dataset, 100, num_workers=0, remainder="keep"))
    assert (dataset.failures.count, len(dataset.failures)) == (1_199, 1_000)


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_bare_iteration_and_torchs_loader_leave_out_whatever_failed(on_error: Any) -> None:
    good = [n for n in range(20) if not 4 <= n < 11]
    for wrap in (lambda one: one, lambda one: torch.utils.data.DataLoader(one, batch_size=None)):
        dataset = numbers(20, shuffle="none", bad=range(4, 11), on_error=on_error)
        samples = list(wrap(dataset))
        assert [int(sample["number"]) for sample in samples] == good
        assert not any("__replaced__" in sample for sample in samples)
        assert dataset.failures.count == 7
