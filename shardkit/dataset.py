"""``ShardDataset``: packed shards as samples: by number, in a ``for``, or under a DataLoader.

What is here is wiring: a source (where bytes are), an order (which sample when), a maker (decode
and transforms), a world (which part is ours), and how far the iteration has come.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from shardkit.samples.selection import Chosen, Weights, select
from shardkit.samples.shards import ShardSource, default_buffer_size, sparse_shards
from shardkit.samples.source import Sample
from shardkit.samples.stream import SampleStream
from shardkit.storage.cache import Cache
from shardkit.storage.store import open_store
from shardkit.world import World

if TYPE_CHECKING:
    _Base = object
else:
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError:  # JAX users, and machines that only look: a plain iterable
        _Base = object

__all__ = ["ShardDataset"]

DEFAULT_CACHE_DIR = "~/.cache/shardkit"
DEFAULT_CACHE_LIMIT = "200gb"
"""Some 800 shards of the usual size; a disk that has less evicts when it is full."""

_MAX_WORKERS = 1_024  # slots of the epoch counter; a rank has fewer loader workers than that


class _EpochCounter:
    """The next epoch of every loader worker, seen by all processes of a rank.

    A DataLoader without persistent workers copies the data set anew for every epoch, so the copy
    in a worker must not be the one that counts. With torch the numbers are in shared memory, which
    fork, spawn and forkserver all carry over.
    """

    def __init__(self) -> None:
        self._next: Any = np.zeros(_MAX_WORKERS, dtype=np.int64)
        if _Base is not object:
            import torch  # noqa: PLC0415 - an extra

            self._next = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def peek(self, worker: int = 0) -> int:
        """The epoch that the worker's next iteration will be."""
        return int(self._next[worker % _MAX_WORKERS])

    def begin(self, worker: int) -> int:
        """Take that epoch."""
        epoch = self.peek(worker)
        self._next[worker % _MAX_WORKERS] = epoch + 1
        return epoch

    def set(self, epoch: int) -> None:
        """Make it ``epoch`` for every worker."""
        self._next[:] = epoch


class Progress:
    """How far one iteration has come; the iterator writes it, ``state_dict`` reads it."""

    __slots__ = ("block", "done", "epoch", "position")

    def __init__(self, epoch: int, position: int) -> None:
        self.epoch = epoch
        self.position = position
        self.block: Block | None = None
        self.done = -1  # slots of the block that have been consumed, less one

    def resume_position(self) -> int:
        """The canonical position after what was consumed."""
        if self.block is None or self.done < 0:
            return self.position
        return int(self.block.stops[self.done])


