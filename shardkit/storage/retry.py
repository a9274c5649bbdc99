"""One retry policy for everything far away: who is asked again, after how long, when to stop."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from shardkit.errors import ConfigError, TransientError
from shardkit.storage.flights import Cancelled
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.protocol import Chunk
from shardkit.storage.urls import place_of

__all__ = ["Attempts", "Patience", "end_waits_with", "ends_waits_here", "resumed", "retried"]

T = TypeVar("T")
logger = logging.getLogger(__name__)
_jitter = random.Random()  # noqa: S311 - spreads retries of many processes, guards nothing

_TOLD_AFTER = 3
"""Failures in a row that are told of as a warning: one or two are gone in 0.2 s, and are common,
unless they took so many seconds:"""
_TOLD_AFTER_S = 5.0

_TELL_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How much failing a store bears.

    Args:
        max_attempts: requests that fail in a row before giving up; a body that moved on counts
            as success. 12 with these waits ride out about 40 s of 503s.
        first_wait_s: upper bound of the first wait; doubles each time (full jitter).
        max_wait_s: upper bound of any wait.
        stall_s: a connection that sends nothing for so long is given up and asked anew; object
            stores answer in well under a second, so 30 s is a dead one.
    """

    max_attempts: int = 12
    first_wait_s: float = 0.1
    max_wait_s: float = 20.0
    stall_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"max_attempts={self.max_attempts}: must be at least 1")
        if self.stall_s <= 0:
            raise ConfigError(f"stall_s={self.stall_s}: must be positive")

    def wait_s(self, failures: int) -> float:
        """Return a random wait after so many failures in a row (AWS's "full jitter")."""
        return _jitter.uniform(0, self._most_s(failures))

    def rest_s(self, failures: int) -> float:
        """Return about how long is waited if all attempts that are left fail too."""
        return sum(self._most_s(n) for n in range(failures, self.max_attempts)) / 2

    def _most_s(self, failures: int) -> float:
        return min(self.max_wait_s, self.first_wait_s * 2.0 ** (failures - 1))


class _Told:
    """Of which servers it was said that they fail: once a minute each, not once an object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: dict[str, float] = {}  # guarded by _lock
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        self._lock = threading.Lock()

    def is_due(self, place: str) -> bool:
        """Whether to say it now."""
        now = time.monotonic()
        with self._lock:
            if now - self._at.get(place, -_TELL_AGAIN_S) < _TELL_AGAIN_S:
                return False
            self._at[place] = now
            return True


_told = _Told()
_here = threading.local()  # .closed: what ends the waits of this thread, if anything does


def end_waits_with(closed: threading.Event | None) -> None:
    """Have waits of this thread end with ``Cancelled`` as soon as ``closed`` is set.

    For threads that work for somebody who may close: what they wait for, nobody wants any more.
    """
    _here.closed = closed


def ends_waits_here() -> threading.Event | None:
    """Return what ends the waits of this thread, for threads that it starts."""
    closed: threading.Event | None = getattr(_here, "closed", None)
    return closed


class Attempts:
    """Attempts at one thing that failed in a row.

    Args:
        patience: how many may.
        url: that is asked.
    """

    def __init__(self, patience: Patience, url: str) -> None:
        self._patience = patience
        self._url = url
        self.succeeded()

    def succeeded(self) -> None:
        """Begin anew."""
        self._num_failed = 0
        self._since = time.monotonic()

    def failed(self, error: TransientError) -> None:
        """Wait before the next.

        Raises:
            TransientError: those were too many.
            Cancelled: see ``end_waits_with``.
        """
        self._num_failed += 1
        failures, patience = self._num_failed, self._patience
        if failures >= patience.max_attempts:
            raise TransientError(
                f"gave up after {failures} attempts in a row; the last: {error}; the far end or "
                "the network is down: try again later, the state of the run is not harmed"
            ) from error
        wait_s = patience.wait_s(failures)
        logger.info("attempt %d failed, next in %.1f s: %s", failures, wait_s, error)
        self._tell(error)
        closed = ends_waits_here()
        if closed is None:
            time.sleep(wait_s)
        elif closed.wait(wait_s):
            raise Cancelled(self._url)

    def _tell(self, error: TransientError) -> None:
        failures = self._num_failed
        took_s = time.monotonic() - self._since
        if failures < _TOLD_AFTER and took_s < _TOLD_AFTER_S:
            return
        place = place_of(self._url)
        if _told.is_due(place):
            logger.warning(
                "%s fails: %s; %d attempts in a row so far, up to %d more with %.0f s between them",
                place or "a path",
                error,
                failures,
                self._patience.max_attempts - failures,
                self._patience.rest_s(failures),
            )


def retried(patience: Patience, url: str, ask: Callable[[], T]) -> T:
    """Return ``ask()``, asking again after each ``TransientError`` as patience allows.

    Args:
        patience: see there.
        url: that is asked.
        ask: asks once.
    """
    attempts = Attempts(patience, url)
    while True:
        try:
            return ask()
        except TransientError as error:
            attempts.failed(error)


def resumed(
    patience: Patience, url: str, open_at: Callable[[int], Iterator[Chunk]], start: int
) -> Iterator[Chunk]:
    """Stream ``open_at(start)``; where the body breaks, go on with ``open_at`` of that byte."""
    attempts = Attempts(patience, url)
    position = start
    while True:
        try:
            for chunk in open_at(position):
                position += len(chunk)
                attempts.succeeded()
                yield chunk
        except TransientError as error:
            attempts.failed(error)
        else:
            return
