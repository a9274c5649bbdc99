from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardkit.errors import CacheError, ConfigError, CorruptError
from shardkit.storage.cache import Cache, CachedObject, Sink
from shardkit.storage.entries import entry_name, is_entry_name
from shardkit.storage.filesystems import filesystem_of, is_network_path
from shardkit.storage.policies import POLICIES
from tests.storage.disk import (
    BLOCK,
    OURS,
    damage,
    disk_bytes,
    entry_files,
    open_in,
    packed_bytes,
    segments,
)


def filler(data: bytes) -> Callable[[Sink], None]:
    return lambda sink: sink.write(data)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """A cache folder that is sound again at the end of every test."""
    yield str(tmp_path / "cache")
    with Cache(str(tmp_path / "cache")) as cache:
        assert cache.check() == []


def where(cache: Cache, key: str) -> CachedObject:
    (found,) = [entry for entry in cache.entries() if entry.key == key]
    return found


@pytest.mark.parametrize("as_file", [False, True], ids=["packed", "file"])
class TestTheLimitOfSmallObjects:
    def test_four_epochs_over_four_times_the_limit_never_exceed_it(
        self, folder: str, as_file: bool
    ) -> None:
        """The scenario: 40 objects of 4096 B, a limit of 40,960 B, 4 epochs."""
        limit, most = 10 * BLOCK, 0
        with Cache(folder, limit) as cache:
            for _ in range(4):
                for i in range(40):
                    data = bytes([i]) * BLOCK
                    assert cache.get(f"k{i}", lambda data=data: data, as_file=as_file) == data
                    most = max(most, disk_bytes(folder))
                    assert most <= limit
            assert len(cache.entries()) == 10
            assert most == limit  # all of it is used, and counted
            assert packed_bytes(folder) == (0 if as_file else limit)

    def test_sizes_of_all_kinds_obey_it_block_by_block(self, folder: str, as_file: bool) -> None:
        limit = 100 * BLOCK
        with Cache(folder, limit) as cache:
            for i in range(300):
                size = i * 7919 % 40 * BLOCK
                data = bytes([i % 256]) * size
                assert cache.get(f"k{i}", lambda data=data: data, as_file=as_file) == data
                assert disk_bytes(folder) <= limit
            assert cache.check() == []
            held = sum(entry.size for entry in cache.entries())
            assert disk_bytes(folder) == held > limit - 40 * BLOCK

    def test_two_instances_in_one_process_share_folder_and_limit(
        self, folder: str, as_file: bool
    ) -> None:
        limit = 10 * BLOCK
        with Cache(folder, limit) as one, Cache(folder, limit) as two:
            for i in range(50):
                (one, two)[i % 2].get(f"k{i}", lambda: b"x" * BLOCK, as_file=as_file)
                assert disk_bytes(folder) <= limit
            assert one.get("k49", lambda: b"fetched again") == b"x" * BLOCK


class TestTheLimit:
    def test_none_keeps_everything(self, folder: str) -> None:
        with Cache(folder, None) as cache:
            for i in range(40):
                cache.get(f"k{i}", lambda: b"x" * 1000)
            assert len(cache.entries()) == 40

    def test_a_limit_smaller_than_one_object_is_an_error_that_says_so(self, folder: str) -> None:
        with Cache(folder, 999) as cache:
            with pytest.raises(
                CacheError, match=r"cache_limit=999 .*smaller than one object.*1000"
            ):
                cache.get("k", lambda: b"x" * 1000)
            with pytest.raises(CacheError, match="smaller than one object"):
                cache.open("k", filler(b"x" * 1000))  # of unknown size
            assert disk_bytes(folder) == 0

    def test_room_is_reserved_before_anything_is_fetched(self, folder: str) -> None:
        def fill(sink: Sink) -> None:
            with (
                Cache(folder, 10_000) as other,
                other.open("b", filler(b"b" * 5000), size=5000) as b,
            ):
                assert not b.is_cached  # 6,000 are spoken for, though none is written
            sink.write(b"a" * 6000)

        with Cache(folder, 10_000) as cache:
            cache.open("a", fill, size=6000).close()

    def test_objects_of_unknown_size_obey_it_too(self, folder: str) -> None:
        with Cache(folder, 20_000) as cache:
            for i in range(30):
                with cache.open(f"k{i}", filler(bytes([i]) * 3000)) as entry:
                    assert entry.size == 3000
                assert disk_bytes(folder) <= 20_000
            assert len(cache.entries()) == 6


