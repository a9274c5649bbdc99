"""Downloads: each object once, kept, told to who asked; whatever is odd by a thread that blocks."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import struct
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardkit.errors import CacheError, NotFoundError, TransientError
from shardkit.storage.cache import Cache
from shardkit.storage.downloads import Downloads
from shardkit.storage.flights import Cancelled
from shardkit.storage.protocol import Store
from shardkit.storage.receiving import Receiver
from shardkit.storage.store import open_store
from tests.faulty_proxy import Fault
from tests.s3 import S3Endpoint, serve_s3
from tests.small_disk import small_disk

COUNT = 120


class Job:
    """An object to load, and what became of it."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key


class Asker:
    """Asks for objects, and notes what it is told."""

    def __init__(self, store: Store, cache: Cache | None, num: int = 8, **options: Any) -> None:
        self.store = store
        self.cache = cache
        self.loads: list[str] = []  # by blocking
        self.told: dict[str, bytes | Exception] = {}
        self.times = Counter[str]()
        self.unwanted: set[str] = set()
        self.downloads: Downloads[Job] = Downloads(
            num, "test", self.begin, self.end, store=store, cache=cache, **options
        )

    def begin(self, job: Job) -> Callable[[], bytes] | None:
        return None if job.url in self.unwanted else lambda: self.load(job)

    def load(self, job: Job) -> bytes:
        self.loads.append(job.url)
        if self.cache is None:
            return self.store.get(job.url)
        return self.cache.get(job.key, lambda: self.store.get(job.url))

    def end(self, job: Job, value: Any, error: Exception | None) -> None:
        self.times[job.url] += 1
        self.told[job.url] = value if error is None else error

    def ask(self, names: Sequence[str]) -> None:
        for name in names:
            url = f"s3://bucket/{name}"
            self.downloads.submit(Job(url, f"{url}\n" if self.cache else ""))

    def get(self, names: Sequence[str]) -> dict[str, bytes | Exception]:
        """What became of each, by name."""
        self.ask(names)
        until = time.monotonic() + 60
        while len(self.told) < len(set(names)) and time.monotonic() < until:
            time.sleep(0.005)
        assert set(self.times.values()) == {1}
        return {url.removeprefix("s3://bucket/"): value for url, value in self.told.items()}


def body(number: int, size: int = 20_000) -> bytes:
    return random.Random(number).randbytes(size)


NAMES = [f"o{number:03d}" for number in range(COUNT)]
BODIES = {name: body(number) for number, name in enumerate(NAMES)}


@contextmanager
def bucket(folder: Path, faults: Sequence[Fault] = (), **options: Any) -> Iterator[S3Endpoint]:
    (folder / "s3" / "bucket").mkdir(parents=True)
    for name, data in BODIES.items():
        (folder / "s3" / "bucket" / name).write_bytes(data)
    with serve_s3(folder / "s3", faults, **options) as s3:
        yield s3


@pytest.mark.parametrize("with_cache", [False, True])
def test_objects_come_once_each_and_hardly_any_by_blocking(
    tmp_path: Path, with_cache: bool
) -> None:
    cache = Cache(str(tmp_path / "cache")) if with_cache else None
    with bucket(tmp_path) as s3:
        asker = Asker(open_store(s3.storage_options), cache)
        assert asker.get(NAMES) == BODIES
        assert s3.count("GET") == COUNT
        assert asker.loads == []
        asker.downloads.close()
        if cache is not None:
            again = Asker(open_store(s3.storage_options), cache)
            assert again.get(NAMES) == BODIES
            again.downloads.close()
            assert s3.count("GET") == COUNT
            assert {entry.key for entry in cache.entries()} == {f"s3://bucket/{n}\n" for n in NAMES}
            assert cache.check() == []
            cache.close()


def test_no_more_are_under_way_than_it_was_told(tmp_path: Path) -> None:
    """Each of 120 takes 20 ms: by 4 at a time, 0.6 s."""
    with bucket(tmp_path, latency_s=0.02) as s3:
        asker = Asker(open_store(s3.storage_options), None, num=4)
        most = 0
        asker.ask(NAMES)
        started = time.monotonic()
        while len(asker.told) < COUNT:
            loop = asker.downloads._loop
            assert loop is not None
            most = max(most, loop._receiver.num_busy + loop._num_handed)
            time.sleep(0.001)
        assert time.monotonic() - started > COUNT / 4 * 0.02 * 0.9
        assert most == 4
        asker.downloads.close()


