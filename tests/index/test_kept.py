"""What is kept is made once, within its limit, by threads and across forks."""

from __future__ import annotations

import os
import threading
import time

import pytest

from shardkit.index.kept import Kept


def test_a_value_is_made_once_however_many_threads_ask() -> None:
    kept: Kept[int] = Kept(10)
    made = []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(kept.get(3, make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 8
    assert len(made) == 1


def test_the_oldest_go_first_and_the_last_stays_whatever_it_weighs() -> None:
    kept: Kept[str] = Kept(5, len)
    for number, value in enumerate(["aa", "bb"]):
        kept.get(number, lambda v=value: v)  # type: ignore[misc]
    assert kept.get(0, lambda: "new") == "aa"
    kept.get(2, lambda: "cc")
    assert kept.get(0, lambda: "new") == "aa"
    assert kept.get(1, lambda: "b2") == "b2"
    kept.get(3, lambda: "far too long")
    assert kept.get(3, lambda: "new") == "far too long"
    assert kept.get(0, lambda: "new") == "new"


def test_an_error_is_raised_and_the_next_one_tries_again() -> None:
    kept: Kept[int] = Kept(1)
    with pytest.raises(ZeroDivisionError):
        kept.get(0, lambda: 1 // 0)
    assert kept.get(0, lambda: 5) == 5


def test_a_child_forked_while_a_value_is_made_makes_its_own() -> None:
    kept: Kept[int] = Kept(1)
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        inside.set()
        go_on.wait(30)
        return 1

    thread = threading.Thread(target=kept.get, args=(0, slow))
    thread.start()
    inside.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(kept.get(0, lambda: 42))
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 42
