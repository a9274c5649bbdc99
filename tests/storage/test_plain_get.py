"""Small objects over plain HTTP: the usual answer is received in place, all others another way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shardkit.errors import NotFoundError, StoreError, TransientError
from shardkit.storage.http_client import HttpClient
from shardkit.storage.plain_get import PlainGetter
from shardkit.storage.store import open_store
from tests.s3 import serve_s3
from tests.storage.plain_server import BODY, HEAD, Pieces, serve


def test_bodies_of_any_length_come_whole_over_one_connection() -> None:
    bodies = [random.Random(n).randbytes(n) for n in (0, 1, 4_000, 110_000, 3_000_000)]
    answers: list[Pieces] = [
        [b'HTTP/1.1 200 OK\r\nETag: "%d"\r\ncontent-length: %d\r\n\r\n' % (n, len(body)), body]
        for n, body in enumerate(bodies)
    ]
    with serve(*answers) as (url, asked):
        getter = PlainGetter({}, stall_s=5)
        for n, body in enumerate(bodies):
            assert getter.get(f"{url}/b/{n}?x=1", "it") == (body, str(n))
        assert asked == [b"1 /b/%d?x=1" % n for n in range(len(bodies))]


def test_a_body_that_drips_is_not_a_stall() -> None:
    pieces: Pieces = [HEAD]
    for at in range(0, len(BODY), 11_000):
        pieces += [0.2, BODY[at : at + 11_000]]
    with serve(pieces) as (url, _):
        assert PlainGetter({}, stall_s=1.5).get(f"{url}/x", "it") == (BODY, "v1")


@pytest.mark.parametrize(
    "pieces",
    [[3.0], [HEAD, 3.0], [HEAD, BODY[:50_000], 3.0], [HEAD, BODY[:50_000], None], [None]],
    ids=["before the head", "before the body", "in the body", "cut", "closed at once"],
)
def test_silence_and_short_bodies_are_passing_failures(pieces: Pieces) -> None:
    with serve(pieces, pieces) as (url, _):
        getter = PlainGetter({}, stall_s=0.2)
        with pytest.raises(TransientError, match="it"):
            getter.get(f"{url}/x", "it")
        assert len(getter._pool) == 0


def test_a_kept_connection_that_has_ended_is_replaced() -> None:
    with serve([HEAD, BODY, None], [HEAD, BODY]) as (url, asked):
        getter = PlainGetter({}, stall_s=5)
        assert [getter.get(f"{url}/x", "it")[1] for _ in range(2)] == ["v1", "v1"]
        assert asked == [b"1 /x", b"2 /x"]


def test_a_connection_that_the_server_will_close_is_not_kept() -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with serve([head, BODY], [head, BODY]) as (url, asked):
        getter = PlainGetter({}, stall_s=5)
        assert [getter.get(f"{url}/x", "it")[0] for _ in range(2)] == [BODY, BODY]
        assert asked == [b"1 /x", b"2 /x"]


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD[:20], 0.1, HEAD[20:], BODY],
        [HEAD.replace(b"ETag", b"Else"), BODY],
        [b'HTTP/1.1 200 OK\r\nETag: "1"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
        [b'HTTP/1.0 200 OK\r\nETag: "1"\r\n\r\n', None],
        [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"],
        [HEAD.replace(b"110000", "\u00b2".encode("latin-1")), BODY],
        [HEAD.replace(b"200", "\u00b2\u00b2\u00b2".encode("latin-1")), BODY],
        [HEAD.replace(b"110000", b"9" * 17), BODY],
        [HEAD.replace(b"110000", b"9" * 5_000), BODY],
        [b"HTTP/1.1 307 Elsewhere\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n"],
    ],
    ids=[
        "head in pieces",
        "no etag",
        "chunked",
        "HTTP/1.0",
        "refused",
        "odd length",
        "odd status",
        "huge",
        "absurd",
        "redirected",
    ],
)
def test_any_other_answer_is_for_somebody_else(pieces: Pieces) -> None:
    with serve(pieces) as (url, _), pytest.raises(StoreError) as caught:
        PlainGetter({}, stall_s=5).get(f"{url}/x", "it")
    assert not isinstance(caught.value, (NotFoundError, TransientError))


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"


def test_informational_answers_are_passed_over() -> None:
    """By all our clients: this one, and the one that asks for ranges."""
    pieces: Pieces = [HINTS, 0.05, HINTS + HEAD, BODY]
    hinted: Pieces = [b"HTTP/1.1 100 Continue\r\n\r\n", *pieces]
    with serve(pieces, pieces, hinted, hinted) as (url, asked):
        getter, client = PlainGetter({}, stall_s=5), HttpClient({}, stall_s=5)
        for _ in range(2):
            assert getter.get(f"{url}/x", "it") == (BODY, "v1")
        for _ in range(2):
            body = client.open(f"{url}/x", "it", 0, None, lambda: -1)
            assert b"".join(body.chunks) == BODY
        assert asked == [b"1 /x"] * 2 + [b"2 /x"] * 2


@pytest.mark.parametrize(
    "refused",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nnothing",
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nnothing\r\n0\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nnothing",
    ],
)
def test_behind_a_refusal_the_connection_is_kept(refused: bytes) -> None:
    with serve([refused[:60], 0.05, refused[60:]], [HEAD, BODY]) as (url, asked):
        getter = PlainGetter({}, stall_s=5)
        with pytest.raises(StoreError, match="the server said 40"):
            getter.get(f"{url}/x", "it")
        assert getter.get(f"{url}/x", "it") == (BODY, "v1")
        assert asked == [b"1 /x"] * 2


def test_a_proxy_of_the_system_is_not_gone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with serve([HEAD, BODY]) as (url, asked):
        with pytest.raises(StoreError, match="proxy"):
            PlainGetter({}, stall_s=5).get(f"{url}/x", "it")
        assert not asked


def test_objects_of_a_bucket_come_plainly_and_those_that_cannot_come_all_the_same(
    tmp_path: Path,
) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x").write_bytes(BODY)
    with serve_s3(tmp_path) as s3:
        store = open_store(s3.storage_options)
        assert store.get("s3://bucket/x") == BODY
        assert "X-Amz-Signature" in s3.requests[-1].query
        (tmp_path / "bucket" / "x").unlink()
        with pytest.raises(NotFoundError):
            store.get("s3://bucket/x")
        assert s3.count("GET") == 2
    with serve_s3(tmp_path, auth=False) as s3:
        (tmp_path / "bucket" / "x").write_bytes(BODY)
        store = open_store({"endpoint_url": s3.url, "anon": True})
        assert store.get("s3://bucket/x") == BODY


def test_what_is_refused_says_nothing_of_the_server(tmp_path: Path) -> None:
    """S3 answers 403 for what is missing, too, to who may not list."""
    refused: Pieces = [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"]
    odd: Pieces = [HEAD.replace(b"ETag", b"Else"), BODY]
    with serve(*[refused] * 10, *[odd] * 4) as (url, _):
        getter = PlainGetter({}, stall_s=5)
        for number in range(14):
            assert getter.is_worthwhile(url), number
            with pytest.raises(StoreError):
                getter.get(f"{url}/x", "it")
        assert not getter.is_worthwhile(url)
