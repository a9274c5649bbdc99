"""One retry policy for everything far away: who is asked again, after how long, when to stop."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from shardkit.errors import ConfigError, TransientError
from shardkit.storage.protocol import Chunk

__all__ = ["Patience", "resumed", "retried"]

T = TypeVar("T")
logger = logging.getLogger(__name__)
_jitter = random.Random()  # noqa: S311 - spreads retries of many processes, guards nothing


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
        bound = min(self.max_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return _jitter.uniform(0, bound)


def retried(patience: Patience, ask: Callable[[], T]) -> T:
    """Return ``ask()``, asking again after each ``TransientError`` as patience allows."""
    failures = 0
    while True:
        try:
            return ask()
        except TransientError as error:
            failures += 1
            _wait_or_raise(patience, failures, error)


def resumed(
    patience: Patience, open_at: Callable[[int], Iterator[Chunk]], start: int
) -> Iterator[Chunk]:
    """Stream ``open_at(start)``; where the body breaks, go on with ``open_at`` of that byte."""
    failures = 0
    position = start
    while True:
        try:
            for chunk in open_at(position):
                position += len(chunk)
                failures = 0
                yield chunk
        except TransientError as error:
            failures += 1
            _wait_or_raise(patience, failures, error)
        else:
            return


def _wait_or_raise(patience: Patience, failures: int, error: TransientError) -> None:
    if failures >= patience.max_attempts:
        raise TransientError(
            f"gave up after {failures} attempts in a row; the last: {error}; the far end or the "
            "network is down: try again later, the state of the run is not harmed"
        ) from error
    wait_s = patience.wait_s(failures)
    logger.info("attempt %d failed, next in %.1f s: %s", failures, wait_s, error)
    time.sleep(wait_s)
