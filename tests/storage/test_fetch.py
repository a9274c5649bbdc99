from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from shardkit.errors import ConfigError, CorruptError, NotFoundError, StoreError
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.protocol import ObjectInfo
from shardkit.storage.shards import ShardFetcher
from shardkit.storage.store import open_store
from tests.s3 import serve_s3


class SlowStore:
    """Objects ``m://<size>/<name>`` made of their name, each after a random delay."""

    def __init__(self, seed: int = 0, longest_s: float = 0.01) -> None:
        self.dice = random.Random(seed)
        self.longest_s = longest_s
        self.lock = threading.Lock()
        self.asked: list[str] = []
        self.flying = 0
        self.most_flying = 0

    def get(self, url: str) -> bytes:
        with self.lock:
            self.asked.append(url)
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
            delay = self.dice.uniform(0, self.longest_s)
        time.sleep(delay)
        with self.lock:
            self.flying -= 1
        return self.content(url)

    @staticmethod
    def content(url: str) -> bytes:
        size, name = url.removeprefix("m://").split("/")
        if name == "missing":
            raise NotFoundError(url)
        return (name.encode() * (int(size) // len(name) + 1))[: int(size)]

    def requests(self, urls: Sequence[str]) -> Sequence[None]:
        return [None] * len(urls)

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        return self.get(url)[start:stop]

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        data = self.get(url)[start:stop]
        for i in range(0, len(data), 1000):
            yield data[i : i + 1000]

    def stream_to(
        self, url: str, write: Callable[[bytes], None], start: int = 0, stop: int | None = None
    ) -> None:
        for chunk in self.get_chunks(url, start, stop):
            write(chunk)

    def stat(self, url: str) -> ObjectInfo:
        return ObjectInfo(url, len(self.content(url)), "v1")

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.get_range(url, a, b) for a, b in ranges]

    def put(self, url: str, data: bytes) -> None:
        raise StoreError(url)

    def put_file(self, url: str, path: str) -> None:
        raise StoreError(url)

    def list(self, url: str) -> Iterator[ObjectInfo]:
        raise StoreError(url)

    def delete(self, url: str) -> None:
        raise StoreError(url)


def requests(n: int, size: int = 1000) -> list[Request]:
    return [Request(f"m://{size}/n{i}", size=size, tag=i) for i in range(n)]


class TestInOrder:
    @pytest.mark.parametrize("num_threads", [1, 3, 16])
    def test_results_come_in_the_order_of_the_requests_whatever_the_delays(
        self, num_threads: int
    ) -> None:
        for seed in range(3):
            store = SlowStore(seed)
            with fetch_in_order(store, requests(100), num_threads=num_threads) as results:
                found = list(results)
            assert [r.request.tag for r in found] == list(range(100))
            assert all(r.unwrap() == store.content(r.request.url) for r in found)
            assert store.most_flying <= num_threads

    def test_the_lookahead_is_bounded_in_bytes(self) -> None:
        store = SlowStore()
        with fetch_in_order(store, requests(100), lookahead_bytes=10_500) as results:
            for taken in range(1, 50):
                next(results)
                time.sleep(0.002)
                assert len(store.asked) <= taken + 10

    def test_an_object_larger_than_the_lookahead_still_comes(self) -> None:
        with fetch_in_order(SlowStore(), requests(5, 50_000), lookahead_bytes=10) as results:
            assert [len(r.unwrap()) for r in results] == [50_000] * 5

    def test_requests_are_pulled_lazily_and_in_the_callers_thread(self) -> None:
        pulled: list[tuple[int, str]] = []

        def endless() -> Iterator[Request]:
            for i in range(10**9):
                pulled.append((i, threading.current_thread().name))
                yield Request(f"m://1000/n{i}", size=1000)

        with fetch_in_order(SlowStore(), endless(), lookahead_bytes=20_000) as results:
            for _ in range(10):
                next(results).unwrap()
        assert len(pulled) <= 32
        assert {name for _, name in pulled} == {threading.current_thread().name}

    def test_an_error_of_the_requests_is_raised_where_they_are_pulled(self) -> None:
        def failing() -> Iterator[Request]:
            yield Request("m://10/a")
            raise LookupError("the index is broken")

        with (
            fetch_in_order(SlowStore(), failing()) as results,
            pytest.raises(LookupError, match="index is broken"),
        ):
            list(results)

    def test_a_checksum_is_proved(self) -> None:
        good = Request("m://10/a", checksum=xxh3_64_intdigest(b"a" * 10))
        bad = Request("m://10/a", checksum=1)
        with fetch_in_order(SlowStore(), [good, bad]) as results:
            assert next(results).unwrap() == b"a" * 10
            with pytest.raises(CorruptError, match="was expected"):
                next(results).unwrap()

    def test_ranges_and_tails_of_objects(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"0123456789")
        url = str(tmp_path / "x")
        asked = [Request(url, start=2, stop=5), Request(url, start=7), Request(url)]
        with fetch_in_order(open_store(), asked) as results:
            assert [r.unwrap() for r in results] == [b"234", b"789", b"0123456789"]

    def test_a_cache_serves_the_second_pass_and_a_new_version_is_fetched(
        self, tmp_path: Path
    ) -> None:
        store = SlowStore(longest_s=0)
        with Cache(str(tmp_path)) as cache:
            for _ in range(2):
                with fetch_in_order(store, requests(20), cache=cache) as results:
                    assert all(r.error is None for r in results)
            assert len(store.asked) == 20
            newer = [Request(r.url, size=r.size, version="v2") for r in requests(20)]
            with fetch_in_order(store, newer, cache=cache) as results:
                list(results)
            assert len(store.asked) == 40
            assert cache.check() == []

    def test_arguments_out_of_bounds_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            fetch_in_order(SlowStore(), [], num_threads=0)
        with pytest.raises(ConfigError, match="0 <= start <= stop"):
            Request("x", start=5, stop=4)


class TestNothingIsLeft:
    def test_threads_and_descriptors_are_flat_over_a_hundred_abandoned_iterators(
        self, tmp_path: Path
    ) -> None:
        """In a process of its own: what other tests have open, or close meanwhile, counts not."""
        for i in range(20):
            (tmp_path / f"f{i}").write_bytes(b"x" * 1000)
        script = """
import gc, os, sys, threading, time
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.store import open_store
asked = [Request(f"{sys.argv[1]}/f{i}") for i in range(20)] * 5
before = os.listdir("/proc/self/fd")
for _ in range(100):
    results = fetch_in_order(open_store(), asked, num_threads=4)
    next(results)
    del results
gc.collect()
until = time.monotonic() + 20
while threading.active_count() > 1 and time.monotonic() < until:
    time.sleep(0.01)
print(threading.active_count(), len(os.listdir("/proc/self/fd")) - len(before))
"""
        root = str(Path(__file__).parents[2])
        ran = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert (ran.stdout, ran.stderr) == (b"1 0\n", b"")

    def test_closing_in_the_middle_is_quick_and_the_iterator_is_over(self) -> None:
        results = fetch_in_order(SlowStore(longest_s=0.05), requests(1000), num_threads=8)
        next(results)
        started = time.monotonic()
        results.close()
        assert time.monotonic() - started < 2.0  # 0.4 s at most; the rest is this machine's
        assert list(results) == []
        results.close()

    def test_control_c_stops_at_once(self, tmp_path: Path) -> None:
        script = """
import sys, time
from tests.storage.test_fetch import SlowStore, requests
from shardkit.storage.fetch import fetch_in_order
with fetch_in_order(SlowStore(longest_s=60.0), requests(1000)) as results:
    print("waiting", flush=True)
    next(results)
"""
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode != 0
        assert b"KeyboardInterrupt" in err


def _wait_until(is_so: object, patience_s: float = 20.0) -> None:
    until = time.monotonic() + patience_s
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


def shard(i: int, size: int = 10_000) -> Request:
    url = f"m://{size}/s{i}"
    data = SlowStore.content(url)
    return Request(url, size=size, checksum=xxh3_64_intdigest(data), tag=i)


class TestShards:
    def test_shards_are_fetched_ahead_in_order_and_bounded(self, tmp_path: Path) -> None:
        store = SlowStore(longest_s=0.001)
        with Cache(str(tmp_path)) as cache:
            fetcher = ShardFetcher(store, cache, lookahead_bytes=30_000)
            fetcher.schedule(shard(i) for i in range(20))
            for i in range(20):
                with fetcher.open(shard(i)) as entry:
                    assert bytes(entry.data) == store.content(shard(i).url)
                    _wait_until(lambda i=i: len(store.asked) >= min(20, i + 3))
                    time.sleep(0.005)
                    assert len(store.asked) <= i + 4
            fetcher.close()
            assert len(store.asked) == 20
            assert cache.check() == []

    def test_without_room_looking_ahead_stops_and_nothing_deadlocks(self, tmp_path: Path) -> None:
        store = SlowStore(longest_s=0.001)
        with Cache(str(tmp_path), 25_000) as cache:
            with ShardFetcher(store, cache, lookahead_bytes=10**9) as fetcher:
                fetcher.schedule(shard(i) for i in range(12))
                held = []
                for i in range(12):
                    held.append(fetcher.open(shard(i)))
                    assert bytes(held[-1].data) == store.content(shard(i).url)
                    if len(held) > 4:  # more than fit
                        held.pop(0).close()
                assert cache.stats.passed_through > 0
                for entry in held:
                    entry.close()
            assert cache.check() == []

    def test_what_is_needed_now_takes_the_place_of_what_was_fetched_ahead(
        self, tmp_path: Path
    ) -> None:
        with (
            Cache(str(tmp_path), 30_000) as cache,
            ShardFetcher(SlowStore(longest_s=0), cache) as fetcher,
        ):
            fetcher.schedule([shard(1), shard(2), shard(3)])
            _wait_until(lambda: len(cache.entries()) == 3)
            with fetcher.open(shard(9)) as entry:
                assert entry.is_cached

    def test_a_new_schedule_replaces_the_old(self, tmp_path: Path) -> None:
        store = SlowStore(longest_s=0.001)
        with (
            Cache(str(tmp_path)) as cache,
            ShardFetcher(store, cache, lookahead_bytes=20_000) as fetcher,
        ):
            fetcher.schedule(shard(i) for i in range(100))
            fetcher.open(shard(0)).close()
            fetcher.schedule(shard(i) for i in range(50, 60))
            for i in range(50, 60):
                fetcher.open(shard(i)).close()
            assert len(store.asked) < 30

    def test_an_error_belongs_to_the_shard_that_has_it_and_may_be_tried_again(
        self, tmp_path: Path
    ) -> None:
        bad = Request("m://100/missing", size=100, version="")
        with Cache(str(tmp_path)) as cache, ShardFetcher(SlowStore(), cache) as fetcher:
            fetcher.schedule([shard(0), bad, shard(2)])
            fetcher.open(shard(0)).close()
            for _ in range(2):
                with pytest.raises(NotFoundError):
                    fetcher.open(bad)
            fetcher.open(shard(2)).close()

    def test_without_a_cache_shards_live_in_memory_while_open(self) -> None:
        with ShardFetcher(SlowStore(), None) as fetcher:
            fetcher.schedule(shard(i) for i in range(5))
            for i in range(5):
                with fetcher.open(shard(i)) as entry:
                    assert not entry.is_cached
                    assert bytes(entry.data) == SlowStore.content(shard(i).url)

    def test_a_local_shard_is_mapped_where_it_lies_and_verified_once_a_node(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "shard.tar"
        path.write_bytes(b"t" * 5000)
        request = Request(str(path), size=5000, checksum=xxh3_64_intdigest(b"t" * 5000))
        with Cache(str(tmp_path / "cache")) as cache:
            with ShardFetcher(open_store(), cache) as fetcher, fetcher.open(request) as entry:
                assert entry.path == str(path)
                assert cache.entries() == []
            assert cache.is_verified(str(path))
            status = path.stat()
            with path.open("r+b") as file:  # same size, time and inode: not looked at again
                file.write(b"T")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            with ShardFetcher(open_store(), cache) as fetcher:
                fetcher.open(request).close()
            with (
                ShardFetcher(open_store(), cache, verify="always") as fetcher,
                pytest.raises(CorruptError, match=r"shard\.tar"),
            ):
                fetcher.open(request)
            with ShardFetcher(open_store(), None, verify="never") as fetcher:
                fetcher.open(request).close()

    def test_a_local_shard_that_was_cut_is_corrupt(self, tmp_path: Path) -> None:
        path = tmp_path / "shard.tar"
        path.write_bytes(b"t" * 4000)
        with (
            ShardFetcher(open_store(), None) as fetcher,
            pytest.raises(CorruptError, match=r"4000 bytes, 5000 were expected"),
        ):
            fetcher.open(Request(str(path), size=5000))

    def test_many_threads_and_fetchers_share_one_cache(self, tmp_path: Path) -> None:
        store = SlowStore(longest_s=0.002)
        failures: list[BaseException] = []

        def consume(cache: Cache, seed: int) -> None:
            order = random.Random(seed).sample(range(12), 12)
            try:
                with ShardFetcher(store, cache, lookahead_bytes=30_000, num_threads=2) as fetcher:
                    fetcher.schedule(shard(i) for i in order)
                    for i in order:
                        with fetcher.open(shard(i)) as entry:
                            assert bytes(entry.data) == store.content(shard(i).url)
            except BaseException as error:
                failures.append(error)

        with Cache(str(tmp_path), 60_000) as one, Cache(str(tmp_path), 60_000) as two:
            threads = [
                threading.Thread(target=consume, args=((one, two)[n % 2], n)) for n in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert failures == []
            assert one.check() == []

    def test_opening_after_close_says_so(self) -> None:
        fetcher = ShardFetcher(SlowStore(), None)
        fetcher.close()
        with pytest.raises(StoreError, match="closed"):
            fetcher.open(shard(0))

    def test_arguments_out_of_the_table_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="once, always, never"):
            ShardFetcher(SlowStore(), None, verify="sometimes")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="lookahead_bytes=-1"):
            ShardFetcher(SlowStore(), None, lookahead_bytes=-1)


def test_packing_from_bucket_to_bucket_needs_only_this(tmp_path: Path) -> None:
    """Members of many rows from S3, in order, into one object on S3."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for i in range(50):
        (tmp_path / "in" / f"{i:02d}.jpg").write_bytes(bytes([i]) * 2000)
    with serve_s3(tmp_path) as s3:
        store = open_store(s3.storage_options)
        asked = [Request(info.url, size=info.size) for info in store.list("s3://in")]
        local = tmp_path / "shard.tar"
        with fetch_in_order(store, asked) as results, local.open("wb") as tar:
            for result in results:
                tar.write(result.unwrap())
        store.put_file("s3://out/shard.tar", str(local))
        assert store.get("s3://out/shard.tar") == b"".join(bytes([i]) * 2000 for i in range(50))
