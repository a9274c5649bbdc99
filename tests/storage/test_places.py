"""The table of packed entries: what one process puts, all find, whatever happens to the file."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from shardkit.storage import places as module
from shardkit.storage.cache import Cache
from shardkit.storage.entries import entry_name
from shardkit.storage.places import Place, Places, digest_of
from tests.storage.disk import BLOCK, OURS, packed_bytes


def name_of(i: int) -> str:
    return entry_name(str(i))


def place_of(i: int, start: int = 0) -> Place:
    """A place whose fields all tell which it is, each up to its largest."""
    return Place((1 << 64) - 1 - i, i, start, i % (1 << 20), (1 << 63) + i, 999_999_999 - i, 7 * i)


def put(table: Places, *numbers: int) -> None:
    table.put((name_of(i), place_of(i)) for i in numbers)


def missing(table: Places, numbers: range) -> list[int]:
    return [i for i in numbers if table.find(name_of(i)) != place_of(i)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "places")


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables begin with one set of 16 entries."""
    monkeypatch.setattr(module, "_FIRST_SETS", 1)


def test_what_was_put_is_found_until_it_is_removed_or_replaced(path: str) -> None:
    table = Places(path)
    assert table.is_new
    assert table.find(name_of(1)) is None
    put(table, 1, 2)
    assert table.find(name_of(1)) == place_of(1)
    table.put([(name_of(1), place_of(1, start=4096))])
    assert table.find(name_of(1)) == place_of(1, start=4096)
    table.remove([name_of(1), name_of(3)])  # what is not there is no error
    assert table.find(name_of(1)) is None
    assert table.find(name_of(2)) == place_of(2)
    again = Places(path)
    assert not again.is_new
    assert again.find(name_of(2)) == place_of(2)


def test_a_replaced_entry_takes_no_second_slot(path: str, smallest: None) -> None:
    table = Places(path)
    for start in range(100):
        table.put([(name_of(1), place_of(1, start=start))])
    table.remove([name_of(1)])
    assert table.find(name_of(1)) is None
    assert os.path.getsize(path) == 4096 + 1024  # one set is enough


def test_slots_that_were_left_are_taken_again(path: str, smallest: None) -> None:
    table = Places(path)
    for i in range(1000):
        put(table, i)
        if i >= 16:
            table.remove([name_of(i - 16)])
        elif i == 15:
            table.remove([name_of(0)])
            put(table, 0)
    assert os.path.getsize(path) <= 4096 + 2 * 1024  # 17 at a time, for an instant
    assert missing(table, range(984, 1000)) == []


def test_a_full_table_grows_and_loses_nothing(path: str, smallest: None) -> None:
    table, other = Places(path), Places(path)
    put(table, *range(3000))
    assert os.path.getsize(path) >= 4096 + 3000 // 16 * 1024
    assert missing(table, range(3000)) == []
    assert missing(other, range(3000)) == []  # though it had mapped the first and smallest
    assert missing(Places(path), range(3000)) == []
    assert table.find(name_of(3000)) is None
    assert os.listdir(os.path.dirname(path)) == ["places"]


def test_two_that_write_by_turns_see_each_others_writes_and_growth(
    path: str, smallest: None
) -> None:
    one, two = Places(path), Places(path)
    for i in range(1000):
        put((one, two)[i % 2], i)
        assert (two, one)[i % 2].find(name_of(i)) == place_of(i)
        if i % 3 == 2:
            (two, one)[i % 2].remove([name_of(i)])
            assert (one, two)[i % 2].find(name_of(i)) is None
    for table in (one, two):
        assert missing(table, range(0, 1000, 3)) == missing(table, range(1, 1000, 3)) == []


def test_a_name_is_not_seen_across_two_neighbours(path: str, smallest: None) -> None:
    """Names lie side by side: the end of one and the beginning of the next may spell a third."""
    table = Places(path)
    first, second, across = "01" * 8 + "02" * 8, "02" * 8 + "01" * 8, "02" * 16
    half_empty = "03" * 8 + "00" * 8  # its end and the empty slot behind it are 16 zeros, unaligned
    for i, name in enumerate((first, second, half_empty)):
        table.put([(name, place_of(i))])
    assert table.find(across) is None
    table.remove([across])
    table.put([(across, place_of(9))])
    assert [table.find(name) for name in (first, second, half_empty, across)] == [
        place_of(i) for i in (0, 1, 2, 9)
    ]


