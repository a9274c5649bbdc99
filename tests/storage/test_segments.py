"""Packed entries: appended, read, let go and freed, alone and under a cache."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shardkit.storage import segments as module
from shardkit.storage.cache import Cache
from shardkit.storage.entries import StaleError, entry_name, mark_of
from shardkit.storage.folder import Folder
from shardkit.storage.places import Place, digest_of
from shardkit.storage.segments import MAX_PACKED, Packed, Segments
from tests.storage.disk import (
    BLOCK,
    OURS,
    data_bytes,
    disk_bytes,
    entry_files,
    open_in,
    packed_bytes,
)
from tests.storage.disk import segments as segment_files

SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100_000, MAX_PACKED, 0, 5]


def content(i: int, size: int) -> bytes:
    """Bytes that tell whose they are, and that are no hole's zeros."""
    return ((i + 1).to_bytes(4, "little") * (size // 4 + 1))[:size]


def packed(i: int, size: int, mark: int = 0) -> Packed:
    return pack(i, content(i, size), mark)


def pack(i: int, data: bytes, mark: int = 0) -> Packed:
    name = entry_name(str(i))
    return Packed(name, str(i), data, mark, digest_of(name, data))


def made(root: Path, lease: int = 7) -> Segments:
    folder = Folder(str(root))
    folder.make()
    return Segments(folder, f"{lease:016x}")


def read(segments: Segments, i: int, since_ns: int = 0) -> bytes | None:
    return segments.read(entry_name(str(i)), since_ns)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments end after four blocks."""
    monkeypatch.setattr(module, "_SEGMENT", 4 * BLOCK)


class TestAppending:
    @pytest.mark.parametrize("at_once", [1, len(SIZES)])
    def test_what_was_appended_is_read_by_everybody(self, tmp_path: Path, at_once: int) -> None:
        writer, other = made(tmp_path), made(tmp_path, 8)
        objects = [packed(i, size) for i, size in enumerate(SIZES)]
        places: list[Place] = []
        for start in range(0, len(objects), at_once):
            places += writer.append(objects[start : start + at_once])
        for segments in (writer, other, made(tmp_path, 9)):
            for i, size in enumerate(SIZES):
                assert read(segments, i) == content(i, size)
        assert all(place.start % BLOCK == 0 for place in places)
        assert {place.file for place in places} == {f"{7:016x}-0"}
        blocks = sum(-(-size // BLOCK) for size in SIZES)
        assert data_bytes(segment_files(tmp_path)[0]) == blocks * BLOCK
        assert read(writer, 99) is None

    def test_an_empty_object_is_found_among_others(self, tmp_path: Path) -> None:
        segments = made(tmp_path)
        first, second = segments.append([packed(0, 0), packed(1, 10)])
        assert (first.size, first.start) == (0, second.start)
        segments.places.remove([entry_name("1")])
        segments.free([second])
        assert read(segments, 0) == b""

    def test_a_segment_ends_and_the_next_begins(self, tmp_path: Path, short: None) -> None:
        segments = made(tmp_path)
        files = [segments.append([packed(i, BLOCK)])[0].file for i in range(10)]
        assert files == [f"{7:016x}-{i // 4}" for i in range(10)]
        assert segments.files() == segments.files(f"{7:016x}")
        assert sorted(segments.files()) == sorted(set(files))
        assert segments.files(f"{8:016x}") == []
        assert [read(segments, i) for i in range(10)] == [content(i, BLOCK) for i in range(10)]

    def test_a_failed_append_leaves_no_bytes_and_no_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        segments = made(tmp_path)
        segments.append([packed(0, BLOCK)])
        real = os.pwritev

        def half(fd: int, parts: list[bytes], start: int) -> int:
            real(fd, parts[:1], start)
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "pwritev", half)
        with pytest.raises(OSError, match="full"):
            segments.append([packed(1, 3 * BLOCK), packed(2, BLOCK)])
        monkeypatch.undo()
        assert packed_bytes(tmp_path) == segment_files(tmp_path)[0].stat().st_size == BLOCK
        assert read(segments, 1) is read(segments, 2) is None
        (place,) = segments.append([packed(3, BLOCK)])
        assert place.start == BLOCK
        assert [read(segments, i) for i in (0, 3)] == [content(i, BLOCK) for i in (0, 3)]

    def test_a_write_that_is_cut_short_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        segments = made(tmp_path)
        write_v, write = os.pwritev, os.pwrite
        monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: write_v(fd, [parts[0][:100]], at))
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
        segments.append([packed(0, 5000), packed(1, 0), packed(2, 3000)])
        assert [read(segments, i) for i in range(3)] == [
            content(i, size) for i, size in enumerate((5000, 0, 3000))
        ]


class TestReading:
    def test_what_is_older_than_asked_for_is_stale_until_somebody_asks(
        self, tmp_path: Path
    ) -> None:
        segments, other = made(tmp_path), made(tmp_path, 8)
        (place,) = segments.append([packed(0, 10, mark_of("v1"))])
        assert place.mark == mark_of("v1") != mark_of("v2")
        assert read(segments, 0, place.asked_ns) == content(0, 10)
        for each in (segments, other):
            with pytest.raises(StaleError):
                read(each, 0, place.asked_ns + 1)
        other.places.note_asked(entry_name("0"), place)
        assert read(segments, 0, place.asked_ns + 1) == content(0, 10)

    @pytest.mark.parametrize("at", [0, 5000, 9999])
    def test_a_flipped_bit_anywhere_is_an_error(self, tmp_path: Path, at: int) -> None:
        segments = made(tmp_path)
        places = segments.append([packed(i, 10_000) for i in range(3)])
        with segment_files(tmp_path)[0].open("r+b") as file:
            file.seek(places[1].start + at)
            file.write(bytes([content(1, 10_000)[at] ^ 1]))
        with pytest.raises(ValueError, match=entry_name("1")):
            read(segments, 1)
        assert [segments.is_sound(entry_name(str(i)), places[i]) for i in range(3)] == [
            *(True, False, True)
        ]
        assert read(segments, 0) == content(0, 10_000)

    def test_bytes_of_another_entry_never_pass(self, tmp_path: Path) -> None:
        """What a reader finds while others write may be the place of another name."""
        segments = made(tmp_path)
        one, two = segments.append([pack(i, b"same") for i in (1, 2)])
        segments.places.put([(entry_name("1"), two)])
        with pytest.raises(ValueError, match=entry_name("1")):
            read(segments, 1)
        segments.places.put([(entry_name("1"), one)])
        assert read(segments, 1) == b"same"

    @pytest.mark.parametrize("meanwhile", ["removed", "freed", "deleted", "moved", "stale"])
    def test_what_goes_while_it_is_read_is_gone_and_never_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
    ) -> None:
        """The reader has the segment open, has found the place, and then it happens."""
        writer, reader = made(tmp_path), made(tmp_path, 8)
        (place,) = writer.append([packed(0, 10_000)])
        assert read(reader, 0) == content(0, 10_000)
        find, name = reader.places.find, entry_name("0")
        new = pack(0, b"new bytes")

        def find_then_lose(asked: str) -> Place | None:
            monkeypatch.setattr(reader.places, "find", find)
            found = find(asked)
            if meanwhile != "stale":
                writer.places.remove([name])
            if meanwhile in ("freed", "moved"):
                writer.free([place])
            if meanwhile in ("deleted", "stale"):
                writer.seal()
                assert [writer.remove(file) for file in writer.take_sealed()] == [True]
            if meanwhile == "moved":
                writer.append([new])
            return found

        monkeypatch.setattr(reader.places, "find", find_then_lose)
        if meanwhile == "stale":  # deleted and still in the table: damage, not wrong bytes
            with pytest.raises(ValueError, match=name):
                read(reader, 0)
        else:
            # its bytes lay there until the end of the call: that is no wrong answer
            gone = {"removed": content(0, 10_000), "moved": b"new bytes"}
            assert read(reader, 0) == gone.get(meanwhile)
        if meanwhile in ("deleted", "stale"):
            assert segment_files(tmp_path) == []

    def test_open_files_are_few(self, tmp_path: Path, short: None) -> None:
        segments = made(tmp_path)
        for i in range(400):
            segments.append([packed(i, BLOCK)])
        segments.take_sealed()
        before = len(open_in(tmp_path))
        for _ in range(2):
            for i in range(400):
                assert read(segments, i) == content(i, BLOCK)
        assert len(open_in(tmp_path)) == before + 64
        segments.close()
        assert len(open_in(tmp_path)) < before


class TestLettingGo:
    def test_freed_blocks_are_holes_and_neighbours_stay(self, tmp_path: Path) -> None:
        segments = made(tmp_path)
        places = segments.append([packed(i, size) for i, size in enumerate(SIZES)])
        (file,) = segment_files(tmp_path)
        size, data = file.stat().st_size, data_bytes(file)
        for i in (6, 1, 4, 0, 5):  # neighbours and others, in any order
            segments.places.remove([entry_name(str(i))])
        segments.free(places[i] for i in (6, 1, 4, 0, 5))
        freed = sum(-(-SIZES[i] // BLOCK) for i in (6, 1, 4, 0, 5)) * BLOCK
        assert data_bytes(file) == data - freed
        assert file.stat().st_size == size
        for i in (2, 3, 7, 8):
            assert read(segments, i) == content(i, SIZES[i])
        segments.free(places[:1])  # twice is no error, nor is a segment that is gone
        file.unlink()
        segments.free(places)

    def test_a_segment_that_grows_is_not_deleted(self, tmp_path: Path) -> None:
        writer, other = made(tmp_path), made(tmp_path, 8)
        (place,) = writer.append([packed(0, BLOCK)])
        assert not other.remove(place.file)
        assert not writer.remove(place.file)
        assert read(other, 0) == content(0, BLOCK)
        writer.seal()
        assert not other.remove(place.file)  # not before all in it is recorded
        assert writer.take_sealed() == [place.file]
        assert other.remove(place.file)
        assert segment_files(tmp_path) == []
        assert other.remove(place.file)  # gone is gone

    def test_a_deleted_segment_frees_its_blocks_though_some_have_it_open(
        self, tmp_path: Path
    ) -> None:
        writer, reader = made(tmp_path), made(tmp_path, 8)
        (place,) = writer.append([packed(0, MAX_PACKED)])
        with segment_files(tmp_path)[0].open("rb") as file:
            assert read(reader, 0) == content(0, MAX_PACKED)
            writer.close()
            assert writer.remove(place.file)
            assert os.fstat(file.fileno()).st_size == 0

    def test_what_lies_behind_the_end_of_a_dead_process_is_cut(self, tmp_path: Path) -> None:
        writer, other = made(tmp_path), made(tmp_path, 8)
        places = writer.append([packed(i, 5000) for i in range(3)])
        writer.close()
        other.cut(places[0].file, 5000)
        assert data_bytes(segment_files(tmp_path)[0]) == 5000
        assert read(other, 0) == content(0, 5000)
        for i in (1, 2):
            with pytest.raises(ValueError, match=entry_name(str(i))):
                read(other, i)
        other.cut(places[0].file, 1 << 20)  # never longer
        assert segment_files(tmp_path)[0].stat().st_size == 5000
        other.cut("0" * 16 + "-0", 0)  # gone: no error


class TestInACache:
    def test_small_objects_are_packed_and_large_ones_are_files(self, tmp_path: Path) -> None:
        with Cache(str(tmp_path)) as cache:
            for i, size in enumerate((0, 10, MAX_PACKED, MAX_PACKED + 1)):
                data = content(i, size)
                assert cache.get(str(i), lambda data=data: data) == data
            assert [entry.path for entry in cache.entries() if "/segments/" not in entry.path] == [
                str(path) for path in entry_files(tmp_path)
            ]
            assert [path.stat().st_size for path in entry_files(tmp_path)] == [MAX_PACKED + 1]
            for entry in cache.entries():
                data = Path(entry.path).read_bytes()[entry.start : entry.start + entry.size]
                assert data == content(int(entry.key), entry.size)

    def test_evicted_entries_leave_holes(self, tmp_path: Path) -> None:
        limit = 10 * BLOCK
        with Cache(str(tmp_path), limit) as cache:
            for i in range(25):
                cache.get(str(i), lambda i=i: content(i, BLOCK))
            (file,) = segment_files(tmp_path)
            assert file.stat().st_size == 25 * BLOCK
            assert data_bytes(file) == limit
            assert sorted(int(entry.key) for entry in cache.entries()) == list(range(15, 25))
            with file.open("rb") as raw:
                assert os.lseek(raw.fileno(), 0, os.SEEK_DATA) == 15 * BLOCK
            assert cache.check() == []

    def test_segments_in_which_nothing_is_left_are_deleted(
        self, tmp_path: Path, short: None
    ) -> None:
        with Cache(str(tmp_path), 4 * BLOCK) as cache:
            for i in range(80):
                cache.get(str(i), lambda i=i: content(i, BLOCK))
                assert len(segment_files(tmp_path)) <= 3
            assert cache.check() == []
        with Cache(str(tmp_path), 4 * BLOCK) as cache:
            assert len(cache.entries()) == 4
            cache.clear()
            assert segment_files(tmp_path) == []

    def test_one_that_was_emptied_while_it_grew_goes_when_the_next_has_begun(
        self, tmp_path: Path, short: None
    ) -> None:
        with Cache(str(tmp_path)) as cache:
            for i in range(4):
                cache.get(str(i), lambda i=i: content(i, BLOCK))
            cache.clear()
            (first,) = segment_files(tmp_path)
            assert data_bytes(first) == 0
            cache.get("4", lambda: content(4, BLOCK))
            cache.flush()
            assert first not in segment_files(tmp_path)
            assert len(segment_files(tmp_path)) == 1
            assert cache.read("4") == content(4, BLOCK)
            assert cache.check() == []

    def test_one_that_was_emptied_while_it_grew_goes_with_its_process(self, tmp_path: Path) -> None:
        with Cache(str(tmp_path)) as cache:
            cache.get("0", lambda: content(0, BLOCK))
            cache.clear()
            assert len(segment_files(tmp_path)) == 1
        assert segment_files(tmp_path) == []

    @pytest.mark.parametrize("ask", ["find", "open"])
    def test_one_whose_last_entry_became_a_file_goes(self, tmp_path: Path, ask: str) -> None:
        with Cache(str(tmp_path)) as cache:
            cache.get("0", lambda: content(0, BLOCK))
        with Cache(str(tmp_path)) as cache:
            entry = cache.find("0") if ask == "find" else cache.open("0", lambda _: None)
            assert entry is not None
            entry.close()
            cache.flush()
            assert cache.check() == []
        assert segment_files(tmp_path) == []

    def test_found_it_is_a_pinned_file_and_its_packed_bytes_are_free(self, tmp_path: Path) -> None:
        with Cache(str(tmp_path), 10 * BLOCK) as cache, Cache(str(tmp_path), 10 * BLOCK) as other:
            for i in range(2):
                cache.get(str(i), lambda i=i: content(i, 2 * BLOCK))
            for asking in (cache, other):
                with asking.find("0") or pytest.fail("gone") as entry:
                    assert entry.is_cached
                    assert Path(entry.path) in entry_files(tmp_path)
                    assert bytes(entry.data) == content(0, 2 * BLOCK)
                    asking.flush()
                    assert packed_bytes(tmp_path) == 2 * BLOCK
                    assert disk_bytes(tmp_path) == 4 * BLOCK
                    for each in (cache, other):
                        assert each.get("0", lambda: b"never") == content(0, 2 * BLOCK)
                        assert each.check() == []
            with cache.find("0") or pytest.fail("gone") as entry:
                assert other.clear() == 2 * BLOCK  # the other one; this is pinned
                assert bytes(entry.data) == content(0, 2 * BLOCK)
            assert cache.find("1") is None
            assert cache.stats.damaged == other.stats.damaged == 0

    def test_found_where_there_is_no_room_for_both_it_is_still_whole(self, tmp_path: Path) -> None:
        limit = 10 * BLOCK
        with Cache(str(tmp_path), limit) as cache:
            pinned = cache.open("p", lambda sink: sink.write(content(9, 4 * BLOCK)))
            cache.get("0", lambda: content(0, 6 * BLOCK))
            entry = cache.find("0")
            assert disk_bytes(tmp_path) <= limit
            if entry is not None:
                assert bytes(entry.data) == content(0, 6 * BLOCK)
                entry.close()
            assert cache.get("0", lambda: content(0, 6 * BLOCK)) == content(0, 6 * BLOCK)
            assert disk_bytes(tmp_path) <= limit
            pinned.close()
            assert cache.check() == []

    def test_where_no_holes_can_be_punched_objects_are_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cannot(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(module, "_punch", cannot)
        limit = 10 * BLOCK
        with Cache(str(tmp_path), limit) as cache:
            for i in range(30):
                assert cache.get(str(i), lambda i=i: content(i, BLOCK)) == content(i, BLOCK)
                assert disk_bytes(tmp_path) <= limit
                assert cache.read(str(i)) == content(i, BLOCK)
            assert len(entry_files(tmp_path)) == len(cache.entries()) == 10
            assert packed_bytes(tmp_path) == 0
            assert cache.check() == []
        assert segment_files(tmp_path) == []

    def test_many_threads_at_once_where_no_holes_can_be_punched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cannot(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(module, "_punch", cannot)
        with Cache(str(tmp_path)) as cache:
            _run(8, lambda n: [_get(cache, 20 * n + i, 100) for i in range(20)])
            cache.flush()
            assert len(entry_files(tmp_path)) == len(cache.entries()) == 160
            assert cache.check() == []


def _get(cache: Cache, i: int, size: int) -> None:
    assert cache.get(str(i), lambda: content(i, size)) == content(i, size)


def _run(num_threads: int, work: Callable[[int], object]) -> None:
    """Run ``work`` in threads; raise what the first of them raised."""
    errors: list[BaseException] = []

    def run(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("policy", ["lru", "next-use"])
def test_many_threads_under_eviction_never_see_wrong_bytes(
    tmp_path: Path, policy: str, short: None
) -> None:
    """Entries come and go, segments are made and deleted, all the time."""
    limit, num_keys = 30 * BLOCK, 60
    size = [i % 4 * BLOCK for i in range(num_keys)]
    caches = [Cache(str(tmp_path), limit, policy=policy) for _ in range(2)]  # type: ignore[arg-type]
    num_found = [0] * 3
    getters: set[int] = set(range(3, 8))

    def work(n: int) -> None:
        step = 0
        while step < 400 or (n < 3 and getters):
            step += 1
            i = (step * (7 + 2 * n) + n) % num_keys
            cache = caches[n % 2]
            if n >= 3:
                _get(cache, i, size[i])
            elif n > 0 or step % 4:
                found = cache.read(str(i))
                assert found in (None, content(i, size[i]))
                num_found[n] += bool(found)
            else:
                entry = cache.find(str(i))
                if entry is not None:
                    assert bytes(entry.data) == content(i, size[i])
                    entry.close()
        getters.discard(n)

    _run(8, work)
    assert min(num_found) > 0
    assert caches[0].check() == []
    for cache in caches:
        assert cache.stats.damaged == 0
        cache.close()
    assert disk_bytes(tmp_path) <= limit
    with Cache(str(tmp_path), limit) as cache:
        assert cache.check() == []
        assert disk_bytes(tmp_path) == sum(entry.size for entry in cache.entries())


DIES = """
import os, signal, sys
from shardkit.storage.cache import Cache
cache = Cache(sys.argv[1])
size = lambda i: 5000 + i
for i in range(10):
    cache.get(str(i), lambda: bytes([i]) * size(i))
cache.flush()
for i in range(10, 20):
    cache.get(str(i), lambda: bytes([i]) * size(i))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_the_dead_had_not_recorded_is_cut_and_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="shardkit")
    with Cache(str(tmp_path)) as living:
        assert living.read("15") is None  # it is open all the time, and has mapped the table
        subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False, timeout=60)
        assert packed_bytes(tmp_path) == 20 * 2 * BLOCK
        assert living.read("15") == bytes([15]) * 5015  # until somebody cleans up
        with Cache(str(tmp_path)) as next_one:
            assert next_one.check() == []
            end = 9 * 2 * BLOCK + 5009
            assert packed_bytes(tmp_path) == segment_files(tmp_path)[0].stat().st_size == end
            assert sorted(int(entry.key) for entry in next_one.entries()) == list(range(10))
            for cache in (living, next_one):
                for i in range(10):
                    assert cache.get(str(i), lambda: b"never") == bytes([i]) * (5000 + i)
            for i in range(10, 20):
                assert living.read(str(i)) is None
                cache = (living, next_one)[i % 2]
                assert cache.get(str(i), lambda i=i: content(i, 100)) == content(i, 100)
            for cache in (living, next_one):
                assert cache.check() == []
                assert cache.stats.damaged == 0
    assert caplog.text == ""


