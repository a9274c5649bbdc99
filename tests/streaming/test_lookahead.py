"""What is worked on ahead: in order, within its bound, for any number of readers."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardkit.samples.lookahead import Block, Lookahead, Slot
from shardkit.storage.flights import Cancelled


class Work:
    """Slots of 100 bytes that note when they are begun, and wait for a gate."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.begun: list[Any] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def slot(self, name: Any) -> Slot:
        def load() -> bytes:
            self.begun.append(name)
            self.gate.wait(60)
            return str(name).encode()

        return Slot(load, 100)

    def block(self, key: Any, count: int) -> Block:
        slots = [self.slot((key, number)) for number in range(count)]
        return Block(key, list(range(count)), slots)

    def blocks(self, keys: str, count: int) -> Iterator[Block]:
        return (self.block(key, count) for key in keys)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


def never() -> Block:
    raise AssertionError("it was made ahead")


def test_work_is_begun_in_order_and_no_further_than_its_bytes() -> None:
    work = Work()
    with Lookahead(4, 500) as ahead:
        ahead.begin(work.blocks("abc", 3))
        until(lambda: len(work.begun) == 5)
        for key in "abc":
            block = ahead.block(key, never)
            found = [ahead.take(slot) for slot in block.slots]
            assert found == [str((key, number)).encode() for number in range(3)]
        assert len(work.begun) == 9
        assert set(work.begun[:5]) == {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)}


def test_another_pass_begins_when_the_first_is_walked() -> None:
    work = Work()
    with Lookahead(2, 10_000) as ahead:
        first = ahead.begin(work.blocks("a", 2))
        second = ahead.begin(work.blocks("b", 2))
        until(lambda: len(work.begun) == 4)
        for key in "ab":
            block = ahead.block(key, never)
            assert [ahead.take(slot) for slot in block.slots]
        ahead.end(first)
        ahead.end(second)


def test_a_block_that_is_asked_for_early_is_made_once() -> None:
    work, made = Work(), []
    with Lookahead(2, 100) as ahead:

        def blocks() -> Iterator[Block]:
            for key in "ab":
                if not ahead.was_passed(key):
                    made.append(key)
                    yield work.block(key, 40)

        ahead.begin(blocks())
        early = ahead.block("b", lambda: work.block("b", 40))
        assert [ahead.take(slot) for slot in early.slots]
        late = ahead.block("a", never)
        assert [ahead.take(slot) for slot in late.slots]
    assert made == ["a"]
    assert len(work.begun) == 80


def test_what_nobody_takes_gives_its_room_back() -> None:
    work = Work()
    with Lookahead(2, 200) as ahead:
        ended = ahead.begin(work.blocks("a", 2))
        ahead.begin(work.blocks("bc", 2))
        until(lambda: len(work.begun) == 2)
        ahead.end(ended)
        block = ahead.block("b", never)  # and what was begun ahead for it
        until(lambda: len(work.begun) == 4)
        ahead.drop(block.slots)
        assert [ahead.take(slot) for slot in ahead.block("c", never).slots]


def test_errors_are_those_of_their_slots() -> None:
    def fail() -> bytes:
        raise ValueError("this one")

    good, bad = Work().slot("good"), Slot(fail)
    with Lookahead(2, 1_000) as ahead:
        ahead.begin(iter([Block("a", [0], [bad, good])]))
        block = ahead.block("a", never)
        with pytest.raises(ValueError, match="this one"):
            ahead.take(block.slots[0])
        assert ahead.take(block.slots[1]) == b"good"


def test_who_waits_when_it_is_closed_is_told() -> None:
    work = Work(is_open=False)
    ahead = Lookahead(1, 1_000)
    ahead.begin(work.blocks("a", 1))
    until(lambda: len(work.begun) == 1)
    block = ahead.block("a", never)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            ahead.take(block.slots[0])
        except Cancelled as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: block.slots[0].arrived is not None)
    ahead.close()
    thread.join(30)
    work.gate.set()
    assert told


def test_many_readers_of_one_pass_get_each_block_once() -> None:
    work = Work()
    found: list[bytes] = []
    with Lookahead(8, 1_000) as ahead:
        ahead.begin(work.blocks("abcdefgh", 20))

        def read(keys: str) -> None:
            for key in keys:
                block = ahead.block(key, lambda key=key: work.block(key, 20))  # type: ignore[misc]
                found.extend(ahead.take(slot) for slot in block.slots)

        threads = [threading.Thread(target=read, args=(keys,)) for keys in ("aceg", "bdfh")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(set(found)) == len(found) == 160


def test_without_threads_all_work_is_done_by_who_takes() -> None:
    work = Work()
    with Lookahead(0, 1_000) as ahead:
        ahead.begin(work.blocks("a", 3))
        block = ahead.block("a", never)
        assert not work.begun
        assert [ahead.take(slot) for slot in block.slots]
        assert len(work.begun) == 3


def test_what_was_taken_is_held_by_nobody_and_needs_no_collector() -> None:
    class Waits:
        """What rows do: they know their slot, and their slot's work knows them."""

        slot: Slot

        def load(self) -> bytearray:
            return bytearray(100)

    gc.disable()
    try:
        with Lookahead(2, 500) as ahead:
            taken, dropped = Waits(), Waits()
            for waits in (taken, dropped):
                waits.slot = Slot(waits.load, 100)
            gone = [weakref.ref(taken), weakref.ref(dropped)]
            value = ahead.take(taken.slot)
            assert taken.slot.value is None and len(value) == 100
            ahead.drop([dropped.slot])
            del taken, dropped, waits
            assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_a_child_forked_while_any_lock_is_held_closes_what_it_inherits() -> None:
    ahead = Lookahead(2, 1_000)
    taken = Work().slot("taken")
    locks = (ahead._lock, ahead._pulling, ahead._downloads._lock, ahead._downloads._crew._lock)
    for lock in locks:
        lock.acquire()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            with pytest.raises(Cancelled):
                ahead.take(taken)
            ahead.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for lock in locks:
        lock.release()
    ahead.close()
