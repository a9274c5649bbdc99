"""A network and servers that fail, for real: each fault between a client and a real endpoint."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from shardkit.errors import CorruptError, NotFoundError, StoreError, TransientError
from shardkit.storage.cache import Cache
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.obstore_store import _PAST_END
from shardkit.storage.shards import ShardFetcher
from shardkit.storage.store import Store, open_store
from tests.s3 import Fault, S3Endpoint, serve_http, serve_s3

SIZE = 3_000_000
AT = 1_700_001
DATA = os.urandom(SIZE)
CLIENTS = ["obstore", "fsspec", "http"]


@contextmanager
def broken(
    tmp_path: Path, client: str, *faults: Fault, **options: Any
) -> Iterator[tuple[Store, str, S3Endpoint]]:
    """Serve DATA as ``x`` under faults; yield a store, the URL of ``x`` and the endpoint."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x").write_bytes(DATA)
    patience = {"stall_s": 0.3, "max_attempts": 4, **options}
    if client == "http":
        with serve_http(tmp_path, list(faults)) as http:
            yield open_store(patience), f"{http.url}/bucket/x", http
        return
    with serve_s3(tmp_path, list(faults)) as s3:
        store = open_store({**s3.storage_options, **patience}, client=client)  # type: ignore[arg-type]
        yield store, "s3://bucket/x", s3


PASSING = {
    "503": Fault("status", status=503, times=2),
    "429": Fault("status", status=429, times=2),
    "reset": Fault("reset", at=AT, times=2),
    "reset before the first byte": Fault("reset", at=0, times=1),
    "truncated under a correct header": Fault("truncate", at=AT, times=2),
    "stalled for ever": Fault("stall", at=AT, times=1),
    "slow": Fault("slow", bytes_per_s=10 << 20, times=-1),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", PASSING)
class TestAFaultThatPasses:
    """Whole objects, streams, ranges and many ranges all come out right."""

    def test_is_ridden_out(self, tmp_path: Path, client: str, fault: str) -> None:
        with broken(tmp_path, client, *[_copy(PASSING[fault])]) as (store, url, _):
            assert store.get(url) == DATA

    def test_is_ridden_out_by_streams_and_ranges(
        self, tmp_path: Path, client: str, fault: str
    ) -> None:
        with broken(tmp_path, client) as (store, url, server):
            server.faults[:] = [_copy(PASSING[fault])]
            assert b"".join(store.get_chunks(url)) == DATA
            server.faults[:] = [_copy(PASSING[fault])]
            start = 0 if PASSING[fault].at == 0 else 1_000_000
            assert store.get_range(url, start, 2_000_000) == DATA[start:2_000_000]
            server.faults[:] = [_copy(PASSING[fault])]
            ranges = [(0, 10), (AT - 5, AT + 5), (SIZE - 3, SIZE)]
            assert store.get_ranges(url, ranges) == [DATA[a:b] for a, b in ranges]


def test_numbers_that_an_error_tells_by_chance_are_no_status() -> None:
    """An error tells how long it took and from which port: 416 there is no answer 416."""
    took = "Error performing GET http://127.0.0.1:416/x in 416.08µs - Server returned non-2xx "
    assert not _PAST_END.search(took + "status code: 503 Service Unavailable")
    assert _PAST_END.search(took + "status code: 416 Range Not Satisfiable")


def _copy(fault: Fault) -> Fault:
    return Fault(**{**vars(fault), "hits": 0})


@pytest.mark.parametrize("client", ["obstore", "http"])
def test_a_broken_body_goes_on_at_its_byte(tmp_path: Path, client: str) -> None:
    faults = [Fault("reset", at=AT), Fault("truncate", at=AT + 700_000)]
    with broken(tmp_path, client, *faults) as (store, url, server):
        assert b"".join(store.get_chunks(url)) == DATA
        starts = [int(r.range.split("=")[1].split("-")[0]) for r in server.requests if r.range]
        assert starts
        assert starts == sorted(starts)
        assert starts[-1] > AT - (1 << 20)  # not from the beginning again


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503, times=-1),
        Fault("reset", at=AT, times=-1),
        Fault("truncate", at=AT, times=-1),
        Fault("stall", at=AT, times=-1),
    ],
    ids=lambda fault: fault.kind,
)
def test_at_the_end_of_patience_the_error_names_the_url_and_the_next_step(
    tmp_path: Path, client: str, fault: Fault
) -> None:
    with broken(tmp_path, client, _copy(fault), max_attempts=2) as (store, url, _):
        with pytest.raises(TransientError, match=r"gave up after 2 attempts.*/x.*try again later"):
            b"".join(store.get_chunks(url))
        with pytest.raises(ConnectionError):
            store.get_range(url, AT - 10, AT + 10)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_refused_request_is_final(tmp_path: Path, client: str) -> None:
    with broken(tmp_path, client, Fault("status", status=403, times=-1)) as (store, url, server):
        with pytest.raises(StoreError, match=r"not permitted|check rights"):
            store.get(url)
        assert len(server.requests) <= 2