@pytest.mark.parametrize("sizes", [[0], [0, 0], [5000, 0], [4096, 0, 0], [0, 4096]])
def test_empty_entries_that_the_dead_had_recorded_stay(tmp_path: Path, sizes: list[int]) -> None:
    script = f"""
import os, signal
from shardkit.storage.cache import Cache
cache = Cache({str(tmp_path)!r})
for i, size in enumerate({sizes}):
    cache.get(str(i), lambda: b"x" * size)
cache.flush()
cache.get("more", lambda: b"")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    with Cache(str(tmp_path)) as cache:
        assert cache.check() == []
        assert len(cache.entries()) == len(sizes)
        for i, size in enumerate(sizes):
            assert cache.read(str(i)) == b"x" * size
        assert cache.get("more", lambda: b"again") in (b"", b"again")
        assert cache.check() == []


class TestForks:
    def test_a_child_goes_its_own_way_and_the_parents_segment_goes_on(self, tmp_path: Path) -> None:
        with Cache(str(tmp_path)) as cache:
            cache.get("0", lambda: content(0, BLOCK))
            cache.flush()
            (file,) = segment_files(tmp_path)
            child = os.fork()
            if child == 0:
                try:
                    assert cache.get("0", lambda: b"never") == content(0, BLOCK)
                    cache.get("1", lambda: content(1, BLOCK))
                    cache.close()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            assert len(segment_files(tmp_path)) == 2
            with Cache(str(tmp_path)) as other:
                assert other.get("1", lambda: b"never") == content(1, BLOCK)
                assert other.clear() == 2 * BLOCK
                assert segment_files(tmp_path) == [file]  # the child's went, the parent's grows
                cache.get("2", lambda: content(2, BLOCK))
                assert other.get("2", lambda: b"never") == content(2, BLOCK)
            assert cache.check() == []

    def test_a_child_forked_while_a_thread_holds_any_lock_does_not_hang(
        self, tmp_path: Path
    ) -> None:
        """A fork copies locks as they are, not the threads that would let them go."""
        cache = Cache(str(tmp_path))
        cache.get("0", lambda: content(0, BLOCK))
        segments = cache._open().segments
        for lock in (segments._lock, segments.places._lock):
            held, done = threading.Event(), threading.Event()

            def hold(
                lock: threading.Lock = lock,
                held: threading.Event = held,
                done: threading.Event = done,
            ) -> None:
                with lock:
                    held.set()
                    done.wait(60)

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait(30)
            child = os.fork()
            if child == 0:
                try:
                    good = cache.get("0", lambda: b"never") == content(0, BLOCK)
                    cache.close()
                    os._exit(0 if good else 1)
                finally:
                    os._exit(2)
            status = _wait(child, 10)
            done.set()
            thread.join(30)
            assert status == 0, f"hangs with {lock}" if status is None else status
        cache.close()

    def test_a_dead_parents_segment_is_cleaned_up_though_its_child_lives(
        self, tmp_path: Path
    ) -> None:
        script = f"""
