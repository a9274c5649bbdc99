from __future__ import annotations

import threading

import pytest

from shardkit.storage.keeping import Job, Keeper


def nothing() -> None:
    pass


def test_one_thread_writes_and_the_others_leave_it_to_that_one() -> None:
    keeper = Keeper()
    begun, gate = threading.Event(), threading.Event()
    written: list[str] = []

    def slow() -> None:
        begun.set()
        gate.wait(30)
        written.append("first")

    writer = threading.Thread(target=keeper.keep, args=(Job(1, slow, nothing),))
    writer.start()
    begun.wait(30)
    for name in ("second", "third"):
        keeper.keep(Job(1, lambda name=name: written.append(name), nothing))  # type: ignore[misc]
    assert written == []
    assert not keeper.is_idle
    gate.set()
    keeper.settle()
    writer.join(30)
    assert written == ["first", "second", "third"]
    assert keeper.is_idle


def test_an_error_is_raised_where_the_object_was_left_to_nobody_else() -> None:
    done: list[bool] = []

    def fail() -> None:
        raise OSError("full")

    keeper = Keeper()
    with pytest.raises(OSError, match="full"):
        keeper.keep(Job(1, fail, lambda: done.append(True)))
    assert done
    assert keeper.is_idle
