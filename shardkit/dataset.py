"""``ShardDataset``: packed shards as samples: by number, in a ``for``, or under a DataLoader.

What is here is wiring: a source (where bytes are), an order (which sample when), a maker (decode
and transforms), a world (which part is ours), and how far the iteration has come.
"""

from __future__ import annotations

import logging
import operator
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from shardkit.decode.registry import DecodeOption
from shardkit.errors import ConfigError, StateError
from shardkit.index.scratch import Scratch
from shardkit.index.shards import open_shards
from shardkit.order.batches import Block, iterate_blocks
from shardkit.order.epoch import DEFAULT_BUFFER_SIZE, EpochOrder, Shuffle, ShuffleOptions
from shardkit.order.split import Split
from shardkit.order.state import State
from shardkit.samples.failures import Failed, Failures, OnError, with_place
from shardkit.samples.maker import SampleMaker
from shardkit.samples.open_shard import Verify
from shardkit.samples.progress import Progress, Restored, split_worker_fields, worker_fields
from shardkit.samples.selection import Chosen, Weights, select
from shardkit.samples.shards import ShardSource, default_buffer_size, sparse_shards
from shardkit.samples.source import Later, Sample
from shardkit.samples.stream import SampleStream
from shardkit.storage.cache import Cache
from shardkit.storage.store import open_store
from shardkit.transforms.onfields import Names
from shardkit.world import World

if TYPE_CHECKING:
    IterableBase = object
else:
    try:
        from torch.utils.data import IterableDataset as IterableBase
    except ImportError:  # JAX users, and machines that only look: a plain iterable
        IterableBase = object

__all__ = ["IterableBase", "SampleDataset", "ShardDataset", "WorkerRows"]

logger = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = "~/.cache/shardkit"
DEFAULT_CACHE_LIMIT = "200gb"
"""Some 800 shards of the usual size; a disk that has less evicts when it is full."""

_MAX_WORKERS = 1_024  # rows of an array below; a rank has fewer loader workers than that


class WorkerRows:
    """A row of integers for every loader worker, seen by all processes of a rank.

    A torch DataLoader without persistent workers copies the data set anew for every epoch, so the
    copy in a worker must not be the one that counts epochs. With torch the numbers are in shared
    memory, which fork, spawn and forkserver all carry over.
    """

    def __init__(self, width: int) -> None:
        self._rows: Any = np.zeros((_MAX_WORKERS, width), dtype=np.int64)
        if IterableBase is not object:
            import torch  # noqa: PLC0415 - an extra

            self._rows = torch.zeros((_MAX_WORKERS, width), dtype=torch.int64)
            self._rows.share_memory_()

    def read(self, worker: int = 0) -> list[int]:
        """The worker's row."""
        row: list[int] = self._rows[worker % _MAX_WORKERS].tolist()
        return row

    def write(self, worker: int, row: Sequence[int]) -> None:
        """Replace it."""
        for column, value in enumerate(row):
            self._rows[worker % _MAX_WORKERS, column] = value

    def write_all(self, row: Sequence[int]) -> None:
        """Replace the rows of all workers."""
        for column, value in enumerate(row):
            self._rows[:, column] = value


