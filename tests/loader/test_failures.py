"""Samples that fail, transforms that drop: equal batches, counted failures, clear ends."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from shardkit import DataLoader
from shardkit.errors import CorruptError, DecodeError, ShardkitError, TransientError
from shardkit.world import World
from tests.loader.numbers import batches_of, numbers

KINDS = [("threads", 0), ("threads", 2), ("processes", 2)]
BAD = (3, 50, 51, 99)


def fail_at_seven(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["number"] == 7:
        raise ZeroDivisionError("seven")
    return sample


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def fail_oddly(sample: dict[str, Any]) -> dict[str, Any]:
    raise Unpicklable(1, 2)


def drop_all(sample: dict[str, Any]) -> None:
    return None


def draw(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"number": sample["number"], "own": rng.random()}


def draw_globally(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "number": sample["number"],
        "python": random.random(),
        "numpy": float(np.random.rand()),  # noqa: NPY002 - the global one is the claim
        "torch": torch.rand(1),
    }


def loader_of(kind: str, num_workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        numbers(**options),
        8,
        num_workers=num_workers,
        workers=kind,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("kind", "num_workers"), KINDS)
class TestFailures:
    def test_raise_gives_the_first_error_in_order_and_the_state_before_it(
        self, kind: str, num_workers: int
    ) -> None:
        with (
            loader_of(kind, num_workers, shuffle="none", bad=BAD) as loader,
            pytest.raises(CorruptError, match="number 3 is bad"),
        ):
            next(iter(loader))
            assert loader.state_dict()["position"] == 0
            dataset = numbers(shuffle="none")
            whole = DataLoader(dataset, 8, num_workers=0)
            whole.load_state_dict(loader.state_dict())
            assert len(batches_of(whole)) == len(whole)

    def test_an_error_of_a_transform_names_the_sample_and_where_it_ran(
        self, kind: str, num_workers: int
    ) -> None:
        with loader_of(kind, num_workers, shuffle="none", transforms=[fail_at_seven]) as loader:
            with pytest.raises(ZeroDivisionError) as caught:
                next(iter(loader))
            notes = "".join(caught.value.__notes__)
            assert "'000007'" in notes
            assert ("in a loader worker" in notes) == (kind == "processes")

    def test_skip_leaves_slots_out_counts_and_keeps_the_number_of_batches(
        self, kind: str, num_workers: int
    ) -> None:
        with loader_of(kind, num_workers, bad=BAD, on_error="skip") as loader:
            batches = batches_of(loader)
            assert len(batches) == len(loader)
            assert set(range(101)) - {n for batch in batches for n in batch} == set(BAD)
            failures = loader.dataset.failures  # type: ignore[union-attr]
            assert failures.count >= len(BAD)  # a pad can be a bad one again
            assert {int(failed.place.key) for failed in failures.listed} == set(BAD)

    def test_replace_keeps_shapes_and_marks(self, kind: str, num_workers: int) -> None:
        with loader_of(kind, num_workers, bad=BAD, on_error="replace") as loader:
            for batch in loader:
                assert len(batch["number"]) == 8
                if "__replaced__" in batch:
                    there = batch["number"].tolist()
                    for place in np.flatnonzero(batch["__replaced__"]):
                        near = [there[i] for i in (place - 1, place + 1, place - 2) if 0 <= i < 8]
                        assert there[place] in near
                else:
                    assert len(set(batch["number"].tolist())) == 8

    def test_an_error_that_cannot_be_pickled_comes_as_its_text(
        self, kind: str, num_workers: int
    ) -> None:
        with loader_of(kind, num_workers, transforms=[fail_oddly]) as loader:
            expected = ShardkitError if kind == "processes" else Unpicklable
            with pytest.raises(expected, match="odd"):
                next(iter(loader))
        with (
            loader_of(kind, num_workers, transforms=[fail_oddly], on_error="skip") as loader,
            pytest.raises(ShardkitError, match=r"(?s)nothing is left.*first failure: .*odd"),
        ):
            next(iter(loader))

    def test_an_epoch_with_nothing_left_raises_and_says_why(
        self, kind: str, num_workers: int
    ) -> None:
        with (
            loader_of(kind, num_workers, transforms=[drop_all]) as loader,
            pytest.raises(ShardkitError, match="memory://numbers: the transforms dropped every"),
        ):
            next(iter(loader))

    def test_max_failures_ends_the_run(self, kind: str, num_workers: int) -> None:
        options = {"bad": tuple(range(0, 101, 5)), "on_error": "skip", "max_failures": 4}
        with (
            loader_of(kind, num_workers, **options) as loader,
            pytest.raises(ShardkitError, match="more than max_failures=4"),
        ):
            batches_of(loader)

    def test_the_network_is_never_skipped(self, kind: str, num_workers: int) -> None:
        with (
            loader_of(kind, num_workers, broken=[40], on_error="skip") as loader,
            pytest.raises(TransientError, match="number 40 can't be reached"),
        ):
            batches_of(loader)

    def test_what_cannot_be_decoded_names_the_sample(self, kind: str, num_workers: int) -> None:
        with (
            loader_of(kind, num_workers, decode={"bin": bad_decoder}) as loader,
            pytest.raises(DecodeError, match=r"memory://numbers.*key '0000.*bin"),
        ):
            next(iter(loader))


def bad_decoder(data: bytes) -> int:
    raise ValueError("no such thing")


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_ranks_stay_equal_when_samples_of_one_of_them_fail(on_error: Any) -> None:
    lengths = []
    for rank in range(3):
        dataset = numbers(bad=range(0, 101, 4), on_error=on_error, world=World(rank, 3))
        lengths.append(len(list(DataLoader(dataset, 8, num_workers=2))))
    assert len(set(lengths)) == 1


class TestRandomness:
    def draws(self, transform: Any, **options: Any) -> dict[int, Any]:
        found: dict[int, Any] = {}
        with DataLoader(numbers(transforms=[transform]), 8, **options) as loader:
            for batch in loader:
                values = zip(*(batch[name] for name in batch if name != "number"), strict=True)
                for number, drawn in zip(batch["number"].tolist(), values, strict=True):
                    found.setdefault(number, tuple(map(float, drawn)))
        return found

    def test_a_samples_own_draws_do_not_depend_on_workers_or_batches(self) -> None:
        expected = self.draws(draw, num_workers=0)
        options = {"num_workers": 2, "workers": "processes"}
        assert {n: d[0] for n, d in self.draws(draw, num_workers=3).items()} == {
            n: d[0] for n, d in expected.items()
        }
        found = self.draws(draw, **options)
        assert {n: d[0] for n, d in found.items()} == {n: d[0] for n, d in expected.items()}

    def test_global_generators_are_the_samples_own_in_processes(self) -> None:
        first = self.draws(draw_globally, num_workers=1, workers="processes")
        second = self.draws(draw_globally, num_workers=3, workers="processes")
        assert {n: d[:3] for n, d in first.items()} == {n: d[:3] for n, d in second.items()}
        assert len({d[0] for d in first.values()}) == 101

    def test_the_consumers_generators_are_left_alone(self) -> None:
        random.seed(1)
        expected = random.random()
        random.seed(1)
        self.draws(draw, num_workers=0)
        assert random.random() == expected
