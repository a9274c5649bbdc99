"""Over TLS all comes as it does without: objects, streams, ranges, many at once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit.errors import NotFoundError, StoreError
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.store import open_store
from tests.s3 import S3Endpoint, serve_http, serve_s3, trusted
from tests.storage.test_downloads import Asker

BODIES = {f"o{n:03d}": random.Random(n).randbytes(n * n * 7) for n in range(150)}
NAMES = list(BODIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "bucket").mkdir()
    for name, data in BODIES.items():
        (folder / "bucket" / name).write_bytes(data)
    return folder


@pytest.fixture
def s3(folder: Path) -> Iterator[S3Endpoint]:
    with trusted(), serve_s3(folder, tls=True) as s3:
        assert s3.url.startswith("https://")
        yield s3


def test_objects_streams_and_ranges(s3: S3Endpoint) -> None:
    store = open_store(s3.storage_options)
    data = BODIES["o149"]
    assert store.get("s3://bucket/o149") == data
    assert store.get_range("s3://bucket/o149", 70_000, 140_001) == data[70_000:140_001]
    streamed = bytearray()
    store.stream_to("s3://bucket/o149", streamed.extend)
    assert streamed == data
    store.put("s3://bucket/new", data)
    assert store.get("s3://bucket/new") == data
    with pytest.raises(NotFoundError):
        store.get("s3://bucket/none")


def test_many_objects_at_once_come_by_one_thread(s3: S3Endpoint, tmp_path: Path) -> None:
    with Cache(str(tmp_path)) as cache:
        asker = Asker(open_store(s3.storage_options), cache, num=16)
        assert asker.get(NAMES) == BODIES
        assert asker.loads == []
        asker.downloads.close()
        assert cache.check() == []
        asker = Asker(open_store(s3.storage_options), None, num=3)
        assert asker.get(NAMES) == BODIES
        assert asker.loads == []
        asker.downloads.close()
        asker = Asker(open_store(s3.storage_options), None)
        assert isinstance(asker.get(["none"])["none"], NotFoundError)
        asker.downloads.close()


def test_web_servers(folder: Path) -> None:
    with trusted(), serve_http(folder, tls=True) as server:
        store = open_store()
        requests = [Request(f"{server.url}/bucket/{name}") for name in NAMES]
        with fetch_in_order(store, requests) as results:
            assert [result.unwrap() for result in results] == list(BODIES.values())
        assert store.get(requests[-1].url) == BODIES["o149"]


def test_a_certificate_that_nobody_vouches_for_is_an_error_that_says_so(folder: Path) -> None:
    with serve_s3(folder, tls=True) as s3:
        store = open_store({**s3.storage_options, "max_attempts": 2})
        with fetch_in_order(store, [Request("s3://bucket/o149", version="")]) as results:
            error = next(results).error
        assert isinstance(error, StoreError)
        assert "certificate" in str(error)


def test_nor_is_it_asked_for_again_and_again(folder: Path) -> None:
    """By our own client, which web servers are asked by, and S3 for ranges."""
    with serve_http(folder, tls=True) as server, serve_s3(folder, tls=True) as s3:
        started = time.monotonic()
        for store, url in (
            (open_store(), f"{server.url}/bucket/o149"),
            (open_store(s3.storage_options), "s3://bucket/o149"),
        ):
            with pytest.raises(StoreError, match="certificate of the server is not trusted"):
                store.get_range(url, 0, 10)
        assert time.monotonic() - started < 10  # 12 attempts take 40 s