def test_two_that_want_the_same_fetch_it_once(tmp_path: Path) -> None:
    with bucket(tmp_path, latency_s=0.005) as s3, Cache(str(tmp_path / "cache")) as cache:
        askers = [Asker(open_store(s3.storage_options), cache) for _ in range(3)]
        threads = [
            threading.Thread(target=lambda a=asker: a.get(random.Random(7).sample(NAMES, COUNT)))
            for asker in askers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for asker in askers:
            asker.downloads.close()
            assert {url.rpartition("/")[2]: data for url, data in asker.told.items()} == BODIES
        assert s3.count("GET") == COUNT
        assert cache.check() == []


def test_what_is_odd_or_missing_is_an_error_of_its_own_or_comes_at_last(tmp_path: Path) -> None:
    faults = [
        Fault("reset", path="*o050", at=5_000),
        Fault("status", path="*o060", status=503),
        Fault("stall", path="*o070", at=5_000),
        Fault("truncate", path="*o080", at=100),
    ]
    with bucket(tmp_path, faults) as s3, Cache(str(tmp_path / "cache")) as cache:
        (tmp_path / "s3" / "bucket" / "o090").unlink()
        store = open_store({**s3.storage_options, "stall_s": 0.5})
        asker = Asker(store, cache)
        found = asker.get(NAMES)
        assert isinstance(found.pop("o090"), NotFoundError)
        assert found == {name: data for name, data in BODIES.items() if name != "o090"}
        asker.downloads.close()
        assert cache.check() == []


@pytest.mark.parametrize("with_cache", [False, True])
def test_what_is_missing_costs_one_request_and_no_connection(
    tmp_path: Path, with_cache: bool
) -> None:
    cache = Cache(str(tmp_path / "cache")) if with_cache else None
    with bucket(tmp_path) as s3:
        for name in NAMES[1::2]:
            (tmp_path / "s3" / "bucket" / name).unlink()
        dialled = counted(s3)
        asker = Asker(open_store(dialled.options), cache, num=4)
        found = asker.get(NAMES)
        asker.downloads.close()
        assert {name: found[name] for name in NAMES[::2]} == {n: BODIES[n] for n in NAMES[::2]}
        assert asker.loads == []
        assert s3.count("GET") == COUNT
        assert dialled.num <= 4
        for name in NAMES[1::2]:
            with pytest.raises(NotFoundError) as blocking:
                asker.store.get(f"s3://bucket/{name}")
            error = found[name]
            assert isinstance(error, NotFoundError) and str(error) == str(blocking.value)
        assert dialled.num <= 4 + 1
        if cache is not None:
            assert cache.check() == []
            _until(lambda: cache.begin(f"s3://bucket/{NAMES[1]}\n")).give_up()
            cache.close()


def test_a_bucket_that_is_missing_is_told_as_such(tmp_path: Path) -> None:
    with bucket(tmp_path) as s3:
        asker = Asker(open_store(s3.storage_options), None)
        asker.downloads.submit(Job("s3://none/x", ""))
        _until(lambda: asker.told.get("s3://none/x"))
        with pytest.raises(NotFoundError, match="check its name, and endpoint_url"):
            raise asker.told["s3://none/x"]  # type: ignore[misc]
        asker.downloads.close()


class _Dialled:
    """Stands before an endpoint, and counts connections."""

    def __init__(self, s3: S3Endpoint) -> None:
        self.num = 0
        self._port = int(s3.url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.options = {**s3.storage_options, "endpoint_url": url}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            self.num += 1
            far = socket.create_connection(("127.0.0.1", self._port))
            for pair in (near, far), (far, near):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


def counted(s3: S3Endpoint) -> _Dialled:
    return _Dialled(s3)


def test_places_that_cannot_be_had_plainly_turn_no_other_off(tmp_path: Path) -> None:
    """A mixed list, whose first objects come through fsspec."""
    fs = open_store()
    for number in range(40):
        fs.put(f"memory://odd/{number}", b"odd")
    with bucket(tmp_path) as s3:
        asker = Asker(open_store(s3.storage_options), None)
        for number in range(40):
            asker.downloads.submit(Job(f"memory://odd/{number}", ""))
        _until(lambda: len(asker.told) == 40 or None)
        asker.loads.clear()
        for number, name in enumerate(NAMES):
            asker.downloads.submit(Job(f"s3://bucket/{name}", ""))
            asker.downloads.submit(Job(f"s3://bucket/a//{number}", ""))  # not for obstore
        _until(lambda: len(asker.told) == 40 + 2 * COUNT or None)
        asker.downloads.close()
        assert {f"s3://bucket/{name}" for name in NAMES}.isdisjoint(asker.loads)


def test_what_nobody_wants_any_more_is_not_fetched(tmp_path: Path) -> None:
    with bucket(tmp_path) as s3:
        asker = Asker(open_store(s3.storage_options), None, num=4)
        asker.unwanted = {f"s3://bucket/{name}" for name in NAMES[::2]}
        asker.ask(NAMES)
        while len(asker.told) < COUNT // 2:
            time.sleep(0.005)
        asker.downloads.close()
        assert set(asker.told) == {f"s3://bucket/{name}" for name in NAMES[1::2]}
        assert s3.count("GET") == COUNT // 2


def test_closing_lets_go_of_every_right_though_the_server_is_stuck(tmp_path: Path) -> None:
    stuck = [Fault("stall", path="*o1*", at=0, times=-1)]
    with bucket(tmp_path, stuck) as s3, Cache(str(tmp_path / "cache")) as cache:
        asker = Asker(open_store(s3.storage_options), cache)
        asker.get(NAMES[:40])
        asker.ask(NAMES[100:])
        while s3.count("GET") < 48:
            time.sleep(0.005)
        started = time.monotonic()
        asker.downloads.close()
        assert time.monotonic() - started < 2.0
        for name in NAMES[100:]:
            key = f"s3://bucket/{name}\n"
            _until(lambda key=key: cache.begin(key)).give_up()  # type: ignore[misc]
        assert all(isinstance(found, (bytes, Cancelled)) for found in asker.told.values())


def _until(ask: Callable[[], Any]) -> Any:
    until = time.monotonic() + 30
    while (found := ask()) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_large_objects_become_files(tmp_path: Path) -> None:
    big = body(1, 3 << 20)
    with bucket(tmp_path) as s3, Cache(str(tmp_path / "cache")) as cache:
        for number in range(8):
            (tmp_path / "s3" / "bucket" / f"big{number}").write_bytes(big)
        asker = Asker(open_store(s3.storage_options), cache, num=3)
        names = [*NAMES[:10], *(f"big{number}" for number in range(8))]
        found = asker.get(names)
        assert all(found[f"big{number}"] == big for number in range(8))
        asker.downloads.close()
        assert sorted(e.size for e in cache.entries()) == [20_000] * 10 + [3 << 20] * 8
        assert cache.check() == []


def test_an_object_larger_than_the_limit_says_so(tmp_path: Path) -> None:
    with bucket(tmp_path) as s3, Cache(str(tmp_path / "cache"), 10_000) as cache:
        asker = Asker(open_store(s3.storage_options), cache)
        assert all(
            isinstance(error, CacheError) and "cache_limit" in str(error)
            for error in asker.get(NAMES[:30]).values()
        )
        asker.downloads.close()
        assert cache.check() == []


def test_a_disk_full_of_other_things_is_told_for_each_object(tmp_path: Path) -> None:
    with bucket(tmp_path) as s3, small_disk(tmp_path / "disk", "2m") as disk:
        (disk / "others").write_bytes(bytes(1 << 20))
        with Cache(str(disk / "cache")) as cache:
            asker = Asker(open_store(s3.storage_options), cache)
            found = asker.get(NAMES)
            asker.downloads.close()
            for name, value in found.items():
                assert value == BODIES[name] or isinstance(value, CacheError)
            (disk / "others").unlink()  # what was kept can be recorded


def test_a_cache_that_cannot_be_opened_is_told_for_each_object(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file, no folder")
    with bucket(tmp_path) as s3:
        asker = Asker(open_store(s3.storage_options), Cache(str(tmp_path / "cache")))
        assert all(isinstance(e, CacheError) for e in asker.get(NAMES[:20]).values())
        asker.downloads.close()


def test_a_store_that_talks_otherwise_is_left_to_threads_that_block(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    asker = Asker(open_store(), None)
    url = (tmp_path / "x").as_uri()
    asker.downloads.submit(Job(url, ""))
    asker.downloads.submit(Job(url + "/none", ""))
    while len(asker.told) < 2:
        time.sleep(0.005)
    asker.downloads.close()
    assert asker.told[url] == b"content" and isinstance(asker.told[url + "/none"], Exception)


def test_a_server_that_resets_each_connection_is_asked_with_patience(tmp_path: Path) -> None:
    """Not connected to for ever: each object ends in its own error."""
    dialled: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def reset() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                dialled.append(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    threading.Thread(target=reset, daemon=True).start()
    with listener:
        options = {"endpoint_url": f"http://127.0.0.1:{listener.getsockname()[1]}", "region": "r"}
        keys = {"key": "an-access-key", "secret": "a-secret-key", "max_attempts": 2}
        asker = Asker(open_store({**options, **keys}), None)
        assert all(isinstance(e, TransientError) for e in asker.get(NAMES[:20]).values())
        asker.downloads.close()
    assert len(dialled) < 20 * 10


@pytest.mark.parametrize("most", [0, 1, 3])
def test_where_no_thread_can_be_started_all_comes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    with bucket(tmp_path) as s3:
        start, left = threading.Thread.start, [most]

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("shardkit"):
                left[0] -= 1
                if left[0] < 0:
                    raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        asker = Asker(open_store(s3.storage_options), None)
        assert asker.get(NAMES) == BODIES
        asker.downloads.close()


class _Broken(Receiver[Any]):
    """Fails in the middle, as no receiver should."""

    left = 5

    def wait(self, timeout_s: float | None = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("a fault of ours")
        return super().wait(timeout_s)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_should_the_thread_die_all_that_it_had_is_done_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardkit.storage.receiving.Receiver", _Broken)
    with bucket(tmp_path) as s3, Cache(str(tmp_path / "cache")) as cache:
        asker = Asker(open_store(s3.storage_options), cache)
        assert asker.get(NAMES) == BODIES
        asker.downloads.close()
        assert cache.check() == []


def test_a_closed_one_is_held_by_nobody() -> None:
    class Here:
        """A store of one object."""

        def requests(self, urls: Sequence[str]) -> Sequence[None]:
            return [None] * len(urls)

        def get(self, url: str) -> bytes:
            return url.encode()

    gc.disable()
    try:
        asker = Asker(Here(), None)  # type: ignore[arg-type]
        asker.ask(["x"])
        while not asker.told:
            time.sleep(0.005)
        asker.downloads.close()
        gone = weakref.ref(asker)
        del asker
        assert gone() is None
    finally:
        gc.enable()


def test_one_that_was_dropped_unclosed_is_collected_and_its_thread_ends(tmp_path: Path) -> None:
    """As when Ctrl-C comes between the lines."""
    with bucket(tmp_path) as s3, Cache(str(tmp_path / "cache")) as cache:
        before = set(threading.enumerate())
        asker = Asker(open_store(s3.storage_options), cache)
        asker.get(NAMES[:20])
        gone = weakref.ref(asker)
        del asker
        gc.collect()
        assert gone() is None
        until = time.monotonic() + 10
        while set(threading.enumerate()) - before and time.monotonic() < until:
            time.sleep(0.01)
        assert set(threading.enumerate()) <= before


def test_each_object_is_counted_once(tmp_path: Path) -> None:
    with bucket(tmp_path) as s3, Cache(str(tmp_path / "cache")) as cache:
        for name in NAMES[::2]:
            (tmp_path / "s3" / "bucket" / name).unlink()
        asker = Asker(open_store(s3.storage_options), cache)
        asker.get(NAMES)
        asker.downloads.close()
        assert cache.stats.misses == COUNT
