"""Objects that change at the far end: what a cached copy is worth, and how it is asked about."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shardkit.errors import NotFoundError
from shardkit.storage.cache import Cache
from shardkit.storage.entries import is_sound, is_version, mark_of, stamp
from shardkit.storage.store import open_store
from tests.s3 import serve_http, serve_s3


@pytest.mark.parametrize("client", ["auto", "fsspec"])
@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_get_tells_the_version_that_stat_tells(tmp_path: Path, client: str, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x.bin").write_bytes(data)
    with serve_s3(tmp_path) as s3, serve_http(tmp_path) as http:
        store = open_store(s3.storage_options, client=client)  # type: ignore[arg-type]
        places = ["s3://bucket/x.bin", str(tmp_path / "bucket" / "x.bin")]
        places += [f"{http.url}/bucket/x.bin"] * (client == "auto")
        for url in places:
            assert store.get_versioned(url) == (data, store.stat(url).version)
        with pytest.raises(NotFoundError):
            store.get_versioned("s3://bucket/none.bin")


class FarEnd:
    """One object, and how often it was fetched and asked about."""

    def __init__(self, *, as_file: bool = False) -> None:
        self.data, self.version = b"old", "1"
        self.as_file = as_file
        self.num_fetched = self.num_asked = 0

    def load(self) -> tuple[bytes, str]:
        self.num_fetched += 1
        return self.data, self.version

    def ask(self) -> str:
        self.num_asked += 1
        return self.version

    def read(self, cache: Cache, since_ns: int) -> bytes:
        return cache.get_fresh("key", self.load, self.ask, since_ns=since_ns, as_file=self.as_file)

    @property
    def counts(self) -> tuple[int, int]:
        return self.num_fetched, self.num_asked


def later() -> int:
    """A time after all that happened so far, on the clock of files too."""
    time.sleep(0.03)
    return time.time_ns()


both = pytest.mark.parametrize("as_file", [False, True], ids=["packed", "file"])


@both
def test_a_copy_is_asked_about_once_by_all_who_are_newer(tmp_path: Path, as_file: bool) -> None:
    far = FarEnd(as_file=as_file)
    caches = [Cache(str(tmp_path)) for _ in range(2)]
    began = time.time_ns() - 20_000_000
    assert far.read(caches[0], began) == far.read(caches[1], began) == b"old"
    assert far.counts == (1, 0)
    now = later() - 20_000_000
    assert [far.read(cache, now) for cache in caches * 2] == [b"old"] * 4
    assert far.counts == (1, 1)
    assert far.read(caches[0], 0) == b"old"
    for cache in caches:
        cache.close()
    assert Cache(str(tmp_path)).check() == []


@both
def test_a_copy_of_another_version_is_fetched_again(tmp_path: Path, as_file: bool) -> None:
    far = FarEnd(as_file=as_file)
    with Cache(str(tmp_path)) as cache:
        far.read(cache, 0)
        far.data, far.version = b"new", "2"
        assert far.read(cache, 0) == b"old"
        now = later() - 20_000_000
        assert [far.read(cache, now) for _ in range(2)] == [b"new"] * 2
        assert far.counts == (2, 1)
        assert cache.check() == []


@both
def test_where_no_version_is_told_a_copy_is_good(tmp_path: Path, as_file: bool) -> None:
    far = FarEnd(as_file=as_file)
    far.version = ""
    with Cache(str(tmp_path)) as cache:
        far.read(cache, 0)
        assert far.read(cache, later()) == b"old"
        assert far.counts == (1, 1)


def test_a_packed_copy_that_became_a_file_is_of_the_same_version(tmp_path: Path) -> None:
    far = FarEnd()
    with Cache(str(tmp_path)) as cache:
        far.read(cache, 0)
        with cache.find("key") or pytest.fail("gone") as entry:
            assert bytes(entry.data) == b"old"
        assert far.read(cache, later()) == b"old"
        assert far.counts == (1, 1)
        far.data, far.version = b"new", "2"
        assert far.read(cache, later()) == b"new"
        assert far.counts == (2, 2)
        assert cache.find("key") is not None
        assert cache.check() == []


@both
def test_a_copy_that_was_asked_about_is_as_good_as_new_for_every_reader(
    tmp_path: Path, as_file: bool
) -> None:
    far = FarEnd(as_file=as_file)
    with Cache(str(tmp_path)) as cache, Cache(str(tmp_path)) as other:
        far.read(cache, 0)
        now = later() - 20_000_000
        assert cache.read("key", now) is other.read("key", now) is None
        assert not cache.holds("key", now)
        assert cache.holds("key")
        far.read(other, now)
        assert cache.read("key", now) == other.read("key", now) == b"old"
        assert cache.holds("key", now)
        assert far.counts == (1, 1)


def test_a_stamp_tells_size_and_version(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, stamp(5, mark_of("etag"))))
    status = path.stat()
    assert is_sound(status)
    assert is_version(status, "etag")
    assert not is_version(status, "other")
    assert not is_version(status, "")
    os.utime(path, ns=(0, stamp(6, mark_of("etag"))))
    assert not is_sound(path.stat())
