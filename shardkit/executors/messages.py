"""What a worker says of an item, to whichever executor gave it: progress, then how it ended."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

from shardkit.errors import ShardkitError

__all__ = ["Done", "Failed", "Progress", "sendable"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Samples and bytes done since the last word."""

    samples: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Done:
    """An item is done."""

    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """An item raised."""

    error: BaseException


def sendable(error: BaseException) -> BaseException:
    """The error with the worker's traceback as a note; one that pickle refuses, as words."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever it raises, it can't be sent
        return ShardkitError(f"{type(error).__name__}: {error}")
    return error
