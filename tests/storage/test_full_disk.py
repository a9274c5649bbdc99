"""A disk that is really full: a small tmpfs of its own, where the machine lets us mount one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit.errors import CacheError, StoreError
from shardkit.storage.cache import Cache, CachedObject
from shardkit.storage.space import Space
from shardkit.storage.store import open_store
from tests.small_disk import small_disk
from tests.storage.disk import BLOCK, disk_bytes, entry_files, packed_bytes

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a filesystem of 16 MiB."""
    with small_disk(tmp_path / "small", "16m") as folder:
        yield folder


def test_a_full_disk_evicts_and_goes_on(small: Path) -> None:
    with Cache(str(small), None) as cache:  # no limit of ours: the disk is the limit
        for i in range(40):
            with cache.open(f"k{i}", lambda s, i=i: s.write(bytes([i]) * MIB), size=MIB) as entry:
                assert entry.is_cached
                assert bytes(entry.data[:1]) == bytes([i])
        for i in range(200):
            assert cache.get(f"s{i}", lambda: b"s" * 100_000) == b"s" * 100_000
        assert cache.check() == []


def test_a_disk_full_of_other_things_is_a_clear_error_and_goes_on_when_there_is_room(
    small: Path,
) -> None:
    with Cache(str(small), "1gb") as cache:
        cache.get("small", lambda: b"x")
        other = small / "other"
        _fill_up(other)
        for size in (8 * MIB, -1):
            with pytest.raises(
                CacheError, match=r"disk of the cache .* is full.*make room"
            ) as caught:
                cache.open("k", lambda s: s.write(b"k" * 8 * MIB), size=size)
            assert caught.value.errno == 28
        with pytest.raises(CacheError, match="is full"):
            cache.get("k", lambda: b"k" * MIB)
        assert other.exists()  # what is not ours is left alone
        other.unlink()
        with cache.open("k", lambda s: s.write(b"k" * 8 * MIB), size=8 * MIB) as entry:
            assert entry.is_cached
        assert cache.check() == []


def test_packed_entries_on_a_full_disk_come_and_go_and_no_byte_is_lost(small: Path) -> None:
    def data(i: int) -> bytes:
        return bytes([i % 255 + 1]) * (i % 7 * 50_000)

    with Cache(str(small), None) as cache:  # no limit of ours: the disk is the limit
        slack = small / "slack"
        slack.write_bytes(b"s" * MIB)
        for i in range(300):  # three times as much as there is room
            assert cache.get(str(i), lambda i=i: data(i)) == data(i)
        slack.unlink()  # upkeep writes the ledger, which needs room
        entries = cache.entries()
        assert 20 < len(entries) < 200
        assert len(entry_files(small)) == 0
        for entry in entries:
            assert cache.get(entry.key, lambda: b"never") == data(int(entry.key))
        assert cache.check() == []
        assert cache.stats.damaged == cache.stats.passed_through == 0
        assert packed_bytes(small) == _in_blocks(entries) > 8 * MIB


def test_a_disk_that_fills_while_objects_are_packed_is_an_error_and_leaves_nothing_half(
    small: Path,
) -> None:
    with Cache(str(small), "1gb") as cache:
        cache.get("first", lambda: b"f" * 100)
        other = small / "other"
        _fill_up(other)
        os.truncate(other, other.stat().st_size - 150 * BLOCK)
        kept = refused = 0
        for i in range(60):  # what is larger than what is left costs all the others
            size = 3 * BLOCK if i % 4 else 200 * BLOCK
            data = bytes([i + 1]) * size
            try:
                assert cache.get(f"k{i}", lambda data=data: data) == data
                kept += 1
                assert cache.read(f"k{i}") == data
            except CacheError as error:
                assert error.errno == errno.ENOSPC
                assert cache.read(f"k{i}") is None
                refused += 1
            assert packed_bytes(small) <= 150 * BLOCK
        assert refused >= 15
        assert kept > 0
        other.unlink()
        assert cache.check() == []
        entries = cache.entries()
        assert disk_bytes(small) == _in_blocks(entries)
        for i in range(60):
            cache.get(f"n{i}", lambda: b"n" * 10_000)
        assert len(cache.entries()) == len(entries) + 60
        assert cache.check() == []


def _in_blocks(entries: list[CachedObject]) -> int:
    return sum(-(-entry.size // BLOCK) * BLOCK for entry in entries)


def test_pinned_entries_survive_a_full_disk(small: Path) -> None:
    with Cache(str(small), None) as cache:
        with cache.open("pinned", lambda s: s.write(b"p" * 4 * MIB), size=4 * MIB) as entry:
            for i in range(20):
                cache.open(f"k{i}", lambda s: s.write(b"k" * 2 * MIB), size=2 * MIB).close()
            assert bytes(entry.data) == b"p" * 4 * MIB
        assert cache.check() == []


def test_writing_to_a_full_disk_says_so_and_leaves_nothing_half_written(small: Path) -> None:
    store = open_store()
    store.put(str(small / "x"), b"old")
    _fill_up(small / "other")
    for write in (
        lambda: store.put(str(small / "x"), b"n" * MIB),
        lambda: store.put_file(str(small / "x"), str(small / "other")),
    ):
        with pytest.raises(StoreError, match="disk is full") as caught:
            write()
        assert caught.value.errno == 28
    assert sorted(os.listdir(small)) == ["other", "x"]
    assert store.get(str(small / "x")) == b"old"


def _fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"o" * 4096)


def test_what_a_full_disk_did_not_take_is_told_where_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who leaves an object to another thread to write has gone by then: it is logged."""
    caplog.set_level(logging.WARNING, logger="shardkit")

    def fail(space: Space, objects: object) -> bool:
        raise CacheError("nothing can be written")

    with Cache(str(tmp_path)) as cache:
        monkeypatch.setattr(Space, "keep", fail)
        with pytest.raises(CacheError, match="nothing can be written"):
            cache.get("own", lambda: b"x")
        keeper = cache._open().keeper
        keeper.rest()  # as while another thread writes
        assert cache.get("left", lambda: b"x") == b"x"
        keeper.go_on()
        keeper.settle()
        assert "fetched and not kept: nothing can be written" in caplog.text
        monkeypatch.undo()
        for key in ("own", "left"):  # and nobody holds their names
            assert cache.get(key, lambda: b"y") == b"y"
