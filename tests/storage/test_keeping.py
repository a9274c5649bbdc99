from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from shardkit.storage.entries import entry_name
from shardkit.storage.keeping import Job, Keeper
from shardkit.storage.segments import Packed

Tell = Callable[[Exception | None], None]


def nothing(error: Exception | None) -> None:
    del error


def job(key: str, tell: Tell = nothing) -> Job:
    return Job(Packed(entry_name(key), key, b"x", 0, 0), tell, is_file=False)


def keys(jobs: Sequence[Job]) -> list[str]:
    return [job.packed.key for job in jobs]


def test_one_thread_writes_and_the_others_leave_it_to_that_one() -> None:
    begun, gate = threading.Event(), threading.Event()
    written: list[list[str]] = []

    def write(jobs: Sequence[Job]) -> None:
        if not begun.is_set():
            begun.set()
            gate.wait(30)
        written.append(keys(jobs))

    keeper = Keeper(write)
    writer = threading.Thread(target=keeper.keep, args=([job("first")],))
    writer.start()
    begun.wait(30)
    for key in ("second", "third"):
        keeper.keep([job(key)])
    assert written == []
    assert not keeper.is_idle
    gate.set()
    keeper.settle()
    writer.join(30)
    assert written == [["first"], ["second", "third"]]  # what waited goes together
    assert keeper.is_idle


def test_every_job_is_done_and_none_twice_however_many_threads_keep() -> None:
    written: list[str] = []
    done: list[str] = []

    def write(jobs: Sequence[Job]) -> None:
        assert jobs
        written.extend(keys(jobs))

    keeper = Keeper(write)

    def keep(thread: int) -> None:
        for i in range(200):
            key = f"{thread}-{i}"
            keeper.keep([job(key, lambda error, key=key: done.append(key))])  # type: ignore[misc]

    threads = [threading.Thread(target=keep, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    keeper.settle()
    assert (
        sorted(written) == sorted(done) == sorted(f"{t}-{i}" for t in range(8) for i in range(200))
    )
    assert keeper.is_idle


def test_each_job_is_told_its_own_error_once() -> None:
    told: list[tuple[str, str]] = []

    def write(jobs: Sequence[Job]) -> None:
        jobs[1].error = OSError("full")

    keeper = Keeper(write)
    jobs = [job(key, lambda error, key=key: told.append((key, str(error)))) for key in "abc"]  # type: ignore[misc]
    keeper.keep(jobs)
    assert told == [("a", "None"), ("b", "full"), ("c", "None")]
    assert keeper.is_idle


def test_a_write_that_raises_still_lets_go_of_every_job() -> None:
    done: list[bool] = []

    def broken(jobs: Sequence[Job]) -> None:
        raise KeyboardInterrupt

    keeper = Keeper(broken)
    with pytest.raises(KeyboardInterrupt):
        keeper.keep([job("k", lambda _: done.append(True))])
    assert done == [True]
    assert keeper.is_idle


def test_what_came_while_the_keeper_rested_is_written_afterwards() -> None:
    """While the process forks, say: else whoever waits for the object would wait for ever."""
    written: list[str] = []
    done = threading.Event()
    keeper = Keeper(lambda jobs: written.extend(keys(jobs)))
    keeper.rest()
    thread = threading.Thread(target=keeper.keep, args=([job("k", lambda _: done.set())],))
    thread.start()
    assert not done.wait(0.1)
    keeper.go_on()
    assert done.wait(10)
    thread.join(10)
    assert written == ["k"]
    assert keeper.is_idle
