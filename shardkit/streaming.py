"""``StreamingDataset``: raw files that an index lists, streamed with no packing step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa

from shardkit.dataset import DEFAULT_CACHE_DIR, DEFAULT_CACHE_LIMIT, SampleDataset
from shardkit.decode.registry import DecodeOption
from shardkit.errors import ConfigError
from shardkit.format.sidecar import check_metadata_names
from shardkit.index.index import Index
from shardkit.index.open import open_index
from shardkit.order.epoch import Shuffle
from shardkit.samples.failures import OnError
from shardkit.samples.maker import SampleMaker
from shardkit.samples.raw import Provider, RawOptions, RawSource
from shardkit.samples.selection import Chosen, Weights, select
from shardkit.samples.stream import SampleStream
from shardkit.samples.wanted import Naming
from shardkit.storage.cache import Cache
from shardkit.storage.store import open_store
from shardkit.transforms.onfields import Names, names_of
from shardkit.transforms.pipeline import Pipeline
from shardkit.world import World

__all__ = ["Revalidate", "StreamingDataset"]

Revalidate = Literal["open", "never"]

_CLOCK_NS = 20_000_000
"""Times of files lag behind the clock by up to a tick of the kernel, 10 ms."""


class StreamingDataset(SampleDataset):
    """Samples of raw files, in the order, cache, fetch, decode and state of ``ShardDataset``.

    Args:
        src: any index: a file, wildcard, list, folder, table or DataFrame, or several names in a
            list; see ``open_index``, whose result may be given too, where more is to be said of it
            than can be said here.
        dst: local folder where far files are kept, shared by all that name it.
        data_type: of folders: keep samples with a member of this type ("image", "video", …).
        columns_to_load: columns that hold files; members then go by their column's name. Default:
            the columns that are found to hold files, members by ext as in packed shards; none
            with ``[]``: metadata alone.
        index_col_name: the key column; by default found.
        num_downloading_workers: requests in flight at once.
        cache_limit: bytes that ``dst`` never exceeds, such as ``"200gb"`` (the default), all
            processes of the node together; None keeps all.
        shuffle: "none", "shard" (row groups of the index in random order), "buffer" (that, and
            samples mixed within ``buffer_size``; the default) or "global".
        buffer_size: how far "buffer" mixes, in samples; default 10,000.
        seed: of the order and of random transforms.
        metadata: metadata columns to give; default all others.
        where: condition in DuckDB's SQL over the index, or a whole ``SELECT … FROM dataframe``.
        weights: a numeric metadata column, or a function from a table of metadata to a number a
            row: 0.5 keeps half of such samples, 2 repeats each.
        max_samples: the first so many rows of the (filtered) index.
        allow_missing: None for a member that a row lacks or whose file is missing; else such a row
            is an error.
        pre_download_transforms: from an index row (a dict, URLs included) to the row to fetch, to
            several, or to None; they choose what is fetched.
        data_providers: by member name, functions from an index row to the member's bytes.
        transforms: from sample to sample, samples or None; see ``shardkit.transforms``.
        ranged: members, such as ``["mp4"]``, that are not fetched whole and not kept: their
            decoders read the parts they need, a clip of a film a few per cent of it.
        decode: "auto" decodes by ext, None gives bytes, "path" a local path that is good for as
            long as it is held, a mapping overrides by ext or name.
        on_error: "raise", "skip" or "replace"; see ``ShardDataset``.
        max_failures: end the run when more than so many samples have failed.
        revalidate: "open" asks of each far file that was in the cache before this data set was
            opened, once, whether it is still the same, and fetches it anew if not: one small
            request a file. "never" takes what is cached as it is.
        storage_options: of the store.
        world: which part of the samples is ours; default what torch.distributed says.

    Raises:
        NotFoundError, IndexDataError, ConfigError: see ``open_index``.
    """

    def __init__(
        self,
        src: Any,
        dst: str | os.PathLike[str] = DEFAULT_CACHE_DIR,
        *,
        data_type: str | None = None,
        columns_to_load: Names | None = None,
        index_col_name: str | None = None,
        num_downloading_workers: int = 32,
        cache_limit: int | str | None = DEFAULT_CACHE_LIMIT,
        shuffle: Shuffle = "buffer",
        buffer_size: int | None = None,
        seed: int = 0,
        metadata: Names | None = None,
        where: str | None = None,
        weights: Weights | None = None,
        max_samples: int | None = None,
        allow_missing: bool = False,
        pre_download_transforms: Iterable[Any] | None = None,
        data_providers: Mapping[str, Provider] | None = None,
        transforms: Iterable[Any] | None = None,
        ranged: Names = (),
        decode: DecodeOption = "auto",
        on_error: OnError = "raise",
        max_failures: int | None = None,
        revalidate: Revalidate = "open",
        storage_options: Mapping[str, Any] | None = None,
        world: World | None = None,
    ) -> None:
        if num_downloading_workers < 1:
            raise ConfigError(
                f"num_downloading_workers={num_downloading_workers} must be at least 1"
            )
        if revalidate not in get_args(Revalidate):
            raise ConfigError(f"revalidate={revalidate!r} is not one of 'open', 'never'")
        if ranged and decode == "path":
            raise ConfigError(
                f"ranged={ranged!r} has no paths to give: leave one of ranged= and "
                "decode='path' out"
            )
        opened_ns = time.time_ns()
        store, cache = open_store(storage_options), Cache(os.fspath(dst), cache_limit)
        said = {
            "index_col_name": index_col_name,
            "columns_to_load": columns_to_load,
            "metadata": metadata,
            "where": where,
            "data_type": data_type,
        }
        if isinstance(src, Index):
            index = _as_opened(src, said)
        else:
            index = open_index(
                src,
                key=index_col_name,
                files=None if columns_to_load is None else names_of(columns_to_load),
                metadata=metadata,
                where=where,
                data_type=data_type,
                store=store,
                cache=cache,
            )
        if columns_to_load is None:
            plain = [name for name in index.metadata_columns if not name.startswith("__")]
            check_metadata_names(plain, index.findings.member_names)
        if shuffle == "global":
            index = index.mapped(cache)
        index.check_near_keys()
        options = RawOptions(
            naming=Naming(by_column=columns_to_load is not None),
            allow_missing=allow_missing,
            as_paths=decode == "path",
            before=Pipeline(pre_download_transforms),
            providers=dict(data_providers or {}),
            ranged=[name.lower().removeprefix(".") for name in names_of(ranged)],
            since_ns=0 if revalidate == "never" else opened_ns - _CLOCK_NS,
            num_threads=num_downloading_workers,
        )
        source = RawSource(index, store, cache, options)
        self.index = index
        super().__init__(
            SampleStream(
                source,
                select(
                    lambda: _MetadataGroups(index),
                    index.counts,
                    index.fingerprint,
                    Chosen(weights=weights, seed=seed, first=max_samples),
                    index.scratch,
                ),
                SampleMaker(None if decode == "path" else decode, transforms, index.source),
            ),
            shuffle=shuffle,
            buffer_size=buffer_size,
            seed=seed,
            on_error=on_error,
            max_failures=max_failures,
            world=world,
        )


def _as_opened(index: Index, said: Mapping[str, object]) -> Index:
    """Return an index that was opened before, of which nothing more is to be said."""
    twice = sorted(name for name, value in said.items() if value is not None)
    if twice:
        raise ConfigError(
            f"{', '.join(twice)} and an index that is open already: say it to open_index"
        )
    return index


class _MetadataGroups:
    """An index's metadata as row groups, filtered rows left out. See ``Groups``."""

    in_memory = False

    def __init__(self, index: Index) -> None:
        self._index = index
        self.schema = index.metadata_schema
        self.counts = index.counts
        self.identity = index.fingerprint

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read the metadata of a group."""
        return self._index.read(group).metadata.select(list(columns))

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return the first rows of the first group."""
        return self.read(0, columns).slice(0, num_rows)

    def file(self, group: int) -> str:
        """URL of the index."""
        del group
        return self._index.source
