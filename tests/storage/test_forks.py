"""Stores and caches in children of every kind, after the parent has used them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.store import Store, open_store
from tests.s3 import S3Endpoint, serve_s3

METHODS = ["fork", "forkserver", "spawn"]


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Endpoint]:
    (tmp_path / "bucket").mkdir()
    for i in range(20):
        (tmp_path / "bucket" / f"o{i}").write_bytes(bytes([i]) * 1000)
    with serve_s3(tmp_path) as endpoint:
        yield endpoint


def _read_all(store: Store, cache: Cache | None, pipe: object) -> None:
    for i in range(20):
        url = f"s3://bucket/o{i}"
        data = store.get(url) if cache is None else cache.get(url, lambda u=url: store.get(u))
        assert data == bytes([i]) * 1000
    assert store.get_range("s3://bucket/o7", 3, 5) == b"\x07\x07"
    if cache is not None:
        cache.close()
    pipe.send("read")  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("client", ["auto", "fsspec"])
def test_a_store_works_in_children_after_the_parent_used_it(
    s3: S3Endpoint, method: str, client: str
) -> None:
    store = open_store(s3.storage_options, client=client)  # type: ignore[arg-type]
    assert store.get("s3://bucket/o3") == b"\x03" * 1000
    _run_children(method, store, None)
    assert store.get("s3://bucket/o4") == b"\x04" * 1000  # and the parent goes on


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_works_in_children_after_the_parent_used_it(
    s3: S3Endpoint, method: str, tmp_path: Path
) -> None:
    store = open_store(s3.storage_options)
    with Cache(str(tmp_path / "cache"), 15_000) as cache:
        with cache.open("held", lambda sink: sink.write(b"h" * 5000), size=5000) as entry:
            _run_children(method, store, cache)
            assert bytes(entry.data) == b"h" * 5000
        assert cache.get("after", lambda: b"x") == b"x"
        assert cache.check() == []


def test_a_forked_child_reads_through_signed_urls_many_at_once(
    s3: S3Endpoint, tmp_path: Path
) -> None:
    """Its parent used obstore: it can't, and s3fs would take five times as long."""
    store = open_store(s3.storage_options)
    assert store.get("s3://bucket/o3") == b"\x03" * 1000
    before = len(s3.requests)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            requests = [Request(f"s3://bucket/o{i}", version="") for i in range(20)]
            with (
                Cache(str(tmp_path / "cache")) as cache,
                fetch_in_order(store, requests, cache=cache) as results,
            ):
                found = [result.unwrap() for result in results]
            whole = store.get("s3://bucket/o19") == found[19] == b"\x13" * 1000
            status = 0 if whole and store.stat("s3://bucket/o1").size == 1000 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    asked = s3.requests[before:]
    assert len(asked) == 22 and all("X-Amz-Signature" in request.query for request in asked)


def _run_children(method: str, store: Store, cache: Cache | None) -> None:
    context = multiprocessing.get_context(method)
    pipes = [context.Pipe(duplex=False) for _ in range(3)]
    children = [
        context.Process(target=_read_all, args=(store, cache, send), daemon=True)  # type: ignore[attr-defined]
        for _, send in pipes
    ]
    for child in children:
        child.start()
    for (receive, _), child in zip(pipes, children, strict=True):
        assert receive.poll(60), f"a child made by {method} hangs"
        assert receive.recv() == "read"
        child.join(30)
        assert child.exitcode == 0


def test_children_forked_while_threads_are_fetching_do_not_hang(
    s3: S3Endpoint, tmp_path: Path
) -> None:
    store = open_store(s3.storage_options)
    cache = Cache(str(tmp_path / "cache"), 10_000)
    stop = threading.Event()

    def fetch() -> None:
        while not stop.is_set():
            for i in range(20):
                cache.get(f"k{i}", lambda i=i: store.get(f"s3://bucket/o{i}"))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            _run_children("fork", store, cache)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    cache.close()
    assert Cache(str(tmp_path / "cache")).check() == []


def test_a_forked_child_that_exits_like_a_program_leaves_the_parents_ledger_whole(
    tmp_path: Path,
) -> None:
    """``os.fork`` and a plain exit run destructors in the child; ours must not touch the parent."""
    script = f"""
import os, sys
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
cache = Cache({str(tmp_path)!r})
cache.get("a", lambda: b"a")
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
for i in range(300):
    cache.get(f"k{{i}}", lambda: b"x" * 100)
assert cache.check() == [], cache.check()
cache.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    with Cache(str(tmp_path)) as cache:
        assert len(cache.entries()) == 301
        assert cache.check() == []


def test_a_dead_parent_whose_forked_child_lives_on_holds_nothing(tmp_path: Path) -> None:
    """Locks are shared by fork; a child must not keep the dead parent's room or flights alive."""
    script = f"""
import os, sys, time
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
cache = Cache({str(tmp_path)!r}, 10_000)
def fill(sink):
    sink.write(b"x" * 4000)
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.close(1)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
cache.open("k", fill, size=9000)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        with Cache(str(tmp_path), 10_000) as cache:
            with cache.open("k", lambda sink: sink.write(b"y" * 9000), size=9000) as entry:
                assert entry.is_cached  # neither the flight nor the room of the dead is in the way
            assert cache.check() == []
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_stores_and_caches_pickle(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), "1mb", policy="lru")
    cache.get("a", lambda: b"a")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.get("a", lambda: b"other") == b"a"
    assert (copy.limit, copy.policy) == (1 << 20, "lru")
    cache.close()
    copy.close()