class SampleDataset(IterableBase):
    """What all data sets of samples share: order, share of the world, position, failures.

    A torch ``IterableDataset`` where torch is installed, a plain iterable where it is not.
    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        shuffle: Shuffle,
        buffer_size: int | None,
        seed: int,
        on_error: OnError,
        max_failures: int | None,
        world: World | None,
    ) -> None:
        if on_error not in ("raise", "skip", "replace"):
            raise ConfigError(f"on_error={on_error!r} is not one of 'raise', 'skip', 'replace'")
        if world is not None and not isinstance(world, World):
            raise ConfigError(f"world={world!r}: give World(rank=…, world_size=…)")
        self.stream = stream
        self._num_samples = stream.num_samples  # a sum over all shards
        self.world = World.detect() if world is None else world
        self._is_detected = world is None
        self.on_error: OnError = on_error
        self.failures = Failures(max_failures)
        size = DEFAULT_BUFFER_SIZE if buffer_size is None else buffer_size
        lanes = 1 if shuffle == "none" else self.world.num_nodes
        self._options = ShuffleOptions(shuffle, size, seed, lanes)
        self._rows = WorkerRows(2)  # the next epoch, and how many have come to their end
        self._restored: Restored | None = None
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.num_samples:,} samples in {self.stream.source.url}, "
            f"shuffle={self._options.shuffle!r}, seed={self._options.seed}>"
        )

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self._num_samples

    @property
    def options(self) -> ShuffleOptions:
        """Shuffle mode, buffer size, seed and lanes, as resolved (or as a loaded state says)."""
        return self._options

    def __len__(self) -> int:
        """Samples of an epoch that bare iteration gives to this rank."""
        return self._split().num_positions()

    def __getitem__(self, index: int) -> Sample | None:
        """Fetch, decode and transform sample ``index`` in natural order, blocking.

        The first of what the transforms make of it; None if they drop it. Random transforms draw
        as in epoch 0 at that position.

        Raises:
            IndexError: there is no such sample.
            Exception: whatever its fetch, decode or transform raises: never another sample.
        """
        number, num_samples = operator.index(index), self.num_samples
        if not -num_samples <= number < num_samples:
            raise IndexError(f"sample {number} of {num_samples:,} in {self.stream.source.url}")
        if self.stream.is_plain:
            return self.stream.one(number % num_samples)
        ids = np.array([number % num_samples], dtype=np.int64)
        (outcome,) = self.stream.outcomes(ids, ids, seed=self._options.seed, epoch=0)
        if isinstance(outcome, Failed):
            raise with_place(outcome)
        return outcome[0] if outcome else None

    def __iter__(self) -> Iterator[Sample]:
        """Begin the next epoch, and yield this rank's (and this loader worker's) samples of it."""
        world = self.world.in_worker()
        return self._epoch(world, self.begin_epoch(world.worker))

    def _epoch(self, world: World, progress: Progress) -> Iterator[Sample]:
        order, position, split = self.order(progress.epoch), progress.position, self._split()
        first, num_workers = progress.first, world.num_workers

        def blocks() -> Iterator[Block]:
            return iterate_blocks(order, split, position, worker=first, num_workers=num_workers)

        locate = self.stream.selection.locate
        places = (locate(block.ids) for block in blocks())
        with self.stream.source.ahead(iter([places]), self.groups_after(progress.epoch)):
            for block in blocks():
                progress.enter(block)
                yield from self._samples(block, progress)
                progress.leave(block, num_workers)
        progress.place = (progress.epoch, order.num_samples)
        self._rows.write(world.worker, [progress.epoch + 1, progress.epoch + 1])

    def begin_epoch(self, worker: int = 0) -> Progress:
        """Take the next epoch, or the rest of a restored one; whoever iterates moves it on.

        Raises:
            ConfigError: see ``check_world``.
        """
        self.check_world()
        with self._lock:
            epoch, ended = self._rows.read(worker)
            self._rows.write(worker, [epoch + 1, ended])
            position, first = self._start(epoch, worker)
            self._progress = Progress(epoch, position, first)
            return self._progress

    def check_world(self) -> None:
        """Refuse to be iterated where the world that was found is another by now.

        Raises:
            ConfigError: a process group was made since.
        """
        if self._is_detected:
            self.world.check()

    def order(self, epoch: int) -> EpochOrder:
        """The canonical order of an epoch."""
        return self.stream.order(self._options, epoch)

    def groups_after(self, epoch: int) -> Later | None:
        """What tells the groups of the epoch after this one, by first need; None: no order."""
        if self._options.shuffle == "global":
            return None
        return lambda: self.order(epoch + 1).groups(0, self._num_samples)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``.

        From its start, or from where a state of that very epoch goes on that was just loaded: so
        that a training loop may call this before every epoch, the restored one included.
        """
        if epoch < 0:
            raise ConfigError(f"epoch={epoch} must be at least 0")
        with self._lock:
            restored = self._restored
            if restored is not None and restored.epoch == epoch and self._progress is None:
                return
            self._rows.write_all([epoch, epoch])
            self._restored = self._progress = None

    def state_dict(self, progress: Progress | None = None) -> dict[str, Any]:
        """How far this process's iteration has come, in plain JSON values.

        Exact where the data set itself is iterated, or under ``shardkit.DataLoader``. Under
        torch's DataLoader with worker processes the main process can't see how far they are: the
        state then is that of the start of the epoch, and a warning says so. In a loader worker
        (torchdata's ``StatefulDataLoader``) the state is the worker's own.

        Args:
            progress: the iteration that is meant, where several go on at once; default the latest.
        """
        world = self.world.in_worker()
        with self._lock:
            epoch, position, first = self._where(world, progress)
        state = self.state_at(epoch, position).to_dict()
        if world.num_workers == 1:
            return state
        return {**state, **worker_fields(world.worker, world.num_workers, first)}

    def state_at(self, epoch: int, position: int) -> State:
        """The state of a place, as bare iteration would save it."""
        return State(
            fingerprint=self.stream.source.fingerprint,
            selection=self.stream.selection.key,
            num_samples=self.num_samples,
            seed=self._options.seed,
            epoch=epoch,
            position=position,
            global_batch_size=self.world.world_size,
            num_lanes=self._options.num_lanes,
            shuffle=self._options.shuffle,
            buffer_size=self._options.buffer_size,
            remainder="keep",
            world_size=self.world.world_size,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken, on any world size and number of workers.

        Seed, lanes and buffer size of the state hold from here on, so that its order goes on.

        Raises:
            StateError: the state is of another data set, selection or order; says why.
        """
        world = self.world.in_worker()
        fields, first = split_worker_fields(state, world.worker, world.num_workers)
        loaded = State.from_dict(fields)
        epoch, position = self.check_state(loaded)
        if first is not None:  # a worker that is through waits for the others of its epoch
            epoch, position = loaded.epoch, loaded.position
        with self._lock:
            self._options = loaded.options()
            if first is None:
                self._rows.write_all([epoch, epoch])
            else:
                self._rows.write(world.worker, [epoch, epoch])
            self._restored, self._progress = Restored(epoch, position, first), None

    def check_state(self, state: State) -> tuple[int, int]:
        """Return epoch and position at which a state goes on here.

        Raises:
            StateError: it is of another data set, selection or order; says why.
        """
        place = state.check(
            fingerprint=self.stream.source.fingerprint,
            selection=self.stream.selection.key,
            num_samples=self.num_samples,
            extends=self._extends,
        )
        if state.shuffle != self._options.shuffle:
            raise StateError(
                f"the state was saved with shuffle={state.shuffle!r}, this data set has "
                f"{self._options.shuffle!r}: use the same one to continue within its order"
            )
        return place

    def adopt_options(self, options: ShuffleOptions) -> None:
        """Order by a state's options from here on."""
        self._options = options

    def failed(self, failed: Failed) -> None:
        """Act on a sample that failed, by ``on_error``: raise, or count it.

        Raises:
            Exception: the sample's own error (``on_error="raise"``).
            ShardkitError: more than ``max_failures`` have failed.
        """
        if self.on_error == "raise":
            raise with_place(failed)
        self.failures.note(failed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_progress": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _samples(self, block: Block, progress: Progress) -> Iterator[Sample]:
        if self.stream.is_plain and self.on_error == "raise":
            return progress.follow(self.stream.raw(block.ids), len(block.ids))
        return self._made(block, progress)

    def _made(self, block: Block, progress: Progress) -> Iterator[Sample]:
        outcomes = self.stream.outcomes(
            block.ids, block.positions, seed=self._options.seed, epoch=progress.epoch
        )
        for slot, outcome in enumerate(outcomes):
            if isinstance(outcome, Failed):
                self.failed(outcome)
                progress.done = slot
                continue
            if len(outcome) == 1:  # nearly always
                progress.done = slot
                yield outcome[0]
                continue
            if len(outcome) > 1:
                yield from outcome[:-1]  # the slot counts with its last sample: nothing is lost
            progress.done = slot
            yield from outcome[-1:]

    def _extends(self, fingerprint: str) -> bool:
        """Whether this is the data set of that fingerprint with others' samples added behind."""
        del fingerprint
        return False

    def _split(self) -> Split:
        return Split.bare(
            self.num_samples, self.world.rank, self.world.world_size, self._options.num_lanes
        )

    def _start(self, epoch: int, worker: int) -> tuple[int, int]:
        """Position at which an epoch starts, and our first batch from there; under the lock."""
        restored = self._restored
        if restored is None or restored.epoch != epoch:
            return 0, worker
        return restored.position, worker if restored.first is None else restored.first

    def _where(self, world: World, progress: Progress | None) -> tuple[int, int, int]:
        """Epoch, position and our next batch, for the state; under the lock."""
        if self._progress is not None:  # else a state was loaded or an epoch set since
            progress = progress or self._progress
            return *progress.place, progress.next_batch(world.num_workers)
        epoch, ended = self._rows.read(world.worker)
        if epoch > ended and world.num_workers == 1:  # begun by a worker process, not by us
            epoch -= 1
            logger.warning(
                "the state is that of the start of epoch %d: how far the workers of torch's "
                "DataLoader are can't be seen from here; shardkit.DataLoader saves exact states",
                epoch,
            )
        return epoch, *self._start(epoch, world.worker)


class ShardDataset(SampleDataset):
    """Samples of packed shards.

    Args:
        url: folder or URL of a packed dataset; or plain tars, by a wildcard or braces.
        shuffle: "none", "shard" (shards in random order), "buffer" (that, and samples mixed
            within ``buffer_size``; the default) or "global" (every sample anywhere).
        buffer_size: how far "buffer" mixes, in samples: neighbours come from rows about so far
            apart, and no row moves further than 1.5 times as far. It costs disk, not memory.
            Default 10,000: ten shards of 1,000 samples.
        seed: of the order and of random transforms.
        members: exts to load; default all but the copy of the metadata inside the tars.
        metadata: metadata columns to give; default all.
        ranged: members, such as ``["mp4"]``, that are not fetched whole: their decoders get a
            source and read the parts they need, a clip of a film a few per cent of it. Of far
            shards nothing else is fetched then but the other members.
        decode: "auto" decodes by ext, None gives bytes, a mapping overrides by ext; see
            ``shardkit.decode``.
        transforms: callables from sample to sample, samples or None; see ``shardkit.transforms``.
        where: condition in DuckDB's SQL over the metadata columns and ``__key__``; only samples
            for which it is true take part. Other tables can be named by file:
            ``"id IN (SELECT id FROM 'scores.parquet' WHERE score > 5)"``.
        exclude: keys of samples to leave out.
        weights: a numeric column, or a function from a table of metadata to a number a row: 0.5
            keeps half of such samples, 2 repeats each. Chosen by ``seed``, once for all epochs.
        on_error: "raise", "skip" (leave the sample out and count it), or "replace" (under
            ``shardkit.DataLoader``: a good sample of the same batch in its place, marked; as "skip"
            in a bare ``for`` and under torch's DataLoader).
        max_failures: end the run when more than so many samples have failed.
        verify: "once" proves every member by its checksum when it is first read, "always" every
            time, "never" not at all.
        cache_dir: local folder where far shards are kept, shared by all that name it.
        cache_limit: bytes that it never exceeds, such as ``"200gb"`` (the default), all processes
            of the node together; None is unlimited.
        storage_options: of the store.
        world: which part of the samples is ours; default what torch.distributed says.

    A sample is a dict: ``__key__``, ``__url__``, members by ext, metadata columns by name.

    Raises:
        NotFoundError: there is no packed dataset at ``url``.
        ConfigError: an argument is wrong, or names members or columns there are none of.
        IndexDataError: no sample is left by ``where``, ``exclude`` and ``weights``.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        shuffle: Shuffle = "buffer",
        buffer_size: int | None = None,
        seed: int = 0,
        members: Names | None = None,
        metadata: Names | None = None,
        ranged: Names = (),
        decode: DecodeOption = "auto",
        transforms: Iterable[Any] | None = None,
        where: str | None = None,
        exclude: Iterable[str] = (),
        weights: Weights | None = None,
        on_error: OnError = "raise",
        max_failures: int | None = None,
        verify: Verify = "once",
        cache_dir: str = DEFAULT_CACHE_DIR,
        cache_limit: int | str | None = DEFAULT_CACHE_LIMIT,
        storage_options: Mapping[str, Any] | None = None,
        world: World | None = None,
    ) -> None:
        if verify not in get_args(Verify):
            raise ConfigError(f"verify={verify!r} is not one of 'always', 'once', 'never'")
        scratch = Scratch()
        store, cache = open_store(storage_options), Cache(cache_dir, cache_limit)
        dataset = open_shards(url, store, scratch)
        chosen = Chosen(where, exclude, weights, seed)
        selection = select(dataset.groups, dataset.counts, dataset.fingerprint, chosen, scratch)
        source = ShardSource(
            dataset,
            store,
            cache,
            exts=members,
            metadata=metadata,
            verify=verify,
            ranged=ranged,
            sparse=sparse_shards(
                dataset,
                selection.counts.reshape(-1, len(dataset.counts)).sum(axis=0),
                cache.limit,
                scattered=shuffle == "global",
                in_parts=bool(ranged),
            ),
        )
        self._shards = dataset
        if buffer_size is None:
            buffer_size = default_buffer_size(dataset, cache.limit, DEFAULT_BUFFER_SIZE)
        super().__init__(
            SampleStream(source, selection, SampleMaker(decode, transforms, dataset.url)),
            shuffle=shuffle,
            buffer_size=buffer_size,
            seed=seed,
            on_error=on_error,
            max_failures=max_failures,
            world=world,
        )

    def _extends(self, fingerprint: str) -> bool:
        return self._shards.extends(fingerprint)
