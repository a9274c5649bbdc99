"""How far an iteration has come, and what a loader worker's own state says beyond that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from operator import length_hint
from typing import Any, TypeVar

from shardkit.errors import StateError
from shardkit.order.batches import Block
from shardkit.order.state import check_mapping

__all__ = ["Progress", "Restored", "split_worker_fields", "worker_fields"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a loaded state goes on.

    Attributes:
        epoch: from 0.
        position: canonical.
        first: which batch from there is ours; None: the one of our number among the workers.
    """

    epoch: int
    position: int
    first: int | None = None


class Progress:
    """How far one iteration has come; the iterator writes it, ``state_dict`` reads it.

    Batches are dealt to loader workers in turn. So a worker's next batch is number ``first`` from
    its position: its own number at the start of an epoch, num_workers - 1 behind a batch of its.
    """

    __slots__ = ("_coming", "_done", "block", "epoch", "first", "position")

    def __init__(self, epoch: int, position: int, first: int) -> None:
        self.epoch = epoch
        self.position = position
        self.first = first
        self.block: Block | None = None
        self._done = -1
        self._coming: Iterator[int] | None = None  # slots of the block that are not consumed yet

    @property
    def done(self) -> int:
        """The last slot of the block that has been consumed; -1: none."""
        return self._done if self._coming is None else self._done - length_hint(self._coming)

    @done.setter
    def done(self, slot: int) -> None:
        self._done, self._coming = slot, None

    def follow(self, samples: Iterator[T], num_slots: int) -> Iterator[T]:
        """The samples of a block, one a slot; ``done`` counts them, at no cost per sample."""
        coming = iter(range(1, num_slots + 1))  # none is 0: ``compress`` lets all through
        self._done, self._coming = num_slots - 1, coming
        return compress(samples, coming)

    @property
    def place(self) -> tuple[int, int]:
        """Epoch, and canonical position after what was consumed."""
        block, done = self.block, self.done
        if block is None or done < 0:
            return self.epoch, self.position
        return self.epoch, int(block.stops[done])

    @place.setter
    def place(self, place: tuple[int, int]) -> None:
        self.block, self.done = None, -1
        self.epoch, self.position = place

    def next_batch(self, num_workers: int) -> int:
        """Which batch from ``place`` is the worker's next."""
        return self.first if self.done < 0 else num_workers - 1

    def enter(self, block: Block) -> None:
        """Begin with a block; ``done`` follows its samples from here on."""
        self.done = -1
        self.block = block

    def leave(self, block: Block, num_workers: int) -> None:
        """Have done with a block."""
        self.first = num_workers - 1
        self.place = (self.epoch, int(block.stops[-1]))


def worker_fields(worker: int, num_workers: int, first: int) -> dict[str, int]:
    """What a loader worker adds to a state: who it is, and which batch from there is its next."""
    return {"worker": worker, "num_workers": num_workers, "first": first}


def split_worker_fields(
    state: Mapping[str, Any], worker: int, num_workers: int
) -> tuple[Mapping[str, Any], int | None]:
    """Return the state without what a loader worker added, and the worker's next batch.

    Raises:
        StateError: it is of another worker than this, or no state.
    """
    check_mapping(state)
    if "worker" not in state:
        return state, None
    fields = dict(state)
    saved = (fields.pop("worker"), fields.pop("num_workers", None))
    first = fields.pop("first", None)
    if saved != (worker, num_workers) or type(first) is not int:
        raise StateError(
            f"the state is of loader worker {saved[0]} of {saved[1]}, this is {worker} of "
            f"{num_workers}: load it into a StatefulDataLoader with as many workers; "
            "shardkit.DataLoader saves states that fit any number"
        )
    return fields, first
