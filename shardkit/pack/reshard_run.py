"""``reshard``: a selection of a dataset's samples → plan → shards of one dataset or of named parts.

A reshard is a pack of rows whose members are ranges of shards. All datasets of the result are made
in one go: their shards are counted through, and so are their samples in a spill, so that the source
is read once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_hexdigest

from shardkit.errors import ConfigError, StoreError
from shardkit.executors import WHOLE, Executor, Part, Report, nothing
from shardkit.format.sizes import show_size
from shardkit.index.groups import Groups
from shardkit.index.index import Index
from shardkit.index.shards import ShardSet
from shardkit.pack.output import WORK_FOLDER, Output, check_writable
from shardkit.pack.plan import PackOptions, Plan, make_plan
from shardkit.pack.reshard_cost import Cost, Measures, Way, costs
from shardkit.pack.reshard_task import AllShardsTask, ReshardTask
from shardkit.pack.run import DatasetRun, PackSummary
from shardkit.pack.spill import (
    PIECE_BYTES,
    Destination,
    SpillPlaces,
    SpillTask,
    spill_batches,
    spill_name,
)
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local

__all__ = ["Reshard", "ReshardSummary", "Target"]


@dataclass(frozen=True)
class Target:
    """A dataset of the result: the samples that go into it, and where it is written."""

    name: str
    """Of the part; empty where there are no parts."""
    index: Index
    output: Output


@dataclass(frozen=True)
class ReshardSummary:
    """What a reshard did, for people and programs."""

    url: str
    way: Way | None
    """How the bytes were moved; None if all shards were there."""
    datasets: Mapping[str, PackSummary]
    """By the name of the part; under ``""`` where there are no parts."""
    seconds: float

    @property
    def num_samples(self) -> int:
        """Of all datasets."""
        return sum(dataset.num_samples for dataset in self.datasets.values())

    @property
    def num_shards(self) -> int:
        """Of all datasets."""
        return sum(dataset.num_shards for dataset in self.datasets.values())

    @property
    def num_bytes(self) -> int:
        """Of all tars."""
        return sum(dataset.num_bytes for dataset in self.datasets.values())

    @property
    def num_resumed(self) -> int:
        """Shards that an earlier run had finished."""
        return sum(dataset.num_resumed for dataset in self.datasets.values())

    @property
    def num_missing(self) -> int:
        """Shards that other parts of an array job have yet to finish."""
        return sum(dataset.num_missing for dataset in self.datasets.values())


@dataclass(frozen=True)
class Reshard:
    """What is to be done, checked and resolved; nothing is written yet.

    Attributes:
        source: the shards.
        groups: its samples as rows.
        exts: members to keep.
        targets: the datasets of the result.
        options: what decides their bytes, besides the samples.
        url: the folder of the result.
        store: of both ends.
        spill_folder: local folder in which spill files get a folder of their own.
    """

    source: ShardSet
    groups: Groups
    exts: tuple[str, ...]
    targets: tuple[Target, ...]
    options: PackOptions
    url: str
    store: Store
    spill_folder: str

    @property
    def num_samples(self) -> int:
        """Samples that are taken."""
        return sum(target.index.num_rows for target in self.targets)

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each target, as it would be made now."""
        return tuple(make_plan(target.index, self.options, self.store) for target in self.targets)

    def costs(self, plans: Sequence[Plan] = ()) -> list[Cost]:
        """What each way costs, the cheaper one first."""
        shards, num_bytes = self._taken
        known = [max(0, self.source.num_bytes(shard)) for shard in shards]
        return costs(
            Measures(
                num_samples=self.num_samples,
                num_bytes=num_bytes,
                source_shards=len(shards),
                source_bytes=sum(known) or num_bytes,
                output_shards=sum(plan.num_shards for plan in plans or self.plans),
                piece_bytes=PIECE_BYTES,
                num_spills=len(spill_batches(self.source)),
                is_far=any(not is_local(self.source.shard_url(shard)) for shard in shards[:1]),
                is_shuffled=self.options.shuffle == "global",
                memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            )
        )

    def run(
        self,
        *,
        executor: Executor,
        way: Literal["auto", "ranges", "spill"] = "auto",
        part: Part = WHOLE,
        report: Report = nothing,
    ) -> ReshardSummary:
        """Do it, or go on with it. See ``reshard``."""
        began = time.monotonic()
        if way not in ("auto", "ranges", "spill"):
            raise ConfigError(f"way={way!r} is not one of 'auto', 'ranges', 'spill'")
        if way == "spill" and not part.is_whole:
            raise ConfigError(
                "parts of an array job can't share a spill: use way='ranges', or one run with an "
                "executor over several machines"
            )
        self._check_folders()
        with executor.ready(AllShardsTask):
            made = [
                DatasetRun.begin(target.index, target.output, self.options)
                for target in self.targets
            ]
            ends = np.cumsum([dataset.plan.num_shards for dataset in made]).tolist()
            firsts = [end - run.plan.num_shards for end, run in zip(ends, made, strict=True)]
            own = part.items(ends[-1])
            for first, run in zip(firsts, made, strict=True):
                run.resume([n for n in range(run.plan.num_shards) if first + n in own], report)
            todo = [first + n for first, run in zip(firsts, made, strict=True) for n in run.missing]
            chosen: Way | None = None
            if todo:
                chosen = self._chosen(way, part, [run.plan for run in made])
                self._move(made, firsts, todo, chosen, executor, report)
            ended = [run.end(began) for run in made]
        summaries = {target.name: end for target, end in zip(self.targets, ended, strict=True)}
        if not any(summary.num_missing for summary in summaries.values()):
            self._clear([run.plan for run in made])
        return ReshardSummary(self.url, chosen, summaries, time.monotonic() - began)

    def _chosen(
        self, way: Literal["auto", "ranges", "spill"], part: Part, plans: Sequence[Plan]
    ) -> Way:
        if way != "auto":
            return way
        return self.costs(plans)[0].way if part.is_whole else "ranges"

    def _move(
        self,
        made: Sequence[DatasetRun],
        firsts: Sequence[int],
        todo: Sequence[int],
        way: Way,
        executor: Executor,
        report: Report,
    ) -> None:
        """Make the shards that are not there yet."""
        plans = [run.plan for run in made]
        places: list[SpillPlaces | None] = [None] * len(made)
        if way == "spill":
            places = list(self._spilled(plans, executor, report))
        tasks = [
            replace(ReshardTask.of(run.task()), places=place)
            for run, place in zip(made, places, strict=True)
        ]
        try:
            task = AllShardsTask(tuple(tasks), tuple(firsts))
            for number, record in executor.run(task, todo, report):
                made[number].add(record)
        finally:
            for run in made:
                run.output.sweep()

    def _spilled(
        self, plans: Sequence[Plan], executor: Executor, report: Report
    ) -> list[SpillPlaces]:
        """Pass 1, but for what an earlier run had spilled; returns where pass 2 finds it."""
        output = self._spill_output(plans)
        destinations, first = [], 0
        for target, plan in zip(self.targets, plans, strict=True):
            seed = plan.options.seed if plan.options.shuffle == "global" else None
            destinations.append(Destination(target.index, seed, first))
            first += plan.num_rows
        batches = spill_batches(self.source)
        there = output.files()
        todo = [number for number in range(len(batches)) if spill_name(number) not in there]
        _check_room(output.url, self._taken[1] - sum(there.values()))
        with map_os_errors("write", output.url):
            os.makedirs(output.url, exist_ok=True)
        task = SpillTask(self.source, self.store, self.exts, tuple(destinations), batches, output)
        try:
            for _ in executor.run(task, todo, report):
                pass
        finally:
            output.sweep()
        return [
            SpillPlaces(output.url, len(batches), self.exts, destination.first)
            for destination in destinations
        ]

    def _spill_output(self, plans: Sequence[Plan]) -> Output:
        """The folder of spill files: one for this reshard and no other."""
        identity = xxh3_128_hexdigest("\n".join(plan.identity for plan in plans).encode())
        return Output(os.path.join(self.spill_folder, f"spill-{identity}"), self.store)

    @cached_property
    def _taken(self) -> tuple[list[int], int]:
        """Source shards that hold samples which are taken, and the bytes of all their members."""
        taken = np.zeros(len(self.groups.counts), dtype=bool)
        num_bytes = 0
        for target in self.targets:
            counts = target.index.counts
            taken |= counts > 0
            for group in np.flatnonzero(counts).tolist():
                table = self.groups.read(group, self.exts)
                if target.index.selection is not None:
                    table = table.take(pa.array(target.index.selection.rows(group)))
                for ext in self.exts:
                    sizes = pc.struct_field(table.column(ext), "size")
                    num_bytes += pc.sum(sizes, min_count=0).as_py()
        return np.flatnonzero(taken).tolist(), num_bytes

    def _check_folders(self) -> None:
        """Refuse a result that holds anything but the parts, or that can't be written.

        Raises:
            ConfigError: it does, or it is a file.
            StoreError: it can't be written.
        """
        for target in self.targets:
            check_writable(target.output)
        names = {target.name for target in self.targets}
        if names == {""}:
            return  # what its plan says will tell
        output = Output(self.url, self.store)
        strangers = [name for name in output.files() if name.split("/")[0] not in names]
        if strangers:
            raise ConfigError(
                f"{output.url} holds {strangers[0]!r}, which is none of the parts "
                f"({', '.join(sorted(names))}); name a new folder"
            )

    def _clear(self, plans: Sequence[Plan]) -> None:
        """Remove what was spilled: everything is published."""
        shutil.rmtree(self._spill_output(plans).url, ignore_errors=True)
        if os.path.basename(self.spill_folder) == WORK_FOLDER:
            with contextlib.suppress(OSError):  # not there, or another run is still in it
                os.rmdir(self.spill_folder)


def _check_room(folder: str, num_bytes: int) -> None:
    """Refuse to spill where it can't end well.

    Raises:
        StoreError: the disk has less room than is needed.
    """
    place = folder
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise StoreError(
            f"the spill needs {show_size(num_bytes)} in {folder}, where {show_size(free)} are "
            "free; name another folder (--scratch), or read ranges (--way ranges)"
        )
