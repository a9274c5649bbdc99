"""The last few of what is costly to make, per process: threads share it, forks start clean."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from shardkit.storage.forks import start_anew_in_children

__all__ = ["Kept"]

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by number, the most recent ones up to a limit.

    Many threads may ask at once: each value is made by one of them, and the others wait. A process
    forked in the middle of that starts with what was finished, and waits for nobody.
    """

    def __init__(self, limit: int, weigh: Callable[[T], int] = lambda _: 1) -> None:
        """Keep values of ``limit`` in all by ``weigh``, but always the last one."""
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[int, T] = OrderedDict()  # guarded by _lock
        self._makers: dict[int, threading.Lock] = {}  # held while a value is made; guarded by _lock
        self._lock = threading.Lock()
        start_anew_in_children(self)

    def get(self, number: int, make: Callable[[], T]) -> T:
        """Return the kept value, or ``make`` it; what ``make`` raises, all that wait may raise."""
        with self._lock:
            if number in self._values:
                self._values.move_to_end(number)
                return self._values[number]
            maker = self._makers.setdefault(number, threading.Lock())
        with maker:
            with self._lock:
                if number in self._values:
                    return self._values[number]
            value = make()
            with self._lock:
                self._makers.pop(number, None)
                self._values[number] = value
                self._drop()
            return value

    def _drop(self) -> None:
        weight = sum(map(self._weigh, self._values.values()))
        while weight > self._limit and len(self._values) > 1:
            weight -= self._weigh(self._values.popitem(last=False)[1])

    def forget_parent(self) -> None:
        """Forget locks that threads of the parent held as this process was forked."""
        self._lock = threading.Lock()
        self._makers = {}
