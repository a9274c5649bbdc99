"""Asking again: who is told, and when it ends."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shardkit.errors import StoreError, TransientError
from shardkit.storage.crew import Crew
from shardkit.storage.fetch import Request, fetch_in_order
from shardkit.storage.flights import Cancelled
from shardkit.storage.http_store import HttpStore
from shardkit.storage.options import Options
from shardkit.storage.retry import Patience, retried
from shardkit.storage.store import open_store

SLOW = Patience(first_wait_s=600.0, max_wait_s=600.0)
"""Twelve waits, of five minutes on average."""


@pytest.fixture
def refusing() -> str:
    """A place of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("shardkit-")]


def until(is_so: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_server_that_refuses_connections_is_told_of_once_not_once_an_object(
    refusing: str, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    bucket = f"{scheme}-bucket"
    place = refusing if scheme == "http" else f"s3://{bucket}"
    keys = {"key": "an-access-key", "secret": "a-secret-key", "region": "r", "max_attempts": 5}
    options = keys if scheme == "http" else {**keys, "endpoint_url": refusing}
    store = open_store(options)
    with fetch_in_order(store, [Request(f"{place}/{n}") for n in range(30)]) as results:
        found = list(results)
    assert all("gave up after 5 attempts" in str(result.error) for result in found)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{place} fails: cannot read {place}/")
    assert "3 attempts in a row so far, up to 2 more" in warnings[0]


def test_listing_and_writing_are_no_more_patient_than_reading(refusing: str) -> None:
    keys = {"key": "an-access-key", "secret": "a-secret-key", "region": "r", "max_attempts": 4}
    store = open_store({**keys, "endpoint_url": refusing})
    for call in (
        lambda: list(store.list("s3://b/x")),
        lambda: store.put("s3://b/x", b""),
        lambda: store.delete("s3://b/x"),
    ):
        with pytest.raises(TransientError, match="gave up after 4 attempts in a row"):
            call()


def test_a_failure_that_passes_at_once_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    left = [TransientError("broke"), TransientError("broke")]

    def ask() -> str:
        if left:
            raise left.pop()
        return "it"

    with caplog.at_level(logging.WARNING):
        assert retried(Patience(), "http://passing/x", ask) == "it"
    assert not caplog.records


def test_a_crew_that_is_closed_waits_for_no_server() -> None:
    def ask() -> None:
        asked.set()
        raise TransientError("down")

    def work() -> None:
        try:
            retried(SLOW, "http://down/x", ask)
        except Cancelled:
            cancelled.set()

    asked, cancelled = threading.Event(), threading.Event()
    crew = Crew(1, "test")
    crew.submit(work)
    assert asked.wait(30)
    crew.close()
    assert cancelled.wait(30)
    until(lambda: not ours())


@pytest.mark.parametrize("ask", ["whole", "ranges"])
def test_nothing_outlives_a_closed_iterator(refusing: str, ask: str) -> None:
    store = HttpStore(Options())
    store._patience = SLOW
    is_waiting = threading.Event()
    asked = store._client.open

    def noted(*arguments: Any, **options: Any) -> Any:
        is_waiting.set()
        return asked(*arguments, **options)

    store._client.open = noted  # type: ignore[method-assign]
    if ask == "ranges":
        crew = Crew(1, "test")
        ranges = [(n << 20, (n << 20) + 1) for n in range(4)]
        crew.submit(functools.partial(_swallow, lambda: store.get_ranges(f"{refusing}/x", ranges)))
        assert is_waiting.wait(30)
        crew.close()
    else:
        with fetch_in_order(store, [Request(f"{refusing}/{n}") for n in range(8)]) as results:
            consumer = threading.Thread(target=_swallow, args=(lambda: next(results),))
            consumer.start()
            assert is_waiting.wait(30)
        consumer.join(30)
    until(lambda: not ours())


def _swallow(call: Callable[[], Any]) -> None:
    with contextlib.suppress(StoreError, Cancelled, StopIteration):
        call()
