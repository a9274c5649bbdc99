"""``DataLoader``: a torch DataLoader in all but order and state."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Literal, get_args

from shardkit.dataset import SampleDataset
from shardkit.errors import ConfigError, ShardkitError
from shardkit.loader.arguments import global_size, own_cores, refuse, start_method, whole
from shardkit.loader.collate import collate
from shardkit.loader.mix import Mix
from shardkit.loader.pinned import pinner
from shardkit.loader.pipeline import Pipeline
from shardkit.loader.plan import DatasetPlan, Place, Plan
from shardkit.loader.processes import ProcessWorkers
from shardkit.loader.stand_ins import StandIns
from shardkit.loader.stats import LoaderStats, counts_of, sum_counts
from shardkit.loader.work import BatchMaker, Collate, Made, nothing_left
from shardkit.loader.workers import InlineWorkers, ThreadWorkers, Workers
from shardkit.order.split import Remainder

__all__ = ["DataLoader"]

logger = logging.getLogger(__name__)

WorkerKind = Literal["threads", "processes"]


class DataLoader:
    """Batches of a data set or a mixture, in canonical order whatever makes them.

    Args:
        dataset: a ``ShardDataset``, a ``StreamingDataset`` or a ``Mix``.
        batch_size: samples per batch of this rank. Default 1, as torch's.
        global_batch_size: samples per batch of all ranks together, instead of ``batch_size``: keep
            it, and the sets of the global batches stay the same on any number of ranks.
        num_workers: who makes batches, besides the training loop: so many threads or processes; 0
            makes each batch when it is asked for. Default: the cores this process may use, at
            most its share of the node's where other ranks have the same.
        workers: "threads" (no copy to the training loop; reading and decoding release the
            interpreter) or "processes" (for transforms that are slow in pure Python).
        collate_fn: from a list of samples to a batch; default ``shardkit.loader.collate``.
        remainder: what becomes of the last samples of an epoch that make no full global batch:
            "pad" repeats samples of the epoch, marked ``__pad__``; "drop" leaves them out; "keep"
            makes a shorter batch (ranks may differ by one batch).
        prefetch_factor: batches made ahead per worker. Default 2, as torch's: one is made while
            one waits.
        pin_memory: put tensors into page-locked memory, where there is a GPU.
        persistent_workers: keep workers between epochs, and make the next epoch's first batches
            while the last ones of this epoch are consumed. False ends them with each epoch: for a
            validation set.
        multiprocessing_context: start method of process workers: "forkserver", "spawn" or "fork",
            or a context of such a name. Default "forkserver": starts in no time once its server
            has imported torch, and no locks or threads of this process are copied.
        worker_init_fn: called in each worker process with its number.
        of_torch: what torch's loader takes besides: refused with what to use instead, unless it
            is torch's own default.

    Iterating it is one epoch; the next iteration is the next epoch. Batches have ``__pad__`` (or
    ``__replaced__``) entries only where one of their samples is one.

    A batch of which nothing is left, since all its samples failed (``on_error`` of the data set)
    or the transforms dropped them, is left out where there is one rank. Several ranks need equal
    numbers of batches: there the next good sample stands in for it, marked ``__replaced__``, for
    every sample with "replace", else once.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        dataset: SampleDataset | Mix,
        batch_size: int | None = 1,
        *,
        global_batch_size: int | None = None,
        num_workers: int | None = None,
        workers: WorkerKind = "threads",
        collate_fn: Collate | None = None,
        remainder: Remainder = "pad",
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
        persistent_workers: bool = True,
        multiprocessing_context: str | BaseContext | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        **of_torch: Any,
    ) -> None:
        refuse(of_torch)
        if not isinstance(dataset, SampleDataset | Mix):
            raise ConfigError(
                f"dataset is a {type(dataset).__name__}, not a ShardDataset, StreamingDataset or "
                "Mix: for others use torch.utils.data.DataLoader"
            )
        if workers not in get_args(WorkerKind):
            raise ConfigError(f"workers={workers!r} is not one of 'threads', 'processes'")
        self.dataset = dataset
        self.global_batch_size = global_size(
            batch_size, global_batch_size, dataset.world.world_size
        )
        self.num_workers = whole("num_workers", num_workers, own_cores(dataset.world), least=0)
        self.workers: WorkerKind = workers
        self.collate_fn: Collate = collate if collate_fn is None else collate_fn
        self.remainder: Remainder = remainder
        self.prefetch_factor = whole("prefetch_factor", prefetch_factor, 2)
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.multiprocessing_context = start_method(multiprocessing_context)
        self.worker_init_fn = worker_init_fn
        self._progress: Any = None  # of our latest iteration: others iterate the data set too
        self._pipeline: Pipeline | None = None
        self._pid = os.getpid()
        self._running: Workers | None = None
        feeds = self._plan().feeds  # refuses a batch size that does not fit the world
        self._tell_of_empty_epochs()
        self._stats = LoaderStats(self.num_workers)
        self._cache_before = counts_of(feeds)
        self._cache_of_ended = sum_counts(())

    def __repr__(self) -> str:
        return (
            f"<DataLoader of {self.dataset!r}, batch_size={self.batch_size}, "
            f"num_workers={self.num_workers}, workers={self.workers!r}>"
        )

    @property
    def batch_size(self) -> int:
        """Samples of this rank's batches (the most, where ranks differ by one)."""
        return -(-self.global_batch_size // self.dataset.world.world_size)

    def __len__(self) -> int:
        """Batches of an epoch; the same on every rank, but for "keep".

        Those that one rank leaves out, since nothing is left of them, are among them.

        Of a mixture: of its first epoch; later ones can differ by a turn.

        Raises:
            TypeError: it never ends (a mixture with ``ends="never"``).
        """
        count = self._plan().num_batches()
        if count is None:
            raise TypeError('a mixture with ends="never" has no length')
        return count

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the next epoch (or of the rest of a restored one).

        Raises:
            ShardkitError: another iteration of this loader has begun, or it was closed; or nothing
                is left of a whole epoch.
        """
        plan = self._plan()
        progress = self.dataset.begin_epoch()
        if plan.is_over(progress.place):  # less than a batch was left, and "drop" leaves it out
            progress = self.dataset.begin_epoch()
        self._progress = progress
        pipeline = self._pipeline_at(plan, progress.place)
        pin = pinner() if self.pin_memory and not self._pins_in_workers else None
        left: float | None = None
        while True:
            began = time.perf_counter()
            if left is not None:
                self._stats.consumer_s += began - left
            if self._pipeline is not pipeline:
                raise ShardkitError(
                    "this iteration is over: the loader was closed, loaded a state, or began "
                    "another one; a loader has one iteration at a time"
                )
            try:
                taken = self._take(pipeline, plan, progress)
                if taken is None:
                    progress.place = plan.end(progress.place)
                    if not self.persistent_workers:
                        self.close()
                    return
                made, place = taken
            except BaseException:
                self.close()
                raise
            value = made.value if pin is None else pin(made.value)
            progress.place = place
            left = time.perf_counter()
            self._stats.note(made, left - began)
            del made, taken
            yield value

    def state_dict(self) -> dict[str, Any]:
        """How far the training loop has come: batches it was given, not batches made ahead.

        Plain JSON values, the same on every rank.
        """
        state = self.dataset.state_dict(self._progress)
        if isinstance(self.dataset, Mix):
            return state
        return {
            **state,
            "global_batch_size": self.global_batch_size,
            "remainder": self.remainder,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken, with any world size, workers and batch size.

        Raises:
            StateError: the state is of another data set, selection or order; says why.
        """
        self.dataset.load_state_dict(state)
        self._progress = None
        self.close()

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``; see the data set's."""
        self.dataset.set_epoch(epoch)
        self._progress = None

    def stats(self) -> dict[str, float | int | str]:
        """Samples, bytes, seconds per stage, and the bottleneck, since the loader was made."""
        before, here = self._cache_before, counts_of(self._plan().feeds)
        counts = [here, self._cache_of_ended]
        if self._running is not None:
            counts.append(self._running.cache_counts())
        total = sum_counts(counts)
        cache = type(total)(total.hits - before.hits, total.misses - before.misses)
        return self._stats.to_dict(cache)

    def close(self) -> None:
        """End the workers and forget what was made ahead; the next iteration starts them anew."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        if self._running is not None:
            counts = (self._cache_of_ended, self._running.cache_counts())
            self._cache_of_ended = sum_counts(counts)
            self._running = None
        if self._pid == os.getpid():  # a forked child has nothing of its own to close
            pipeline.close()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, pipeline: Pipeline, plan: Plan, progress: Any) -> tuple[Made, Place] | None:
        """The next batch of which something is left, and the place behind it.

        The progress moves past batches of which nothing is left. None at the end of the epoch.

        Raises:
            Exception: what making a batch raised.
            ShardkitError: too many failures, or nothing is left of a whole epoch.
        """
        start, first = progress.place, None
        while (taken := pipeline.take()) is not None:
            made, place = taken
            for feed, failed in made.failures:
                plan.failures[feed].note(failed)
                first = first or failed
            if made.num_samples:
                break
            progress.place = place
            self._stats.note_left_out(made)
            if plan.spans_epoch(start, place):
                raise nothing_left(plan.feeds, first)
        return taken

    @property
    def _pins_in_workers(self) -> bool:
        return self.workers == "threads" and self.num_workers > 0

    def _plan(self) -> Plan:
        if isinstance(self.dataset, Mix):
            return self.dataset.plan(self.global_batch_size, self.remainder)
        return DatasetPlan(self.dataset, self.global_batch_size, self.remainder)

    def _pipeline_at(self, plan: Plan, place: Place) -> Pipeline:
        """The running pipeline if it stands just there, else a new one."""
        if self._pipeline is not None and self._pid == os.getpid() and self._pipeline.at == place:
            return self._pipeline
        self.close()
        self._tell_of_lanes(plan)
        self._pid = os.getpid()
        self._running = self._start_workers(plan)
        self._pipeline = Pipeline(
            plan,
            self._running,
            max(1, self.prefetch_factor * self.num_workers),
            place,
            goes_on=self.persistent_workers,
        )
        return self._pipeline

    def _start_workers(self, plan: Plan) -> Workers:
        in_processes = self.workers == "processes" and self.num_workers > 0
        maker = BatchMaker(
            tuple(plan.feeds),
            self.collate_fn,
            finish=pinner() if self.pin_memory and self._pins_in_workers else None,
            seeds_globals=in_processes,
            stand_ins=StandIns() if self.dataset.world.world_size > 1 else None,
        )
        if self.num_workers == 0:
            return InlineWorkers(maker)
        if in_processes:
            return ProcessWorkers(
                maker, self.num_workers, self.multiprocessing_context, self.worker_init_fn
            )
        return ThreadWorkers(maker, self.num_workers)

    def _tell_of_empty_epochs(self) -> None:
        """Say so where no epoch will have a batch: a loop over epochs would never end."""
        if self.remainder != "drop" or isinstance(self.dataset, Mix):
            return
        if self.dataset.num_samples < self.global_batch_size:
            logger.warning(
                'every epoch is empty: remainder="drop", and %d samples make no global batch of %d',
                self.dataset.num_samples,
                self.global_batch_size,
            )

    def _tell_of_lanes(self, plan: Plan) -> None:
        """Say once when nodes will fetch some shards twice."""
        nodes, size = self.dataset.world.num_nodes, self.global_batch_size
        for lanes in plan.num_lanes if nodes > 1 else ():
            if lanes % nodes or size % lanes:
                logger.warning(
                    "%d nodes, %d lanes and a global batch of %d: nodes own disjoint shards only "
                    "where the nodes divide the lanes and the lanes the batch; some shards are "
                    "fetched by several",
                    nodes,
                    lanes,
                    size,
                )
                return