def test_a_wrong_key_and_a_missing_bucket_are_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with serve_s3(tmp_path) as s3:
        wrong = open_store({**s3.storage_options, "secret": "another-secret"})
        right = open_store(s3.storage_options)
        for call in (wrong.get, wrong.stat, lambda url: list(wrong.list(url))):
            with pytest.raises(StoreError, match="not permitted; check rights and keys") as caught:
                call("s3://bucket/x")
            assert "<" not in str(caught.value)
        for verb, call in (
            ("list", lambda url: list(right.list(url))),
            ("write", lambda url: right.put(url, b"")),
        ):
            with pytest.raises(NotFoundError, match=f"cannot {verb} s3://none/x.*; check its name"):
                call("s3://none/x")


def test_an_object_replaced_while_it_is_read_is_an_error_not_a_blend(tmp_path: Path) -> None:
    with broken(tmp_path, "obstore", Fault("reset", at=AT)) as (store, url, _):
        chunks = store.get_chunks(url)
        next(chunks)
        (tmp_path / "bucket" / "x").write_bytes(DATA[::-1])
        with pytest.raises(StoreError, match="replaced while it was read"):
            b"".join(chunks)


def test_a_flipped_bit_is_seen_by_the_checksum_and_fetched_again(tmp_path: Path) -> None:
    with broken(tmp_path, "obstore", Fault("flip", at=AT)) as (store, url, server):
        request = Request(url, size=SIZE, checksum=xxh3_64_intdigest(DATA))
        with Cache(str(tmp_path / "cache")) as cache:
            with ShardFetcher(store, cache) as fetcher, fetcher.open(request) as entry:
                assert bytes(entry.data) == DATA
            assert server.count("GET", "/bucket/x") == 2
            assert cache.check() == []


def test_a_bit_flipped_for_good_is_a_corrupt_error_and_leaves_nothing(tmp_path: Path) -> None:
    with broken(tmp_path, "obstore", Fault("flip", at=AT, times=-1)) as (store, url, _):
        request = Request(url, size=SIZE, checksum=xxh3_64_intdigest(DATA))
        with Cache(str(tmp_path / "cache")) as cache:
            with (
                ShardFetcher(store, cache) as fetcher,
                pytest.raises(CorruptError, match=r"bucket/x.*xxh3:.*was expected"),
            ):
                fetcher.open(request)
            assert cache.entries() == []
            assert cache.check() == []
        with fetch_in_order(store, [request]) as results:
            assert isinstance(next(results).error, CorruptError)


def test_one_stalled_object_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    for i in range(40):
        (tmp_path / "bucket" / f"o{i:02d}").write_bytes(bytes([i]) * 1000)
    with serve_s3(tmp_path, [Fault("stall", path="*o03", at=10, times=1)]) as s3:
        store = open_store({**s3.storage_options, "stall_s": 3.0})
        requests = [Request(f"s3://bucket/o{i:02d}", tag=i) for i in range(40)]
        with fetch_in_order(store, requests, num_threads=8) as results:
            assert [next(results).request.tag for _ in range(3)] == [0, 1, 2]
            while s3.count("GET") < 40:  # all others are asked for while o03 hangs
                time.sleep(0.01)
            assert [r.unwrap()[0] for r in results] == list(range(3, 40))


def test_errors_are_values_and_those_after_them_still_come(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    for i in range(30):
        if not 5 <= i < 20:
            (tmp_path / "bucket" / f"o{i:02d}").write_bytes(bytes([i]))
    with serve_s3(tmp_path) as s3:
        store = open_store(s3.storage_options)
        requests = [Request(f"s3://bucket/o{i:02d}") for i in range(30)]
        with fetch_in_order(store, requests) as results:
            found = list(results)
    assert [isinstance(r.error, FileNotFoundError) for r in found] == [
        5 <= i < 20 for i in range(30)
    ]
    assert [r.data for r in found if r.error is None] == [
        bytes([i]) for i in range(30) if not 5 <= i < 20
    ]


def test_closing_is_quick_while_the_network_is_stuck(tmp_path: Path) -> None:
    with broken(tmp_path, "obstore", Fault("stall", at=AT, times=-1), stall_s=2.0) as (
        store,
        url,
        s3,
    ):
        fetcher = ShardFetcher(store, None)
        fetcher.schedule([Request(url, size=SIZE)])
        results = fetch_in_order(store, [Request(url, start=AT - 5, stop=AT + 5)] * 3)
        opener = threading.Thread(target=_swallow, args=(results,))
        opener.start()
        while s3.count("GET") < 2:
            time.sleep(0.01)
        started = time.monotonic()
        fetcher.close()
        results.close()
        opener.join()
        assert time.monotonic() - started < 2.0  # 2 * 0.4 s of waiting for threads, and slack


def _swallow(results: Any) -> None:
    for _ in results:
        pass
