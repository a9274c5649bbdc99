"""Many plain requests at once in one thread: what comes, comes whole; all else is told as such."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence

import pytest

from shardkit.errors import NotFoundError
from shardkit.storage import forks
from shardkit.storage.plain_get import Head, PlainGetter, parse_head
from shardkit.storage.receiving import Answer, Receiver
from tests.storage.plain_server import BODY, HEAD, Pieces, serve


def getter_with(url: str, num_connections: int, stall_s: float = 5.0) -> PlainGetter:
    """A getter that has so many idle connections to a server."""
    getter = PlainGetter({}, stall_s)
    for _ in range(num_connections):
        getter.give_back(url, getter._connected(url))
    return getter


def answers_of(receiver: Receiver[int], count: int) -> dict[int, Answer[int]]:
    found: list[Answer[int]] = []
    until = time.monotonic() + 30
    while len(found) < count and time.monotonic() < until:
        found += receiver.wait()
    return {answer.tag: answer for answer in found}


def usual(body: bytes, version: int) -> Pieces:
    head = b'HTTP/1.1 200 OK\r\nETag: "%d"\r\ncontent-length: %d\r\n\r\n' % (version, len(body))
    return [head, body]


def test_bodies_of_any_length_come_whole_one_after_another_on_one_connection() -> None:
    bodies = [random.Random(n).randbytes(n) for n in (0, 1, 8_100, 8_192, 110_000, 3_000_000, 5)]
    with serve(*(usual(body, n) for n, body in enumerate(bodies))) as (url, asked):
        getter, receiver = getter_with(url, 1), Receiver[int]()
        for n, body in enumerate(bodies):
            assert receiver.start(getter.request(f"{url}/{n}?x=1"), n)
            assert answers_of(receiver, 1) == {n: Answer(n, body, str(n))}
        assert asked == [b"1 /%d?x=1" % n for n in range(len(bodies))]
        assert receiver.close() == []


def test_many_are_under_way_at_once_and_the_slow_one_keeps_nobody_waiting() -> None:
    answers: list[Pieces] = [[HEAD, BODY[:9_000], 1.0, BODY[9_000:]], *[usual(BODY, 0)] * 7]
    with serve(*answers) as (url, _):
        getter, receiver = getter_with(url, 8), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/slow"), 0)
        while not receiver._busy or receiver.wait(0.01) or not _has_begun(receiver):
            pass
        for n in range(1, 8):
            assert receiver.start(getter.request(f"{url}/{n}"), n)
        assert receiver.num_busy == 8
        assert set(answers_of(receiver, 7)) == set(range(1, 8))
        assert answers_of(receiver, 1) == {0: Answer(0, BODY, "v1")}
        receiver.close()


def _has_begun(receiver: Receiver[int]) -> bool:
    return any(connection.num_received for connection in receiver._busy.values())


@pytest.mark.parametrize("cut", [1, 20, len(HEAD) - 1, len(HEAD), len(HEAD) + 1])
def test_heads_and_bodies_may_come_in_pieces(cut: int) -> None:
    whole = HEAD + BODY
    with serve([whole[:cut], 0.05, whole[cut:]]) as (url, _):
        getter, receiver = getter_with(url, 1), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/x"), 0)
        assert answers_of(receiver, 1) == {0: Answer(0, BODY, "v1")}
        receiver.close()


CHUNKED = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'
ODD: dict[str, Pieces] = {
    "no length": [CHUNKED],
    "no version": [HEAD.replace(b"ETag", b"Else"), BODY],
    "not found, without an end": [b"HTTP/1.1 404 Not Found\r\n\r\nno such"],
    "not found, at length": [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 20000\r\n\r\n" + b" " * 20_000
    ],
    "not found, cut": [b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nno such", None],
    "not found, in odd pieces": [b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n"],
    "not found, in pieces for ever": [
        b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"400\r\n" + b"x" * 1024 + b"\r\n",
        *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 20,
    ],
    "slow down": [b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"],
    "no head": [b"x" * 20_000],
    "another protocol": [b"SSH-2.0-OpenSSH_9.6\r\n\r\n"],
    "more than the body": [HEAD.replace(b"110000", b"10") + BODY],
    "a length that is no number": [HEAD.replace(b"110000", "11\u00b2".encode("latin-1")), BODY],
    "a length beyond all memory": [HEAD.replace(b"110000", b"9" * 18), BODY],
    "a length beyond all numbers": [HEAD.replace(b"110000", b"9" * 5_000), BODY],
    "closed at once": [None],
    "closed in the head": [HEAD[:20], None],
    "closed in the body": [HEAD, BODY[:50_000], None],
    "silent": [3.0],
    "silent in the head": [HEAD[:20], 3.0],
    "silent in the body": [HEAD, BODY[:50_000], 3.0],
}


@pytest.mark.parametrize("pieces", ODD.values(), ids=ODD.keys())
def test_what_is_not_as_usual_is_to_be_asked_otherwise(pieces: Pieces) -> None:
    with serve(pieces) as (url, _):
        getter, receiver = getter_with(url, 1, stall_s=0.3), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/x"), 7)
        assert answers_of(receiver, 1) == {7: Answer(7, None)}
        assert receiver.num_busy == 0
        receiver.close()
        assert len(getter._pool) == 0  # nobody gets that connection again


XML = b"<Error><Code>%b</Code><Message>It is not there</Message></Error>"


def refusal(status: bytes, text: bytes, *, chunked: bool) -> bytes:
    if not chunked:
        return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(text), text)
    parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (text[:10], text[10:]) if part]
    head = b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    return head + b"".join(parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cut", [0, 20, 70, -3])
def test_that_there_is_no_such_object_is_told_and_the_connection_kept(
    chunked: bool, cut: int
) -> None:
    whole = refusal(b"404 Not Found", XML % b"NoSuchKey", chunked=chunked)
    empty = refusal(b"410 Gone", b"", chunked=chunked)
    with serve([whole[:cut], 0.05, whole[cut:]], [empty], usual(BODY, 1)) as (url, asked):
        getter, receiver = getter_with(url, 1), Receiver[int]()
        for n, said in enumerate((b"404 Not Found", b"410 Gone")):
            assert receiver.start(getter.request(f"{url}/x"), n)
            answer = answers_of(receiver, 1)[n]
            assert answer.data is None
            with pytest.raises(NotFoundError, match=rf"cannot read s3://b/x: .*{said.decode()}"):
                answer.raise_if_missing("s3://b/x")
        assert receiver.start(getter.request(f"{url}/x"), 2)
        assert answers_of(receiver, 1) == {2: Answer(2, BODY, "1")}
        assert asked == [b"1 /x"] * 3
        receiver.close()


@pytest.mark.parametrize(
    ("status", "code"), [(b"403 Forbidden", b"AccessDenied"), (b"404 Not Found", b"NoSuchBucket")]
)
def test_other_refusals_are_to_be_asked_otherwise_and_the_connection_is_kept(
    status: bytes, code: bytes
) -> None:
    refused = refusal(status, XML % code, chunked=False)
    with serve([refused], usual(BODY, 1)) as (url, asked):
        getter, receiver = getter_with(url, 1), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/x"), 0)
        assert answers_of(receiver, 1) == {0: Answer(0, None)}
        assert receiver.start(getter.request(f"{url}/x"), 1)
        assert answers_of(receiver, 1)[1].data == BODY
        assert asked == [b"1 /x"] * 2
        receiver.close()


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("cut", [10, len(HINTS), len(HINTS) + 5, 2 * len(HINTS)])
def test_informational_answers_are_passed_over(cut: int) -> None:
    whole = HINTS * 2 + HEAD + BODY
    with serve([whole[:cut], 0.05, whole[cut:]], usual(BODY, 2)) as (url, asked):
        getter, receiver = getter_with(url, 1), Receiver[int]()
        for n in range(2):
            assert receiver.start(getter.request(f"{url}/x"), n)
            assert answers_of(receiver, 1)[n].data == BODY
        assert asked == [b"1 /x"] * 2
        receiver.close()


def test_a_body_that_drips_is_not_a_stall() -> None:
    pieces: Pieces = [HEAD]
    for at in range(0, len(BODY), 11_000):
        pieces += [0.2, BODY[at : at + 11_000]]
    with serve(pieces) as (url, _):
        getter, receiver = getter_with(url, 1, stall_s=1.5), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/x"), 0)
        assert answers_of(receiver, 1) == {0: Answer(0, BODY, "v1")}
        receiver.close()


def test_without_an_idle_connection_nothing_is_started() -> None:
    with serve(usual(BODY, 1)) as (url, asked):
        getter, receiver = getter_with(url, 0), Receiver[int]()
        assert not receiver.start(getter.request(f"{url}/x"), 0)
        assert asked == [] and receiver.close() == []


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    closing = [HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), BODY]
    with serve(closing, [*usual(BODY, 2), None]) as (url, _):
        getter, receiver = getter_with(url, 2), Receiver[int]()
        for n in range(2):
            assert receiver.start(getter.request(f"{url}/{n}"), n)
            assert answers_of(receiver, 1)[n].data == BODY
        time.sleep(0.1)
        receiver.wait(1.0)  # the kernel tells that the second has ended
        assert not receiver.start(getter.request(f"{url}/x"), 2)
        receiver.close()


def test_closing_gives_idle_connections_back_and_tells_what_was_under_way() -> None:
    with serve(usual(BODY, 1), [3.0]) as (url, asked):
        getter, receiver = getter_with(url, 2), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/a"), 0)
        answers_of(receiver, 1)
        assert receiver.start(getter.request(f"{url}/b"), 1)
        while len(asked) < 2:
            time.sleep(0.01)
        assert receiver.close() == [1]
        receiver.wake()  # too late, and harmless
        assert getter.take(url) is not None and getter.take(url) is None


def test_it_can_be_woken() -> None:
    receiver = Receiver[int]()
    woken: list[Sequence[Answer[int]]] = []
    thread = threading.Thread(target=lambda: woken.append(receiver.wait()))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    receiver.wake()
    thread.join(30)
    assert woken == [[]]
    assert receiver.wait(0.05) == []  # it was woken once
    receiver.close()


def test_what_a_forked_child_has_open_keeps_nobody_busy() -> None:
    """The kernel tells of a connection as long as any process has it, closed here or not."""
    with serve([*usual(BODY, 1), None], [3.0], usual(BODY, 2)) as (url, _):
        getter, receiver = getter_with(url, 3, stall_s=0.3), Receiver[int]()
        forks._alive.discard(receiver)  # a child that nobody told of the fork
        assert receiver.start(getter.request(f"{url}/ends"), 0)
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        try:
            assert set(answers_of(receiver, 1)) == {0}
            assert receiver.start(getter.request(f"{url}/silent"), 1)
            assert answers_of(receiver, 1)[1].data is None
            started, count = time.monotonic(), 0
            while time.monotonic() - started < 0.3:
                receiver.wait(0.3)
                count += 1
            assert count < 10
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            receiver.close()


def test_a_forked_child_closes_what_is_its_parents() -> None:
    with serve(usual(BODY, 1), usual(BODY, 2)) as (url, _):
        getter, receiver = getter_with(url, 2), Receiver[int]()
        assert receiver.start(getter.request(f"{url}/a"), 0)
        inherited = [receiver._poll.fileno(), receiver._event, *receiver._busy]
        child = os.fork()
        if child == 0:
            os._exit(any(_is_open(fd) for fd in inherited))
        assert os.waitpid(child, 0)[1] == 0
        assert answers_of(receiver, 1)[0].data == BODY  # and the parent goes on
        assert receiver.start(getter.request(f"{url}/b"), 1)
        assert answers_of(receiver, 1)[1].data == BODY
        receiver.close()


def _is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_an_answer_that_breaks_us_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several answers are seen by one look at the kernel: all of them are told."""

    def understood(start: bytes) -> Head:
        if b"odd" in start:
            raise MemoryError
        return parse_head(start)

    monkeypatch.setattr("shardkit.storage.receiving._understood", understood)
    odd: Pieces = [HEAD.replace(b"v1", b"odd"), BODY]
    with serve(usual(BODY, 1), odd, usual(BODY, 2)) as (url, asked):
        getter, receiver = getter_with(url, 3), Receiver[int]()
        for n in range(3):
            assert receiver.start(getter.request(f"{url}/{n}"), n)
            while len(asked) <= n:
                time.sleep(0.01)
        time.sleep(0.2)  # all have come
        found = answers_of(receiver, 3)
        assert [found[n].data for n in range(3)] == [BODY, None, BODY]
        receiver.close()


def test_a_host_that_the_user_names_is_the_only_one() -> None:
    data = PlainGetter({"Host": "other", "User-Agent": "mine"}, 1.0).request("http://h/x").data
    names = [line.partition(b":")[0].lower() for line in data.split(b"\r\n")[1:-2]]
    assert sorted(names) == [b"accept-encoding", b"host", b"user-agent"]
    assert b": other\r\n" in data and b": mine\r\n" in data