def test_while_the_table_grows_readers_find_everything(path: str, smallest: None) -> None:
    writer, reader = Places(path), Places(path)
    put(writer, *range(10))
    stop, lost = threading.Event(), []

    def read(table: Places) -> None:
        while not stop.is_set():
            lost.extend(missing(table, range(10)))

    threads = [threading.Thread(target=read, args=(table,)) for table in (writer, reader)]
    for thread in threads:
        thread.start()
    for i in range(10, 4000):
        put(writer, i)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert lost == []
    assert missing(reader, range(4000)) == []


def _write(path: str, first: int, last: int) -> None:
    table = Places(path)
    assert not table.is_new
    for i in range(first, last):
        put(table, i)
        if i % 4 == 3:
            table.remove([name_of(i)])
    assert missing(table, range(first, last, 4)) == []


def test_processes_that_write_at_once_lose_nothing(path: str, smallest: None) -> None:
    table = Places(path)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_write, args=(path, 1000 * n, 1000 * n + 1000)) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for part in range(3):
        assert missing(table, range(part, 4000, 4)) == []
    assert all(table.find(name_of(i)) is None for i in range(3, 4000, 4))
    assert os.listdir(os.path.dirname(path)) == ["places"]


def test_several_may_make_the_table_at_once(path: str, smallest: None) -> None:
    """All must end up with the same one, or what some put the others would never find."""
    for _ in range(20):
        gate = threading.Barrier(4)
        tables: list[Places] = []

        def make(gate: threading.Barrier = gate, tables: list[Places] = tables) -> None:
            gate.wait(30)
            tables.append(Places(path))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        current = [table for table in tables if not table.is_lost()]
        assert current
        put(current[0], 1)
        assert [table.find(name_of(1)) for table in current] == [place_of(1)] * len(current)
        assert os.listdir(os.path.dirname(path)) == ["places"]
        os.unlink(path)


@pytest.mark.parametrize("how", ["deleted", "empty", "cut", "garbage", "grown"])
def test_a_file_that_is_no_table_is_made_anew(path: str, how: str) -> None:
    put(Places(path), *range(100))
    _break(path, how)
    table = Places(path)
    assert table.is_new
    assert table.find(name_of(1)) is None
    put(table, 1)
    assert not Places(path).is_new
    assert Places(path).find(name_of(1)) == place_of(1)


def _break(path: str, how: str) -> None:
    if how == "deleted":
        os.unlink(path)
        return
    with open(path, "r+b") as file:
        if how == "empty":
            file.truncate(0)
        elif how == "cut":
            file.truncate(os.path.getsize(path) - 1024)
        elif how == "garbage":
            file.write(os.urandom(4096))
        else:
            file.seek(0, os.SEEK_END)
            file.write(bytes(1024))


def test_tables_that_nobody_finished_go_once_nobody_can_be_making_them(tmp_path: Path) -> None:
    with Cache(str(tmp_path)) as cache:
        cache.get("k", lambda: b"x")
    old, young = (tmp_path / OURS / f"places.{i:016x}" for i in range(2))
    for path in (old, young):
        path.write_bytes(bytes(4096))
    os.utime(old, (0, 0))
    with Cache(str(tmp_path)) as cache:
        assert cache.read("k") == b"x"
        assert not old.exists()
        assert young.exists()


@pytest.mark.parametrize("how", ["deleted", "empty", "cut", "garbage"])
def test_a_cache_whose_table_was_broken_finds_its_entries_again(tmp_path: Path, how: str) -> None:
    with Cache(str(tmp_path)) as cache:
        for i in range(300):
            cache.get(str(i), lambda i=i: bytes([i % 256]) * i)
    _break(str(tmp_path / OURS / "places"), how)
    with Cache(str(tmp_path)) as cache:
        assert cache.check() == []
        for i in range(300):
            assert cache.read(str(i)) == bytes([i % 256]) * i
        assert cache.stats.hits == 300
        assert len(cache.entries()) == 300


def test_a_table_deleted_while_caches_are_open_is_found_again_by_all(tmp_path: Path) -> None:
    with Cache(str(tmp_path)) as one, Cache(str(tmp_path)) as two:
        for i in range(40):
            (one, two)[i % 2].get(str(i), lambda i=i: bytes([i]) * 100)
        os.unlink(tmp_path / OURS / "places")
        with Cache(str(tmp_path)) as new:
            for i in range(40, 80):
                (one, two, new)[i % 3].get(str(i), lambda i=i: bytes([i]) * 100)
            for cache in (one, two, new):
                cache.flush()
            assert new.check() == []
            for cache in (one, two, new):
                for i in range(80):
                    assert cache.get(str(i), lambda: b"never") == bytes([i]) * 100
                assert cache.check() == []


