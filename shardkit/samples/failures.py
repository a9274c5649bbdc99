"""Samples that failed: what counts as one, and the tally of a rank."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, overload

from shardkit.errors import (
    CacheError,
    ConfigError,
    MissingDependencyError,
    ShardkitError,
    TransientError,
)
from shardkit.samples.source import Place

__all__ = ["Failed", "Failures", "OnError", "can_skip", "with_place"]

OnError = Literal["raise", "skip", "replace"]

logger = logging.getLogger(__name__)

_LOGGED = 20  # failures that are worth a line each in a log
_LISTED = 1_000  # failures kept by name; beyond it only the count goes on


@dataclass(frozen=True, slots=True)
class Failed:
    """A sample that could not be had: where it is, and why."""

    place: Place
    error: Exception

    def __str__(self) -> str:
        text, key = str(self.error), f"key {self.place.key!r}"
        return text if key in text else f"{self.place.url}: {key}: {text}"


def can_skip(error: Exception) -> bool:
    """Whether the error says something of the sample, and not of the network or the set-up."""
    return not isinstance(error, TransientError | CacheError | ConfigError | MissingDependencyError)


def with_place(failed: Failed) -> Exception:
    """The error of a sample, with a note of where the sample is."""
    error = failed.error
    if not isinstance(error, ShardkitError) and not hasattr(error, "__notes__"):
        error.add_note(f"while making the sample {failed.place.key!r} of {failed.place.url}")
    return error


class Failures:
    """Counts and lists the failures of one rank; outside the state. Thread-safe.

    Iterating, indexing and ``len`` are those of ``listed``; ``count`` goes on where that ends.

    Args:
        max_failures: how many a run may have; None is any number.

    Attributes:
        count: how many there were.
        listed: the first 1,000 of them, in the order in which they were met.
    """

    def __init__(self, max_failures: int | None) -> None:
        if max_failures is not None and max_failures < 0:
            raise ConfigError(f"max_failures={max_failures} must be at least 0; None is any number")
        self.max_failures = max_failures
        self.count = 0
        self.listed: list[Failed] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Failures: {self.count:,}, max_failures={self.max_failures}>"

    def __len__(self) -> int:
        return len(self.listed)

    def __iter__(self) -> Iterator[Failed]:
        return iter(self.listed)

    @overload
    def __getitem__(self, index: int) -> Failed: ...

    @overload
    def __getitem__(self, index: slice) -> list[Failed]: ...

    def __getitem__(self, index: int | slice) -> Failed | list[Failed]:
        return self.listed[index]

    def note(self, failed: Failed) -> None:
        """Count a failure.

        Raises:
            ShardkitError: it is one more than ``max_failures``.
        """
        with self._lock:
            self.count += 1
            if len(self.listed) < _LISTED:
                self.listed.append(failed)
        if self.count <= _LOGGED:
            logger.warning("left out: %s", failed)
        if self.count == _LOGGED:
            logger.warning("further failures are only counted and listed (failures.listed)")
        if self.max_failures is not None and self.count > self.max_failures:
            raise ShardkitError(
                f"{self.count} samples have failed, more than max_failures={self.max_failures}; "
                f"the last one: {failed}. The data set's failures.listed names them all"
            ) from failed.error

    def __getstate__(self) -> dict[str, object]:
        return {"max_failures": self.max_failures}

    def __setstate__(self, state: dict[str, int | None]) -> None:
        self.__init__(state["max_failures"])  # type: ignore[misc]