import os, signal, time
from shardkit.storage.cache import Cache
cache = Cache({str(tmp_path)!r})
cache.get("0", lambda: b"x" * 5000)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.close(1)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            with Cache(str(tmp_path)) as cache:
                assert cache.check() == []
                assert cache.read("0") is None
                assert segment_files(tmp_path) == []
        finally:
            os.kill(child, 9)
            parent.stdout.close()


def _wait(child: int, seconds: float) -> int | None:
    """Return a child's status; None (and it is killed) if it does not end in time."""
    killer = threading.Timer(seconds, os.kill, (child, 9))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    return None if status == 9 else status


def test_a_segment_deleted_while_it_grows_spoils_only_what_was_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with Cache(str(tmp_path)) as cache, Cache(str(tmp_path)) as other:
        for i in range(3):
            _get(cache, i, BLOCK)
        for file in (tmp_path / OURS / "segments").glob("*"):
            file.unlink()
        for i in range(6):
            _get(cache, i, BLOCK)
        cache.repair()
        for i in range(6):
            _get(cache, i, BLOCK)
            assert other.read(str(i)) == content(i, BLOCK)
        assert cache.check() == other.check() == []


def test_others_go_on_while_packed_entries_are_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a large cache takes minutes: nobody may wait for the ledger so long."""
    with Cache(str(tmp_path)) as checked, Cache(str(tmp_path)) as other:
        checked.get("k", lambda: b"x" * 5000)
        is_sound, asked = Segments.is_sound, []

        def prove(segments: Segments, name: str, place: Place) -> bool:
            other.get(f"other{len(asked)}", lambda: b"y" * 5000)
            other.flush()  # a transaction
            asked.append(name)
            return is_sound(segments, name, place)

        monkeypatch.setattr(Segments, "is_sound", prove)
        assert checked.check() == []
        assert asked == [entry_name("k")]
