"""Work done ahead of use by a few threads: files fetched, providers asked, a bounded way ahead.

Rows are cut into blocks. A *pass* yields the blocks of an epoch (or of one read) in order; each
block knows the slots, one a file to fetch, that its rows wait for. Whoever takes something out
tops the lookahead up: no thread is there for that alone, and where nothing is far there is none.
A block that is asked for before its pass came to it is made by who asks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any

from shardkit.storage.cache import Cache
from shardkit.storage.downloads import Downloads
from shardkit.storage.flights import Cancelled
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.protocol import Store

__all__ = ["Block", "Lookahead", "Pass", "Slot"]

_MOST_ROWS = 2_048
"""Rows made ahead and not yet asked for: two blocks."""

_FIRST_GUESS = 256 << 10
"""Bytes of a file of which nothing is known; then the mean of those seen."""

_MOST_PASSED = 4_096

_REFILL = 32
"""What is taken is made good as soon as this part of ``max_bytes`` has gone: a few at a time."""

_CLOSE_S = 0.05
"""How long closing waits for its threads: a loader has waited for its own before."""


class _State(Enum):
    NEW = 0
    RUNNING = 1
    DONE = 2


class Slot:
    """A piece of work and what it gave; its state is guarded by the lookahead's lock."""

    __slots__ = ("arrived", "counted", "error", "key", "load", "num_bytes", "state", "url", "value")

    def __init__(
        self, load: Callable[[], Any], num_bytes: int = -1, *, url: str = "", key: str = ""
    ) -> None:
        """``load`` gives the value; ``num_bytes`` is how much that will be, -1 unknown.

        ``url`` and ``key``: as of ``downloads.Wanted``.
        """
        self.load = load
        self.num_bytes = num_bytes
        self.url = url
        self.key = key
        self.counted = 0
        self.state = _State.NEW
        self.value: Any = None
        self.error: Exception | None = None
        self.arrived: threading.Event | None = None  # made by who waits


def _nothing() -> None:
    """What is left of a slot's work when it has begun."""


@dataclass(slots=True)
class Block:
    """Consecutive rows in any form, and the slots that they wait for, in order."""

    key: Any
    rows: list[Any]
    slots: list[Slot] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Pass:
    """Blocks to come, and those that were made and not yet asked for."""

    blocks: Iterator[Block]
    made: dict[Any, Block] = field(default_factory=dict)
    is_walked: bool = False