class SampleDataset(_Base):
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
        self.stream = stream
        self.world = world if world is not None else World.detect()
        self.on_error: OnError = on_error
        self.failures = Failures(max_failures)
        lanes = 1 if shuffle == "none" else self.world.num_nodes
        self._options = ShuffleOptions(shuffle, buffer_size or DEFAULT_BUFFER_SIZE, seed, lanes)
        self._epochs = _EpochCounter()
        self._resume: State | None = None
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self.stream.num_samples

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
        number = int(index)
        if not -self.num_samples <= number < self.num_samples:
            raise IndexError(f"sample {number} of {self.num_samples:,} in {self.stream.source.url}")
        ids = np.array([number % self.num_samples], dtype=np.int64)
        if self.stream.maker.is_identity:
            return next(self.stream.raw(ids))
        (outcome,) = self.stream.outcomes(ids, ids, seed=self._options.seed, epoch=0)
        if isinstance(outcome, Failed):
            raise with_place(outcome)
        return outcome[0] if outcome else None

    def __iter__(self) -> Iterator[Sample]:
        """Yield this rank's (and this loader worker's) samples of the next epoch."""
        world = self.world.in_worker()
        progress = self.begin_epoch(world.worker)
        order, position, split = self.order(progress.epoch), progress.position, self._split()

        def blocks() -> Iterator[Block]:
            return iterate_blocks(
                order, split, position, worker=world.worker, num_workers=world.num_workers
            )

        locate = self.stream.selection.locate
        with self.stream.source.ahead(locate(block.ids) for block in blocks()):
            for block in blocks():
                progress.block, progress.done = block, -1
                yield from self._samples(block, progress)

    def begin_epoch(self, worker: int = 0) -> Progress:
        """Take the next epoch, or the rest of a restored one; whoever iterates moves it on."""
        with self._lock:
            self._progress = Progress(*self._begin(worker))
            return self._progress

    def order(self, epoch: int) -> EpochOrder:
        """The canonical order of an epoch."""
        return self.stream.order(self._options, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``, from its start."""
        if epoch < 0:
            raise ConfigError(f"epoch={epoch} must be at least 0")
        with self._lock:
            self._epochs.set(epoch)
            self._resume = self._progress = None

    def state_dict(self) -> dict[str, Any]:
        """How far this process's iteration has come, in plain JSON values.

        Exact where the data set itself is iterated. Under torch's DataLoader with worker
        processes the main process can't see how far they are: use ``shardkit.DataLoader``.
        """
        with self._lock:
            epoch, position = self._where()
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
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken, on any world size and number of workers.

        Raises:
            StateError: the state is of another data set, selection or order; says why.
        """
        loaded = State.from_dict(state)
        loaded.check(
            fingerprint=self.stream.source.fingerprint,
            selection=self.stream.selection.key,
            num_samples=self.num_samples,
        )
        if loaded.shuffle != self._options.shuffle:
            raise StateError(
                f"the state was saved with shuffle={loaded.shuffle!r}, this data set has "
                f"{self._options.shuffle!r}: use the same one to continue within its order"
            )
        with self._lock:
            self._options = loaded.options()
            self._epochs.set(loaded.epoch)
            self._resume, self._progress = loaded, None

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
        if self.stream.maker.is_identity and self.on_error == "raise":
            for slot, sample in enumerate(self.stream.raw(block.ids)):
                progress.done = slot
                yield sample
            return
        outcomes = self.stream.outcomes(
            block.ids, block.positions, seed=self._options.seed, epoch=progress.epoch
        )
        for slot, outcome in enumerate(outcomes):
            progress.done = slot
            if isinstance(outcome, Failed):
                self.failed(outcome)
            else:
                yield from outcome

    def _split(self) -> Split:
        return Split.bare(
            self.num_samples, self.world.rank, self.world.world_size, self._options.num_lanes
        )

    def _begin(self, worker: int) -> tuple[int, int]:
        """Epoch and position at which an iteration starts; under the lock."""
        epoch = self._epochs.begin(worker)
        if self._resume is not None and self._resume.epoch == epoch:
            position = self._resume.position
            if position < self.num_samples:
                return epoch, position
            epoch = self._epochs.begin(worker)  # the state was taken at the epoch's very end
        return epoch, 0

    def _where(self) -> tuple[int, int]:
        """Epoch and position of the state; under the lock."""
        if self._progress is not None:
            return self._progress.epoch, self._progress.resume_position()
        if self._resume is not None and self._resume.epoch == self._epochs.peek():
            return self._resume.epoch, self._resume.position
        return self._epochs.peek(), 0


class ShardDataset(SampleDataset):
    """Samples of packed shards.

    Args:
        url: folder or URL of a packed dataset.
        shuffle: "none", "shard" (shards in random order), "buffer" (that, and samples mixed
            within ``buffer_size``; the default) or "global" (every sample anywhere).
        buffer_size: how far "buffer" mixes, in samples; it costs disk, not memory. Default
            10,000: ten shards of 1,000 samples.
        seed: of the order and of random transforms.
        members: exts to load; default all but the copy of the metadata inside the tars.
        metadata: metadata columns to give; default all.
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
            ``shardkit.DataLoader``: a good sample of the same batch in its place, marked).
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
        url: str,
        *,
        shuffle: Shuffle = "buffer",
        buffer_size: int | None = None,
        seed: int = 0,
        members: Sequence[str] | None = None,
        metadata: Sequence[str] | None = None,
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
            sparse=sparse_shards(
                dataset,
                selection.counts.reshape(-1, len(dataset.counts)).sum(axis=0),
                cache.limit,
                scattered=shuffle == "global",
            ),
        )
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