def test_a_deleted_or_replaced_table_is_seen_to_be_lost(path: str) -> None:
    table = Places(path)
    assert not table.is_lost()
    os.unlink(path)
    assert table.is_lost()
    other = Places(path)
    assert other.is_new
    assert table.is_lost()
    assert not other.is_lost()


def test_growth_is_no_loss(path: str, smallest: None) -> None:
    table, other = Places(path), Places(path)
    put(table, *range(1000))
    assert not table.is_lost()
    assert not other.is_lost()


def test_what_a_lease_has_behind_the_ends_of_its_segments_is_told(
    path: str, smallest: None
) -> None:
    table = Places(path)
    mine, others = 1 << 63, (1 << 63) + 1
    places = {
        entry_name(f"{lease}-{segment}-{start}"): Place(lease, segment, start, 100, 5, 6, 7)
        for lease in (mine, others)
        for segment in range(3)
        for start in range(0, 40960, 4096)
    }
    table.put(places.items())
    removed = entry_name(f"{mine}-1-0")
    table.remove([removed])
    ends = {0: 4096 * 3 + 100, 2: 4096 * 10}  # of segment 1 nothing is recorded
    found = table.behind(mine, ends)
    assert dict(found) == {
        name: place
        for name, place in places.items()
        if place.lease == mine and place.start >= ends.get(place.segment, 0) and name != removed
    }
    assert len(found) == 6 + 9
    assert table.behind(5, {}) == []


def test_asking_is_noted_only_where_the_entry_still_lies(path: str) -> None:
    table = Places(path)
    put(table, 1, 2)
    began = time.time_ns()
    table.note_asked(name_of(1), place_of(1))
    noted = table.find(name_of(1))
    assert noted is not None
    assert noted._replace(asked_ns=0) == place_of(1)._replace(asked_ns=0)
    assert began <= noted.asked_ns <= time.time_ns()
    assert table.find(name_of(2)) == place_of(2)

    table.put([(name_of(1), place_of(1, start=4096))])  # replaced meanwhile
    table.note_asked(name_of(1), noted)
    assert table.find(name_of(1)) == place_of(1, start=4096)

    table.remove([name_of(1)])  # removed meanwhile
    table.note_asked(name_of(1), place_of(1, start=4096))
    assert table.find(name_of(1)) is None


def test_a_table_that_cannot_grow_still_takes_what_is_new(
    path: str, smallest: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="shardkit")
    table = Places(path)
    put(table, *range(16))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for i in range(16, 40):
        put(table, i)
        assert table.find(name_of(i)) == place_of(i)
    assert "can't grow" in caplog.text
    found = {i: table.find(name_of(i)) for i in range(40)}
    assert all(place in (None, place_of(i)) for i, place in found.items())
    assert len([place for place in found.values() if place is not None]) == 16
    assert os.listdir(os.path.dirname(path)) == ["places"]
    monkeypatch.undo()
    put(table, 40, 41)
    assert os.path.getsize(path) > 4096 + 1024  # there is room again


def test_a_cache_whose_table_cannot_grow_goes_on_and_is_sound(
    tmp_path: Path,
    smallest: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with Cache(str(tmp_path)) as cache:
        for i in range(60):
            if i == 10:
                monkeypatch.setattr(os, "posix_fallocate", full)
            data = bytes([i + 1]) * 100
            assert cache.get(str(i), lambda data=data: data) == data
            assert cache.read(str(i)) == data
        for i in range(60):
            assert cache.read(str(i)) in (None, bytes([i + 1]) * 100)
        assert cache.stats.damaged == 0
        monkeypatch.undo()
        for i in range(60):  # what is found no more is fetched again, and takes its own place
            data = bytes([i + 1]) * 100
            assert cache.get(str(i), lambda data=data: data) == data
        assert cache.check() == []
        assert len(cache.entries()) == 60
        assert packed_bytes(tmp_path) == 60 * BLOCK


def test_digests_depend_on_the_name(path: str) -> None:
    assert digest_of(name_of(1), b"x") == digest_of(name_of(1), b"x")
    assert digest_of(name_of(1), b"x") != digest_of(name_of(2), b"x")
    assert digest_of(name_of(1), b"") != digest_of(name_of(2), b"")
