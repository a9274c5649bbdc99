"""Selections: counts and a bitmap on disk instead of a list of rows."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError, CorruptError
from shardkit.order import (
    EpochOrder,
    Selection,
    ShuffleOptions,
    copies_of,
    open_selection,
    selection_key,
    write_selection,
)
from tests.order.orders import counts_lists


def write(
    path: Path, counts: object, copies: object, key: str = "k", cuts: object = ()
) -> Selection:
    chunks = np.split(np.asarray(copies), np.asarray(cuts, np.int64))
    return write_selection(str(path), np.array(counts, np.int64), chunks, key=key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(counts_lists, st.integers(0, 4), st.data())
def test_a_selection_locates_each_selected_row_as_often_as_it_takes_part(
    tmp_path: Path, counts: list[int], most: int, data: st.DataObject
) -> None:
    size = sum(counts)
    copies = np.array(
        data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size)), np.int64
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=5)))
    selection = write(tmp_path / "s", counts, copies, cuts=cuts)
    assert selection.num_samples == copies.sum()
    ids = np.array(data.draw(st.permutations(range(selection.num_samples))), np.int64)
    groups, rows = pickle.loads(pickle.dumps(selection)).locate(ids)
    natural = (np.cumsum(counts) - counts)[groups] + rows
    assert np.array_equal(np.bincount(natural, minlength=size), copies)
    by_count = np.repeat(np.arange(len(selection.counts)), selection.counts)
    assert np.array_equal(selection.groups(by_count)[ids], groups)


def test_ids_count_selected_rows_in_natural_order(tmp_path: Path) -> None:
    chosen = np.zeros(30_000, bool)
    chosen[[5, 4095, 4096, 12_345, 29_999]] = True
    selection = write(tmp_path / "s", [10_000, 0, 20_000], chosen)
    groups, rows = selection.locate(np.arange(5))
    assert groups.tolist() == [0, 0, 0, 2, 2]
    assert rows.tolist() == [5, 4095, 4096, 2345, 19_999]
    assert selection.counts.tolist() == [3, 0, 2]


def test_all_rows_need_no_file() -> None:
    selection = Selection.all(np.array([3, 0, 2]))
    assert (selection.num_samples, selection.key) == (5, "")
    groups, rows = selection.locate(np.array([4, 0, 2, 3]))
    assert groups.tolist() == [2, 0, 0, 2]
    assert rows.tolist() == [1, 0, 2, 0]


def test_an_epoch_over_a_selection_has_only_selected_rows_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chosen = rng.random(50_000) < 0.1
    selection = write(tmp_path / "s", [1000] * 50, chosen)
    order = EpochOrder(selection.counts, ShuffleOptions("buffer", 300), selection=selection.key)
    groups, rows = selection.locate(order.at(np.arange(order.num_samples)))
    assert np.array_equal(np.sort(groups * 1000 + rows), np.flatnonzero(chosen))


def test_copies_of_a_row_land_at_unrelated_places(tmp_path: Path) -> None:
    selection = write(tmp_path / "s", [100] * 100, np.full(10_000, 2))
    order = EpochOrder(selection.counts, ShuffleOptions("buffer", 100))
    groups, rows = selection.locate(order.at(np.arange(20_000)))
    places = np.argsort(groups * 100 + rows, kind="stable").reshape(-1, 2)
    assert np.abs(places[:, 0] - places[:, 1]).mean() > 4000  # a third of 20,000 if unrelated


def test_the_file_is_an_eighth_of_a_byte_a_row(tmp_path: Path) -> None:
    size = 4_000_000
    write(tmp_path / "s", [size], np.ones(size, bool))
    assert os.path.getsize(tmp_path / "s") <= size / 8 * 1.02


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    copies = np.random.default_rng(1).integers(0, 3, 9000)
    write(tmp_path / "one", [4000, 5000], copies)
    write(tmp_path / "two", [4000, 5000], copies, cuts=[1, 77, 5003])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        (np.ones(9, bool), r"covers 9 rows \(or more\) of an index that has 10"),
        (np.ones(11, bool), "covers 11 rows"),
        (np.array([65] + [0] * 9), "to take part 0 to 65 times"),
        (np.array([-1] + [0] * 9), "to take part -1 to 0 times"),
    ],
)
def test_a_wrong_selection_is_refused_and_leaves_no_file(
    tmp_path: Path, copies: np.ndarray, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "s", [4, 6], copies)
    assert os.listdir(tmp_path) == []


def test_a_failing_source_of_chunks_leaves_no_file(tmp_path: Path) -> None:
    def chunks() -> object:
        yield np.ones(4, bool)
        raise OSError("the scan broke")

    with pytest.raises(OSError, match="the scan broke"):
        write_selection(str(tmp_path / "s"), np.array([10]), chunks(), key="k")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_another_selection_or_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", [10], np.ones(10, bool))
    for counts, key in (([10], "other"), ([11], "k"), ([5, 5], "k")):
        with pytest.raises(CorruptError, match="holds another selection"):
            open_selection(str(tmp_path / "s"), np.array(counts), key=key)
    with pytest.raises(FileNotFoundError):
        open_selection(str(tmp_path / "none"), np.array([10]), key="k")


@pytest.mark.parametrize("size", [0, 5, 100, -9, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path / "s", [10], np.ones(10, bool))
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:size])
    with pytest.raises(CorruptError, match="delete it"):
        open_selection(str(tmp_path / "s"), np.array([10]), key="k")


def test_a_file_with_a_hole_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", [10], np.ones(10, bool))
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[8:])
    with pytest.raises(CorruptError, match="not what its footer says"):
        open_selection(str(tmp_path / "s"), np.array([10]), key="k")


def test_keys_depend_on_every_part() -> None:
    parts = [("f", "a > 1"), ("f", "a > 2"), ("g", "a > 1"), ("f", "a > 1", 0), ("f", None), ("f",)]
    assert len({selection_key(*part) for part in parts}) == len(parts)


def test_weights_become_copies_whose_mean_is_the_weight() -> None:
    for weight in (0.0, 0.3, 1.0, 2.75):
        copies = copies_of(np.full(20_000, weight))
        assert copies.mean() == pytest.approx(weight, abs=0.02)
        assert set(copies.tolist()) <= {int(weight), int(weight) + 1}


def test_copies_do_not_depend_on_chunks() -> None:
    weights = np.random.default_rng(0).random(1000) * 3
    whole = copies_of(weights, seed=4)
    parts = [copies_of(weights[i : i + 77], seed=4, start=i) for i in range(0, 1000, 77)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(copies_of(weights, seed=5), whole)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), 64.5])
def test_a_wrong_weight_is_refused_with_its_row(weight: float) -> None:
    with pytest.raises(ConfigError, match="row 1002 has weight"):
        copies_of(np.array([1.0, 1.0, weight]), start=1000)
