"""What an executor is: it takes a picklable task and item numbers, and yields what each returned.

It knows nothing of what the task does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

__all__ = ["Executor", "Report", "Task", "nothing"]

Report = Callable[[int, int], None]
"""Called with the samples and bytes done since the last call."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


def nothing(samples: int, num_bytes: int) -> None:
    """The progress report nobody reads."""


class Task(Protocol[R_co]):
    """Work on one numbered item. Picklable; deterministic; safe to repeat after a kill."""

    def __call__(self, item: int, report: Report) -> R_co:
        """Do item ``item`` whole, and say so."""
        ...


class Executor(Protocol):
    """Runs tasks. ``run`` yields results in any order; the first error stops the rest."""

    def ready(self, task: type[object] | None = None) -> AbstractContextManager[object]:
        """Within this block a ``run`` may be expected: time to start what is slow to start.

        ``task`` is the type of what will be run, where that is known. Blocks may be nested.
        """
        ...

    def run(self, task: Task[R], items: Iterable[int], report: Report) -> Iterator[R]:
        """Yield ``task(item)`` for every item as it ends."""
        ...
