"""Under other people's loaders: what each can promise. See docs/resume.md."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
import webdataset
from torchdata.stateful_dataloader import StatefulDataLoader

from shardkit import Mix
from shardkit.errors import StateError
from shardkit.world import World
from tests.loader.numbers import numbers

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more than cores
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata with a new torch
]


def as_list(samples: list[Any]) -> list[tuple[str, int]]:
    return [(sample.get("__stream__", ""), sample["number"]) for sample in samples]


def mix(world: World | None = None) -> Mix:
    return Mix(
        {
            "a": (numbers(60, name="a", world=world), 0.6),
            "b": (numbers(40, name="b", world=world), 0.4),
        }
    )


MAKERS = {"numbers": numbers, "mix": mix}


def epoch_of(loader: Any) -> list[Any]:
    return list(loader)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
class TestStateful:
    """torchdata: exact with as many workers as it was saved with."""

    def make(
        self, name: str, num_workers: int, *, persistent_workers: bool = False
    ) -> StatefulDataLoader:
        return StatefulDataLoader(
            MAKERS[name](),
            batch_size=7,
            num_workers=num_workers,
            collate_fn=as_list,
            multiprocessing_context="fork" if num_workers else None,
            persistent_workers=persistent_workers,
        )

    @pytest.mark.parametrize("persistent", [False, True])
    def test_saved_before_the_first_batch_of_a_later_epoch_it_gives_all_of_it(
        self, name: str, num_workers: int, persistent: bool
    ) -> None:
        options = {"persistent_workers": persistent and num_workers > 0}
        loader = self.make(name, num_workers, **options)
        epoch_of(loader)
        running = iter(loader)
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        fresh = self.make(name, num_workers, **options)
        fresh.load_state_dict(state)
        second = list(running)
        assert epoch_of(fresh) == second
        assert epoch_of(fresh) == epoch_of(loader)

    def test_restored_it_gives_the_rest_and_other_epochs(self, name: str, num_workers: int) -> None:
        loader = self.make(name, num_workers)
        states, batches = [], []
        for batch in loader:
            batches.append(batch)
            states.append(pickle.loads(pickle.dumps(loader.state_dict())))
        total = Counter(n for batch in batches for n in batch)
        assert set(total.values()) == {1}
        after = epoch_of(loader)
        assert after != batches
        for done in (0, 1, 2, len(batches) // 2, len(batches) - 2):
            fresh = self.make(name, num_workers)
            fresh.load_state_dict(states[done])
            assert epoch_of(fresh) == batches[done + 1 :]
            assert epoch_of(fresh) == after


def test_a_worker_refuses_the_state_of_another() -> None:
    dataset = numbers()
    state = {**dataset.state_dict(), "worker": 1, "num_workers": 2, "first": 1}
    with pytest.raises(StateError, match="of loader worker 1 of 2, this is 0 of 1"):
        dataset.load_state_dict(state)


@pytest.mark.parametrize("name", MAKERS)
class TestPlain:
    """torch's own DataLoader: each sample once; states at the starts of epochs."""

    @pytest.mark.parametrize(
        ("num_workers", "context", "persistent"),
        [(0, None, False), (2, "fork", False), (3, "fork", True)],
    )
    def test_each_epoch_has_each_sample_once_in_another_order(
        self, name: str, num_workers: int, context: Any, persistent: bool
    ) -> None:
        loader = torch.utils.data.DataLoader(
            MAKERS[name](),
            batch_size=5,
            num_workers=num_workers,
            collate_fn=as_list,
            multiprocessing_context=context,
            persistent_workers=persistent,
        )
        epochs = [[n for batch in loader for n in batch] for _ in range(3)]
        for epoch in epochs:
            assert set(Counter(epoch).values()) == {1}
            assert len(epoch) == (101 if name == "numbers" else 100)
        assert epochs[0] != epochs[1] != epochs[2]

    def test_without_workers_the_state_is_exact(self, name: str) -> None:
        dataset = MAKERS[name]()
        loader = torch.utils.data.DataLoader(dataset, batch_size=5, collate_fn=as_list)
        running = iter(loader)
        for _ in range(3):
            next(running)
        fresh = MAKERS[name]()
        fresh.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
        again = torch.utils.data.DataLoader(fresh, batch_size=5, collate_fn=as_list)
        assert list(again) == list(running)

    def test_with_workers_it_is_that_of_the_epochs_start_and_says_so(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        dataset = MAKERS[name]()
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=5, num_workers=2, collate_fn=as_list
        )
        first = [n for batch in loader for n in batch]
        running = iter(loader)
        second = next(running)
        state = dataset.state_dict()
        assert "shardkit.DataLoader saves exact states" in caplog.text
        fresh = MAKERS[name]()
        fresh.load_state_dict(state)
        again = torch.utils.data.DataLoader(fresh, batch_size=5, num_workers=2, collate_fn=as_list)
        assert second == next(iter(again))
        assert set(second) <= set(first) or name == "mix"
        del running


def test_between_epochs_the_state_under_workers_is_that_of_the_next() -> None:
    dataset = numbers()
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=as_list)
    list(loader)
    state = dataset.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    fresh = numbers()
    fresh.load_state_dict(state)
    again = torch.utils.data.DataLoader(fresh, batch_size=5, num_workers=2, collate_fn=as_list)
    assert list(again) == list(loader)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_inside_a_webdataset_pipeline_it_is_a_source_like_any(world_size: int) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        dataset = numbers(world=World(rank, world_size))
        pipeline = webdataset.DataPipeline(
            dataset,
            webdataset.map(lambda sample: (sample["number"],)),
            webdataset.shuffle(10),
            webdataset.batched(6),
        )
        epochs = [[n for batch in pipeline for n in batch[0]] for _ in range(2)]
        assert sorted(epochs[0]) == sorted(epochs[1]) or world_size > 1
        assert epochs[0] != epochs[1]
        seen.update(epochs[0])
    assert seen == Counter(range(101))


def test_a_webdataset_pipeline_under_webloader_shares_samples_among_workers() -> None:
    pipeline = webdataset.DataPipeline(numbers(), webdataset.batched(6, collation_fn=as_list))
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=2)
    seen = Counter(number for batch in loader for _, number in batch)
    assert seen == Counter(range(101))


def test_fluid_interfaces_shuffle_and_map_take_it_too() -> None:
    pipeline = webdataset.DataPipeline(numbers()).compose(
        webdataset.batched(6, collation_fn=as_list)
    )
    assert sum(map(len, pipeline)) == 101