class TestTheDisk:
    """What ``du`` shows of objects that end in the middle of a block, sampled from outside."""

    @pytest.mark.parametrize(("limit", "size"), [(10_000, 1_000), (8_000_000, 1_000)])
    def test_two_processes_take_no_more_than_limit_and_allowance(
        self, folder: str, limit: int, size: int
    ) -> None:
        allowance, behind = 4 << 20, 200 * 2 * BLOCK
        count = 2 * limit // size
        both = [
            subprocess.Popen(
                [sys.executable, "-c", FILL, folder, *map(str, (limit, size, count, i))]
            )
            for i in range(2)
        ]
        most = 0
        try:
            while any(each.poll() is None for each in both):
                time.sleep(0.02)
                with stopped(both):  # else what moves meanwhile is counted twice
                    most = max(most, blocks_of(folder))
        finally:
            for each in both:
                each.kill()
                each.wait()
        assert [each.returncode for each in both] == [0, 0]
        assert most <= limit + allowance + behind
        assert blocks_of(folder) <= limit + allowance
        with Cache(folder, limit) as cache:
            held = [entry.size for entry in cache.entries()]
        most_counted = (limit + allowance) // (size + BLOCK)
        assert sum(held) <= limit
        assert len(held) >= 0.95 * min(limit // size, most_counted)

    def test_ten_small_objects_fit_where_ten_blocks_would_not(self, folder: str) -> None:
        with Cache(folder, 10_000) as cache:
            for i in range(40):
                cache.get(f"k{i}", lambda: b"x" * 1000)
            assert len(cache.entries()) == 10

    def test_segments_under_a_small_limit_are_short(self, folder: str) -> None:
        with Cache(folder, 100 * BLOCK) as cache:
            for i in range(2000):
                cache.get(f"k{i}", lambda: b"x" * BLOCK)
            lengths = [path.stat().st_size for path in segments(folder)]
        assert max(lengths) <= 1 << 20
        assert len(lengths) <= 3


FILL = """
import sys
from shardkit.storage.cache import Cache
limit, size, count, own = map(int, sys.argv[2:])
with Cache(sys.argv[1], limit) as cache:
    for i in range(count):
        cache.get(f"{own}-{i}", lambda: bytes([1 + i % 250]) * size)
"""


@contextlib.contextmanager
def stopped(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Let children that have not ended do nothing meanwhile."""
    for each in processes:
        each.send_signal(signal.SIGSTOP)
    for each in processes:
        if each.returncode is None:
            os.waitid(os.P_PID, each.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    yield
    for each in processes:
        each.send_signal(signal.SIGCONT)


def blocks_of(folder: str) -> int:
    """Bytes that entries and temporaries take on the disk, as ``du`` counts."""
    root, found = Path(folder) / OURS, 0
    for path in (*root.glob("segments/*"), *root.glob("entries/*/*"), *root.glob("asides/*/*")):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found


class TestPins:
    def test_an_open_entry_is_never_evicted(self, folder: str) -> None:
        with Cache(folder, 10_000) as cache:
            with cache.open("pinned", filler(b"p" * 4000), size=4000) as entry:
                for i in range(20):
                    cache.get(f"k{i}", lambda: b"x" * 1000)
                assert bytes(entry.data) == b"p" * 4000
                assert Path(entry.path).read_bytes() == b"p" * 4000
            for i in range(20, 40):
                cache.get(f"k{i}", lambda: b"x" * 1000)
            assert cache.find("pinned") is None

    def test_when_everything_is_pinned_objects_pass_through_memory(self, folder: str) -> None:
        with Cache(folder, 10_000) as cache:
            pinned = [cache.open(f"p{i}", filler(b"p" * 5000), size=5000) for i in range(2)]
            with cache.open("more", filler(b"m" * 5000), size=5000) as entry:
                assert not entry.is_cached
                assert bytes(entry.data) == b"m" * 5000
                assert Path(entry.path).read_bytes() == b"m" * 5000
            assert cache.get("small", lambda: b"s") == b"s"
            with pytest.raises(BlockingIOError):
                cache.open("no", filler(b"n" * 5000), size=5000, room="or raise")
            assert disk_bytes(folder) == 10_000
            for entry in pinned:
                entry.close()
            with cache.open("more", filler(b"m" * 5000), size=5000) as entry:
                assert entry.is_cached

    def test_views_stay_valid_after_close_and_clear(self, folder: str) -> None:
        with Cache(folder) as cache:
            entry = cache.open("k", filler(b"v" * 5000), size=5000)
            view = entry.data[10:20]
            entry.close()
            assert cache.clear() == 5000
            assert bytes(view) == b"v" * 10
            with pytest.raises(ValueError, match="closed"):
                _ = entry.data

    def test_clear_spares_what_is_open(self, folder: str) -> None:
        with Cache(folder) as cache, cache.open("k", filler(b"v"), size=1):
            assert cache.clear() == 0
            assert len(cache.entries()) == 1

    def test_empty_objects_are_objects(self, folder: str) -> None:
        with Cache(folder) as cache:
            assert cache.get("none", lambda: b"") == b""
            with cache.open("none", filler(b"never")) as entry:
                assert bytes(entry.data) == b""


class TestSingleFlight:
    def test_many_threads_asking_for_one_object_fetch_it_once(self, folder: str) -> None:
        fetched = []

        def load() -> bytes:
            fetched.append(1)
            time.sleep(0.1)
            return b"once"

        with Cache(folder) as one, Cache(folder) as two:
            found: list[bytes] = []
            threads = [
                threading.Thread(target=lambda c=cache: found.append(c.get("k", load)))
                for cache in (one, two) * 8
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [b"once"] * 16
            assert len(fetched) == 1

    def test_a_failed_fetch_is_raised_and_the_next_in_line_tries(self, folder: str) -> None:
        with Cache(folder) as cache:

            def fail(sink: Sink) -> None:
                sink.write(b"half")
                raise ConnectionError("gone")

            with pytest.raises(ConnectionError, match="gone"):
                cache.open("k", fail, size=8)
            assert disk_bytes(folder) == 0
            assert cache.get("k", lambda: b"whole") == b"whole"

    def test_a_wrong_size_is_corrupt_and_kept_by_nobody(self, folder: str) -> None:
        with Cache(folder) as cache:
            with pytest.raises(CorruptError, match=r"k has 4 bytes, 8 were expected"):
                cache.open("k", filler(b"half"), size=8)
            assert cache.find("k") is None

    def test_an_interrupt_in_the_middle_leaves_nothing(self, folder: str) -> None:
        with Cache(folder, 10_000) as cache:

            def interrupted(sink: Sink) -> None:
                sink.write(b"x" * 100)
                raise KeyboardInterrupt

            for _ in range(5):
                with pytest.raises(KeyboardInterrupt):
                    cache.open("k", interrupted, size=9000)
            assert disk_bytes(folder) == 0
            cache.open("k", filler(b"k" * 9000), size=9000).close()


class TestDamage:
    @pytest.mark.parametrize("how", ["flip", "cut", "delete"])
    @pytest.mark.parametrize("neighbours", [0, 3])
    def test_a_packed_entry_damaged_behind_our_back_is_dropped_and_fetched_again(
        self, folder: str, how: str, neighbours: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        for ask in ("get", "open", "find", "get_fresh"):
            with Cache(folder) as cache:
                for i in range(neighbours):
                    cache.get(f"{ask}{i}", lambda i=i: bytes([i]) * 5000)
                cache.get(ask, lambda: b"sound" * 1000)
                entry = where(cache, ask)
                assert Path(entry.path) in segments(folder)
                assert (entry.start, entry.size) == (neighbours * 2 * BLOCK, 5000)
                damage(entry.path, entry.start, entry.size, how)
                told = cache.check()
                assert len(told) == (1 if how != "delete" else 1 + neighbours)
                word = "not on the disk" if how == "delete" else "was changed"
                assert any(ask in line and word in line for line in told)
                if ask == "get":
                    assert cache.get(ask, lambda: b"fresh") == b"fresh"
                elif ask == "get_fresh":
                    found = cache.get_fresh(ask, lambda: (b"fresh", "1"), lambda: "1", since_ns=0)
                    assert found == b"fresh"
                elif ask == "find":
                    assert cache.find(ask) is None
                else:
                    with cache.open(ask, filler(b"fresh"), size=5) as opened:
                        assert bytes(opened.data) == b"fresh"
                assert cache.stats.damaged == 1
                for i in range(neighbours):
                    data = bytes([i]) * 5000
                    assert cache.get(f"{ask}{i}", lambda data=data: data) == data
                assert cache.stats.damaged == (1 if how != "delete" else 1 + neighbours)
                assert cache.check() == []

    @pytest.mark.parametrize("how", ["flip", "cut", "grow", "delete"])
    def test_a_file_damaged_behind_our_back_is_dropped_and_fetched_again(
        self, folder: str, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        for ask in ("get", "open"):
            with Cache(folder) as cache:
                cache.get(ask, lambda: b"sound" * 1000, as_file=True)
                entry = where(cache, ask)
                assert Path(entry.path) in entry_files(folder)
                damage(entry.path, entry.start, entry.size, how)
                assert len(cache.check()) == 1
                if ask == "get":
                    assert cache.get(ask, lambda: b"fresh") == b"fresh"
                else:
                    with cache.open(ask, filler(b"fresh"), size=5) as opened:
                        assert bytes(opened.data) == b"fresh"
                assert cache.stats.damaged == (how != "delete")  # what is gone is a miss
                assert cache.check() == []

    def test_repair_makes_ledger_and_disk_agree(self, folder: str) -> None:
        with Cache(folder, 100_000) as cache:
            for i in range(8):
                cache.get(f"k{i}", lambda: b"x" * 1000, as_file=i < 4)
            for i in (0, 4):
                entry = where(cache, f"k{i}")
                damage(entry.path, entry.start, entry.size, "flip")
            Path(where(cache, "k1").path).unlink()
            unknown = Path(folder) / "shardkit-cache-2" / "entries" / "00" / ("0" * 32)
            unknown.parent.mkdir(exist_ok=True)
            unknown.write_bytes(b"nobody knows me")
            (segments(folder)[0].parent / ("0" * 16 + "-7")).write_bytes(b"nor me")
            assert len(cache.check()) == 5
            assert len(cache.check()) == 5  # it changes nothing
            assert len(cache.repair()) == 5
            assert cache.check() == []
            assert {e.key for e in cache.entries()} == {"k2", "k3", "k5", "k6", "k7"}
            assert disk_bytes(folder) == 2 * 1000 + 3 * BLOCK

    def test_a_ledger_that_is_gone_is_made_anew_and_the_disk_is_not_leaked(
        self, folder: str
    ) -> None:
        limit = 10 * BLOCK
        with Cache(folder, limit) as cache:
            for i in range(8):
                cache.get(f"k{i}", lambda: b"x" * BLOCK, as_file=i % 2 == 0)
        for file in Path(folder).rglob("ledger.sqlite*"):
            file.unlink()
        with Cache(folder, limit) as cache:
            assert cache.check() == []
            for i in range(20):
                cache.get(f"n{i}", lambda: b"x" * BLOCK, as_file=i % 2 == 0)
                assert disk_bytes(folder) <= limit

    def test_a_ledger_that_is_garbage_is_an_error_with_the_remedy(self, tmp_path: Path) -> None:
        with Cache(str(tmp_path)) as cache:
            cache.get("k", lambda: b"x")
        (tmp_path / "shardkit-cache-2" / "ledger.sqlite").write_bytes(b"garbage" * 1000)
        with pytest.raises(CacheError, match=r"ledger of the cache .*remove .*only a cache"):
            Cache(str(tmp_path)).get("k", lambda: b"x")

    def test_what_is_not_the_caches_own_is_never_deleted(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_bytes(b"mine")
        with Cache(str(tmp_path), 5000) as cache:
            cache.get("k", lambda: b"x")
            (tmp_path / "shardkit-cache-2" / "entries" / "note.txt").write_bytes(b"mine")
            for i in range(20):
                cache.get(f"k{i}", lambda: b"x" * 1000)
            cache.clear()
            cache.repair()
        assert (tmp_path / "precious").read_bytes() == b"mine"
        assert (tmp_path / "shardkit-cache-2" / "entries" / "note.txt").exists()


class TestPolicies:
    def test_least_recently_used_goes_first(self, folder: str) -> None:
        with Cache(folder, 10_000, policy="lru") as cache:
            for i in range(10):
                cache.get(f"k{i}", lambda: b"x" * 1000)
            cache.get("k0", lambda: b"fetched again")
            for i in range(10, 15):
                cache.get(f"k{i}", lambda: b"x" * 1000)
            kept = {entry.key for entry in cache.entries()}
            assert "k0" in kept
            assert not kept & {"k1", "k2", "k3", "k4", "k5"}

    def test_next_use_keeps_what_is_needed_soonest(self, folder: str) -> None:
        with Cache(folder, 10_000) as cache:
            for i in range(10):
                cache.open(f"k{i}", filler(b"x" * 1000), size=1000, due=100 - i).close()
            for i in range(3):
                cache.open(f"n{i}", filler(b"x" * 1000), size=1000, due=50).close()
            kept = {entry.key for entry in cache.entries()}
            assert not kept & {"k0", "k1", "k2"}  # those due latest

    def test_what_nobody_plans_to_use_goes_before_what_is_planned(self, folder: str) -> None:
        with Cache(folder, 10_000) as cache:
            for i in range(10):
                due = None if i % 2 else 1e9
                cache.open(f"k{i}", filler(b"x" * 1000), size=1000, due=due).close()
            for i in range(5):
                cache.open(f"n{i}", filler(b"x" * 1000), size=1000, due=5.0).close()
            assert {e.key for e in cache.entries()} >= {"k0", "k2", "k4", "k6", "k8"}

    def test_plans_end_with_their_consumer(self, folder: str) -> None:
        """Else what a past job wanted soon would hold the space of every later job."""
        with Cache(folder, 10_000) as past:
            for i in range(10):
                past.open(f"k{i}", filler(b"x" * 1000), size=1000, due=1.0).close()
        with Cache(folder, 10_000) as cache:
            for i in range(10):
                cache.open(f"n{i}", filler(b"x" * 1000), size=1000, due=100.0 + i).close()
            assert {e.key for e in cache.entries()} == {f"n{i}" for i in range(10)}

    def test_there_is_a_table_and_others_are_refused(self, tmp_path: Path) -> None:
        assert set(POLICIES) == {"lru", "next-use"}
        with pytest.raises(ConfigError, match="must be one of lru, next-use"):
            Cache(str(tmp_path), policy="random")  # type: ignore[arg-type]


class TestTheFolder:
    def test_a_network_filesystem_is_refused_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = tmp_path / "mountinfo"
        table.write_text(
            "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
            f"2 1 0:50 / {tmp_path}/nfs\\040share rw shared:1 - nfs4 host:/x rw\n"
            f"3 1 0:51 / {tmp_path}/fuse rw - fuse.sshfs host:/x rw\n"
        )
        assert filesystem_of(f"{tmp_path}/nfs share/cache", str(table)) == "nfs4"
        assert filesystem_of(f"{tmp_path}/fuse/c", str(table)) == "fuse.sshfs"
        assert filesystem_of(f"{tmp_path}/fused", str(table)) == "ext4"
        assert not is_network_path(str(tmp_path))
        monkeypatch.setattr("shardkit.storage.opened.is_network_path", lambda _: True)
        with pytest.raises(CacheError, match=r"network filesystem .*disk of this machine"):
            Cache(str(tmp_path)).get("k", lambda: b"")

    def test_one_that_cannot_be_made_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(CacheError, match="cannot open the cache"):
            Cache(str(tmp_path / "file")).get("k", lambda: b"")

    def test_sizes_are_written_as_people_write_them(self, tmp_path: Path) -> None:
        assert Cache(str(tmp_path), "10kb").limit == 10_240
        with pytest.raises(ConfigError, match="cache_limit"):
            Cache(str(tmp_path), "many")
        with pytest.raises(ConfigError, match="cache_limit"):
            Cache(str(tmp_path), 0)

    def test_it_is_made_on_first_use_not_before(self, tmp_path: Path) -> None:
        cache = Cache(str(tmp_path / "x"))
        assert not (tmp_path / "x").exists()
        cache.close()
        cache.get("k", lambda: b"")
        assert (tmp_path / "x").exists()
        cache.close()

    def test_a_hit_writes_nothing(self, folder: str) -> None:
        with Cache(folder) as cache:
            cache.get("k", lambda: b"x")
            cache.open("f", filler(b"x")).close()
            cache.flush()
            before = {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}
            for _ in range(50):
                cache.get("k", lambda: b"never")
                cache.open("f", filler(b"never")).close()
            assert {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")} == before


def test_local_files_are_remembered_as_verified_until_they_change(
    folder: str, tmp_path: Path
) -> None:
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"one")
    with Cache(folder) as cache:
        assert not cache.is_verified(str(shard))
        cache.note_verified(str(shard))
        assert cache.is_verified(str(shard))
    with Cache(folder) as cache:
        assert cache.is_verified(str(shard))
        shard.write_bytes(b"two!")
        assert not cache.is_verified(str(shard))


def test_a_new_boot_trusts_only_what_had_settled(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a power cut, files written last may be holes of the right size."""
    with Cache(folder) as cache:
        for as_file in (False, True):
            cache.get(f"old{as_file}", lambda: b"old", as_file=as_file)
            cache.get(f"young{as_file}", lambda: b"young", as_file=as_file)
        opened = cache._open()
        opened.space.flush()
        with opened.space._ledger.transaction():
            opened.space._ledger._db.execute(
                "UPDATE entries SET created=1, last_used=1 WHERE key LIKE 'old%'"
            )
    (tmp_path / "boot").write_text("another boot")
    monkeypatch.setattr("shardkit.storage.mending._BOOT_ID", str(tmp_path / "boot"))
    with Cache(folder) as cache:
        assert {entry.key for entry in cache.entries()} == {"oldFalse", "oldTrue"}
        assert cache.check() == []
        assert disk_bytes(folder) == BLOCK + 3
        assert cache.get("youngFalse", lambda: b"again") == b"again"


def test_closing_twice_and_using_again_is_fine(folder: str) -> None:
    cache = Cache(folder)
    cache.close()
    cache.get("k", lambda: b"x")
    cache.close()
    cache.close()
    assert cache.get("k", lambda: b"never") == b"x"
    cache.close()


def test_descriptors_and_threads_are_flat_over_fifty_epochs(folder: str) -> None:
    others = set(threading.enumerate())

    def own_threads() -> int:
        return len(set(threading.enumerate()) - others)

    with Cache(folder, 20_000) as cache:
        counts = []
        for _ in range(50):
            entries = [cache.open(f"k{i}", filler(b"x" * 1000), size=1000) for i in range(30)]
            for entry in entries:
                _ = entry.data
                entry.close()
            counts.append((len(open_in(folder)), own_threads()))
        assert counts[0] == counts[-1]


def test_pins_are_shared_locks_so_readers_never_wait_for_readers(folder: str) -> None:
    with Cache(folder) as cache, cache.open("k", filler(b"x"), size=1) as entry:
        fd = os.open(entry.path, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


@pytest.mark.parametrize(
    ("key", "ext"),
    [
        ("https://a.example/b/photo.jpg\n5", ".jpg"),
        ("https://a.example/b/photo.JPG?sig=x.y/z.png\n5", ".jpg"),
        ("s3://bucket/v1.2/labels.tar.gz\nv1\n0-10", ".gz"),
        ("s3://bucket/v1.2/photo\nv1.jpg", ""),
        ("s3://bucket/photo.\n", ""),
        ("s3://bucket/photo.j pg\n", ""),
        ("s3://bucket/photo.größe\n", ""),
        ("s3://bucket/what.happened_here\n", ""),
        ("https://a.example/photo?file=b.png\n", ""),
        ("jpg", ""),
    ],
)
def test_an_entry_is_named_by_the_hash_of_its_key_and_the_ext_of_its_url(
    key: str, ext: str
) -> None:
    name = entry_name(key)
    assert name[32:] == ext
    assert is_entry_name(name)
    assert not is_entry_name(name[:32] + ".a/b")


def test_a_cache_whose_names_have_no_ext_goes_on_with_all_that_it_holds(folder: str) -> None:
    """As it was left before entries had one; the first who renamed files was killed halfway."""
    keys = [f"s3://bucket/{number}.jpg\n1" for number in range(4)]
    with Cache(folder) as cache:
        for number, key in enumerate(keys):
            cache.get(key, lambda: b"x" * 5_000, as_file=number < 2)
    ledger = sqlite3.connect(f"{folder}/{OURS}/ledger.sqlite")
    ledger.execute("UPDATE entries SET name = substr(name, 1, 32)")
    ledger.execute("DELETE FROM facts WHERE name = 'names'")
    ledger.commit()
    ledger.close()
    first = Path(folder, OURS, "entries", entry_name(keys[0])[:2], entry_name(keys[0]))
    first.rename(first.with_suffix(""))
    with Cache(folder) as cache:
        assert cache.check() == []
        for key in keys:
            assert cache.get(key, lambda: b"fetched again") == b"x" * 5_000
            with cache.open(key, filler(b"fetched again")) as entry:
                assert entry.path.endswith(".jpg")
        assert len(cache.entries()) == 4
        cache.clear()
        assert (packed_bytes(folder), entry_files(folder)) == (0, [])