class Lookahead:
    """Threads that do the work of slots ahead, for any number of consumers. A context manager.

    Mutable state, under one lock: the passes, the slots that wait for room, how many bytes are on
    their way or wait to be taken, who waits. Blocks are made outside it (that reads the index), by
    one thread at a time.

    Args:
        num_threads: slots worked on at once; 0 leaves all work to who takes.
        max_bytes: of slots that were begun and not taken; one is begun in any case.
        store, cache, as_file: as of ``Downloads``.
    """

    def __init__(
        self,
        num_threads: int,
        max_bytes: int,
        *,
        store: Store | None = None,
        cache: Cache | None = None,
        as_file: bool = False,
    ) -> None:
        self.closed = threading.Event()
        self._downloads: Downloads[Slot] = Downloads(
            max(1, num_threads),
            "ahead",
            self._claim,
            self._end,
            store=store,
            cache=cache,
            as_file=as_file,
        )
        self._max_bytes = max_bytes if num_threads else -1
        self._lock = threading.Lock()
        self._pulling = threading.Lock()
        self._passes: list[Pass] = []
        self._passed: set[Any] = set()  # keys that were asked for before their pass came to them
        self._waiting: deque[Slot] = deque()
        self._awaited: set[Slot] = set()
        self._num_bytes = 0
        self._num_freed = 0  # bytes, since it was last looked whether there is room
        self._num_rows = 0
        self._mean = float(_FIRST_GUESS)
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        """In a forked child it is closed: what its readers still want, they fetch themselves."""
        self._lock, self._pulling = threading.Lock(), threading.Lock()
        self.closed = threading.Event()
        self.closed.set()
        self._downloads.forget_parent()

    def begin(self, blocks: Iterator[Block]) -> Pass:
        """Work on these blocks once those of earlier passes have all begun."""
        begun = Pass(blocks)
        with self._lock:
            self._passes.append(begun)
        self._top_up()
        return begun

    def end(self, ended: Pass) -> None:
        """Forget what is left of a pass."""
        with self._lock:
            if ended in self._passes:
                self._passes.remove(ended)
            self._passed.clear()
            self._num_rows -= sum(len(block.rows) for block in ended.made.values())
        for block in ended.made.values():
            self.drop(block.slots)

    def was_passed(self, key: Any) -> bool:
        """Whether a block need not be made: who reads it was here first."""
        with self._lock:
            found = key in self._passed
            self._passed.discard(key)
            return found

    def block(self, key: Any, make: Callable[[], Block]) -> Block:
        """Return the block of this key, made ahead or now."""
        with self._lock:
            block = next((p.made.pop(key) for p in self._passes if key in p.made), None)
            if block is not None:
                self._num_rows -= len(block.rows)
            elif len(self._passed) < _MOST_PASSED:
                self._passed.add(key)
        if block is None:
            block = make()
            self.add(reversed(block.slots))
        else:
            self._top_up()
        return block

    def add(self, slots: Iterable[Slot]) -> None:
        """Work on these before all others, the last first."""
        with self._lock:
            self._waiting.extendleft(slots)
        self._top_up()

    def take(self, slot: Slot) -> Any:
        """Return what a slot gave, or raise what it raised; what nobody began is done here.

        Raises:
            Cancelled: the lookahead was closed meanwhile.
        """
        if not self._run(slot):
            self._wait_for(slot)
        self._forget(slot)
        if self._num_freed * _REFILL >= self._max_bytes or self._num_bytes == 0:
            self._top_up()
        if slot.error is not None:
            raise slot.error
        value, slot.value = slot.value, None
        return value

    def drop(self, slots: Iterable[Slot]) -> None:
        """Forget what nobody will take any more."""
        for slot in slots:
            self._forget(slot)

    def close(self) -> None:
        """Stop at once; what is on its way is dropped."""
        with self._lock:
            self.closed.set()
            self._passes.clear()
            self._waiting.clear()
            awaited = list(self._awaited)
        for slot in awaited:
            if slot.arrived is not None:
                slot.arrived.set()
        self._downloads.close(_CLOSE_S)

    def __enter__(self) -> Lookahead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _claim(self, slot: Slot) -> Callable[[], Any] | None:
        """The work of a slot, for who asks first."""
        with self._lock:
            if slot.state is not _State.NEW or self.closed.is_set():
                return None
            slot.state = _State.RUNNING
        load, slot.load = slot.load, _nothing  # it knows who waits for the slot: no cycles
        return load

    def _end(self, slot: Slot, value: Any, error: Exception | None) -> None:
        """What the work gave."""
        slot.value, slot.error = value, error
        with self._lock:
            slot.state = _State.DONE
            if slot.num_bytes < 0 and isinstance(value, bytes):
                self._mean += 0.1 * (len(value) - self._mean)
            if slot.arrived is not None:
                slot.arrived.set()

    def _run(self, slot: Slot) -> bool:
        """Do the work of a slot here, unless somebody has begun it."""
        load = self._claim(slot)
        if load is None:
            return False
        try:
            value = load()
        except Exception as error:  # noqa: BLE001 - raised by whoever takes it
            self._end(slot, None, error)
        else:
            self._end(slot, value, None)
        return True

    def _wait_for(self, slot: Slot) -> None:
        with self._lock:
            if slot.state is _State.DONE or self.closed.is_set():
                slot.arrived = None
            else:
                slot.arrived = threading.Event()
                self._awaited.add(slot)
        if slot.arrived is not None:
            slot.arrived.wait()
            with self._lock:
                self._awaited.discard(slot)
        if slot.state is not _State.DONE:
            raise Cancelled

    def _forget(self, slot: Slot) -> None:
        """Give the room of a slot back; if nobody has begun it, nobody will."""
        with self._lock:
            self._num_bytes -= slot.counted
            self._num_freed += slot.counted
            slot.counted = 0
            if slot.state is _State.NEW:
                slot.state = _State.DONE
                slot.load = _nothing

    def _top_up(self) -> None:
        """Begin slots while there is room, and make blocks while there are no others."""
        if not self._pulling.acquire(blocking=False):
            return  # another thread is at it
        try:
            while not self.closed.is_set():
                with self._lock:
                    begun = self._begun()
                    wants_more = not self._waiting and self._num_rows < _MOST_ROWS
                for slot in begun:
                    self._downloads.submit(slot)
                if not wants_more or not self._pull():
                    return
        finally:
            self._pulling.release()

    def _begun(self) -> list[Slot]:
        """Under the lock: slots to begin now."""
        begun = []
        self._num_freed = 0
        while self._waiting:
            slot = self._waiting[0]
            if slot.state is _State.NEW:
                num_bytes = slot.num_bytes if slot.num_bytes >= 0 else int(self._mean)
                if not self._has_room(num_bytes):
                    break
                slot.counted = num_bytes
                self._num_bytes += num_bytes
                begun.append(slot)
            self._waiting.popleft()
        return begun

    def _has_room(self, num_bytes: int) -> bool:
        if self._max_bytes < 0:
            return False
        return self._num_bytes == 0 or self._num_bytes + num_bytes <= self._max_bytes

    def _pull(self) -> bool:
        """Make the next block of the first pass that has one; False if none has."""
        with self._lock:
            walked = next((p for p in self._passes if not p.is_walked), None)
        if walked is None:
            return False
        block = next(walked.blocks, None)
        with self._lock:
            if block is None:
                walked.is_walked = True
            elif walked in self._passes and block.key not in walked.made:
                walked.made[block.key] = block
                self._num_rows += len(block.rows)
                self._waiting.extend(block.slots)
        return True
