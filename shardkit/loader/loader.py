"""``DataLoader``: a torch DataLoader in all but order and state."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from shardkit.dataset import SampleDataset
from shardkit.errors import ConfigError
from shardkit.loader.collate import collate
from shardkit.loader.stats import LoaderStats
from shardkit.loader.work import BatchMaker
from shardkit.loader.workers import InlineWorkers, ProcessWorkers, ThreadWorkers, Workers
from shardkit.order.batches import Batch, iterate_batches
from shardkit.order.split import Remainder, Split
from shardkit.samples.source import Sample

__all__ = ["DataLoader"]

logger = logging.getLogger(__name__)


class DataLoader:
    """Batches of a dataset, in canonical order whatever makes them.

    Args:
        dataset: a ``ShardDataset`` or ``StreamingDataset``.
        batch_size: samples per batch of this rank.
        global_batch_size: samples per batch of all ranks together, instead of ``batch_size``: keep
            it, and the sets of the global batches stay the same on any number of ranks.
        num_workers: who makes batches, besides the training loop: so many threads or processes; 0
            makes each batch when it is asked for. Default: the cores this process may use.
        workers: "threads" (no copy to the training loop; decoding releases the interpreter) or
            "processes" (for transforms that are slow in pure Python).
        collate_fn: from a list of samples to a batch; default ``shardkit.loader.collate``.
        remainder: what becomes of the last samples of an epoch that make no full global batch:
            "pad" repeats samples of the epoch, marked ``__pad__``; "drop" leaves them out; "keep"
            makes a shorter batch (ranks may differ by one batch).
        prefetch_factor: batches made ahead per worker.
        pin_memory: put tensors into page-locked memory, where there is a GPU.
        multiprocessing_context: start method of process workers: "forkserver", "spawn", "fork".
        worker_init_fn: called in each worker process with its number.

    Iterating it is one epoch; the next iteration is the next epoch, whose first batches are made
    while the last ones of this epoch are consumed. Batches have ``__pad__`` (or ``__replaced__``)
    entries only where one of their samples is one. A batch with nothing left in it raises.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        batch_size: int | None = None,
        *,
        global_batch_size: int | None = None,
        num_workers: int | None = None,
        workers: Literal["threads", "processes"] = "threads",
        collate_fn: Callable[[Sequence[Sample]], Any] | None = None,
        remainder: Remainder = "pad",
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        multiprocessing_context: str = "forkserver",
        worker_init_fn: Callable[[int], None] | None = None,
    ) -> None:
        if workers not in ("threads", "processes"):
            raise ConfigError(f"workers={workers!r} is not one of 'threads', 'processes'")
        if prefetch_factor < 1:
            raise ConfigError(f"prefetch_factor={prefetch_factor} must be at least 1")
        if num_workers is not None and num_workers < 0:
            raise ConfigError(f"num_workers={num_workers} must be at least 0")
        if multiprocessing_context not in multiprocessing.get_all_start_methods():
            raise ConfigError(
                f"multiprocessing_context={multiprocessing_context!r} is unknown here"
            )
        self.dataset = dataset
        self.global_batch_size = _global_batch_size(
            batch_size, global_batch_size, dataset.world.world_size
        )
        self.num_workers = _num_cores() if num_workers is None else num_workers
        self.remainder: Remainder = remainder
        self.pin_memory = pin_memory
        self._kind = workers
        self._collate = collate_fn or collate
        self._context = multiprocessing_context
        self._worker_init = worker_init_fn
        self._ahead = max(1, prefetch_factor * self.num_workers)
        self._pipeline: _Pipeline | None = None
        self._stats = LoaderStats(num_workers=self.num_workers)
        self._split()  # refuses a batch size that does not fit the world

    @property
    def batch_size(self) -> int:
        """Samples of this rank's batches (the most, where ranks differ by one)."""
        return -(-self.global_batch_size // self.dataset.world.world_size)

    def __len__(self) -> int:
        """Batches of an epoch; the same on every rank, but for "keep"."""
        return self._split().num_batches()

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the next epoch (or of the rest of a restored one)."""
        progress = self.dataset.begin_epoch()
        if progress.position and not self._split().num_batches(progress.position):
            progress = self.dataset.begin_epoch()  # the state was taken after an epoch's last batch
        pipeline = self._pipeline_at(progress.epoch, progress.position)
        left: float | None = None
        while True:
            began = time.perf_counter()
            if left is not None:
                self._stats.consumer_s += began - left
            try:
                taken = pipeline.take(progress.epoch)
                if taken is None:
                    return
                batch, made = taken
                for failed in made.failures:
                    self.dataset.failures.note(failed)
            except BaseException:
                self.close()
                raise
            value = _pinned(made.value) if self.pin_memory else made.value
            progress.position = batch.stop
            left = time.perf_counter()
            self._stats.note(made, left - began)
            yield value

    def state_dict(self) -> dict[str, Any]:
        """How far the training loop has come: batches it was given, not batches made ahead."""
        state = self.dataset.state_dict()
        return state | {
            "global_batch_size": self.global_batch_size,
            "remainder": self.remainder,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken, with any world size, workers and batch size.

        Raises:
            StateError: the state is of another dataset, selection or order; says why.
        """
        self.close()
        self.dataset.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``, from its start."""
        self.dataset.set_epoch(epoch)

    def stats(self) -> dict[str, float | int | str]:
        """Samples, seconds per stage, and the bottleneck, since the loader was made."""
        return self._stats.to_dict()

    def close(self) -> None:
        """End the workers and forget what was made ahead; the next iteration starts them anew."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _split(self) -> Split:
        world, options = self.dataset.world, self.dataset.options
        return Split(
            self.dataset.num_samples,
            self.global_batch_size,
            self.remainder,
            world.rank,
            world.world_size,
            options.num_lanes,
        )

    def _pipeline_at(self, epoch: int, position: int) -> _Pipeline:
        """The running pipeline if it stands just there, else a new one."""
        if self._pipeline is not None and self._pipeline.at == (epoch, position):
            return self._pipeline
        self.close()
        _tell_of_lanes(self._split(), self.dataset.world.num_nodes)
        batches = _batches_for_ever(self.dataset, self._split(), epoch, position)
        self._pipeline = _Pipeline(batches, self._start_workers(), self._ahead, (epoch, position))
        return self._pipeline

    def _start_workers(self) -> Workers:
        maker = BatchMaker(
            self.dataset.stream,
            self._collate,
            self.dataset.on_error,
            self.dataset.options.seed,
            seeds_globals=self._kind == "processes",
        )
        if self.num_workers == 0:
            return InlineWorkers(maker)
        if self._kind == "threads":
            return ThreadWorkers(maker, self.num_workers)
        return ProcessWorkers(maker, self.num_workers, self._context, self._worker_init)


class _Pipeline:
    """Batches that were asked for and not yet taken; stays full across the ends of epochs.

    ``at`` is the epoch and position of the next batch that will be given out.
    """

    def __init__(
        self,
        batches: Iterator[tuple[int, Batch | None]],
        workers: Workers,
        ahead: int,
        at: tuple[int, int],
    ) -> None:
        self.at = at
        self._batches = batches
        self._workers = workers
        self._ahead = ahead
        self._asked: deque[tuple[int, Batch | None]] = deque()  # None ends an epoch
        self._num_asked = 0

    def take(self, epoch: int) -> tuple[Batch, Any] | None:
        """The next batch of the epoch, None when it has ended."""
        self._fill()
        number, batch = self._asked.popleft()
        if batch is None:
            self.at = (number + 1, 0)
            return None
        self._num_asked -= 1
        made = self._workers.take()
        self.at = (epoch, batch.stop)
        self._fill()
        return batch, made

    def close(self) -> None:
        """End the workers, and what fetches ahead for them."""
        self._workers.close()
        self._batches.close()  # type: ignore[attr-defined]

    def _fill(self) -> None:
        while self._num_asked < self._ahead:
            number, batch = next(self._batches)
            self._asked.append((number, batch))
            if batch is not None:
                self._num_asked += 1
                self._workers.submit(number, batch)
            elif len(self._asked) > 2 * self._ahead + 2:
                return  # epochs without batches


def _batches_for_ever(
    dataset: SampleDataset, split: Split, epoch: int, position: int
) -> Iterator[tuple[int, Batch | None]]:
    """This rank's batches from there on, epoch after epoch; None after each epoch's last."""
    while True:
        order = dataset.order(epoch)
        locate = dataset.stream.selection.locate
        places = (locate(batch.ids) for batch in iterate_batches(order, split, position))
        with dataset.stream.source.ahead(places):
            for batch in iterate_batches(order, split, position):
                yield epoch, batch
        yield epoch, None
        epoch, position = epoch + 1, 0


def _global_batch_size(batch_size: int | None, global_size: int | None, world_size: int) -> int:
    if global_size is None:
        size = 1 if batch_size is None else batch_size
        if size < 1:
            raise ConfigError(f"batch_size={size} must be at least 1")
        return size * world_size
    if batch_size is not None:
        raise ConfigError(
            f"batch_size={batch_size} and global_batch_size={global_size} are two ways to say one "
            "thing; give one of them"
        )
    return global_size


def _tell_of_lanes(split: Split, num_nodes: int) -> None:
    """Say once when nodes will fetch some shards twice."""
    lanes = split.num_lanes
    if num_nodes > 1 and (lanes % num_nodes or split.global_batch_size % lanes):
        logger.warning(
            "%d nodes, %d lanes and a global batch of %d: nodes own disjoint shards only where the "
            "nodes divide the lanes and the lanes the batch; some shards are fetched by several",
            num_nodes,
            lanes,
            split.global_batch_size,
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _pinned(value: Any) -> Any:
    """Tensors of a batch in page-locked memory; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return value
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: _pinned(item) for name, item in value.items()}
    return value
