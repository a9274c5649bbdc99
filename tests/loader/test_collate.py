"""What becomes of samples in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shardkit import DataLoader
from shardkit.loader import collate
from tests.loader.numbers import numbers


def column(*values: Any) -> Any:
    return collate([{"x": value} for value in values])["x"]


def test_arrays_of_one_shape_become_a_tensor() -> None:
    stacked = column(np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert stacked.shape == (2, 2, 3)
    assert stacked.dtype == torch.float32
    assert column(torch.ones(3), torch.zeros(3)).tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "values",
    [
        (np.ones(2), np.ones(3)),
        (np.ones(2), np.ones(2, np.float32)),
        (np.ones(2), None),
        (None, np.ones(2)),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), np.ones(2)),
        (np.ones(2), torch.ones(2)),
        (np.array(["a"]), np.array(["b"])),
        ("a", "b"),
        (b"a", b"b"),
        (1, None),
        (1, "a"),
        (2**70, 1),
        (2**63, -1),
        (np.uint64(2**63), np.int64(-1)),
        ([1, 2], [3]),
        ((1,), (1, 2)),
        ({"a": 1}, None),
        ({1, 2}, {3}),
        (object(), object()),
    ],
)
def test_what_does_not_fit_stays_a_list(values: tuple[Any, Any]) -> None:
    found = column(*values)
    assert type(found) is list
    assert all(a is b for a, b in zip(found, values, strict=True))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((1, 2), torch.int64),
        ((1.5, 2), torch.float64),
        ((True, False), torch.bool),
        ((np.float32(1), np.float32(2)), torch.float32),
        ((np.uint8(1), np.uint8(2)), torch.uint8),
        ((np.array(1), np.array(2)), torch.int64),
        ((2**63 + 1, 2), torch.uint64),
        ((np.uint64(2**63 + 1), 2), torch.uint64),
    ],
)
def test_numbers_become_a_tensor(values: Any, dtype: torch.dtype) -> None:
    stacked = column(*values)
    assert stacked.dtype == dtype
    assert stacked.tolist() == [
        value.item() if hasattr(value, "item") else value for value in values
    ]


def test_arrays_of_types_that_torch_has_not_are_stacked_all_the_same() -> None:
    swapped = column(np.array([1.5], ">f4"), np.array([2.5], ">f4"))
    assert swapped.dtype == torch.float32
    assert swapped.tolist() == [[1.5], [2.5]]
    wide = column(np.ones(2, np.longdouble), np.zeros(2, np.longdouble))
    assert isinstance(wide, np.ndarray)
    assert wide.tolist() == [[1, 1], [0, 0]]


def test_dicts_and_tuples_are_collated_inside() -> None:
    batch = column({"a": 1, "b": ("x", np.ones(2))}, {"a": 2, "b": ("y", np.ones(2))})
    assert batch["a"].tolist() == [1, 2]
    assert batch["b"][0] == ["x", "y"]
    assert batch["b"][1].shape == (2, 2)


def test_a_sample_without_an_entry_has_none_there() -> None:
    batch = collate([{"a": 1, "text": "x"}, {"a": 2}, {"a": 3, "extra": 4}])
    assert batch["text"] == ["x", None, None]
    assert batch["extra"] == [None, None, 4]


def test_a_loaders_own_collate_gets_the_samples() -> None:
    def keys(samples: Any) -> tuple[str, ...]:
        return tuple(sample["__key__"] for sample in samples)

    loader = DataLoader(numbers(shuffle="none"), 3, collate_fn=keys)
    assert next(iter(loader)) == ("000000", "000001", "000002")
    loader.close()


def test_a_batch_is_the_consumers_to_change() -> None:
    batch = collate([{"a": np.zeros(4)}, {"a": np.ones(4)}])
    batch["a"] += 1
    assert batch["a"][0].tolist() == [1] * 4
