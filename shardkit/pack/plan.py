"""The plan of a pack: which index rows make which shard, decided before a byte is written.

Data's path: index → ``make_plan`` (sizes from the index, else a seeded sample) → ``Plan`` → saved
beside the shards. A pack that runs again reads the plan instead of making it, so shard boundaries
never move.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_hexdigest

from shardkit.errors import ConfigError, CorruptError, IndexDataError, StoreError, TransientError
from shardkit.format.manifest import Manifest, ShardTable
from shardkit.format.metadata import json_rows
from shardkit.format.sidecar import check_metadata_names
from shardkit.format.sizes import parse_size
from shardkit.format.tar import BLOCK, END_OF_TAR, padded
from shardkit.index.index import Index
from shardkit.index.rows import MemberColumn, Rows
from shardkit.order.hashing import make_key
from shardkit.order.permutation import Permutation
from shardkit.storage.protocol import Store

__all__ = ["DEFAULT_SHARD_SIZE", "PackOptions", "Plan", "json_metadata", "make_plan"]

PLAN_VERSION = 1
DEFAULT_SHARD_SIZE = "256mb"
"""Large enough that a shard streams at full speed from any object store, small enough that eight
readers times a few shards fit a node's cache (webdataset's and Energon's advice is 100 MB-1 GB)."""

_SAMPLE_ROWS = 1_000
_SAMPLE_GROUPS = 8  # a row group of a big index is read whole, so the sample stays within a few
_STAT_THREADS = 32


@dataclass(frozen=True)
class PackOptions:
    """What the user chose that decides the bytes of the result.

    ``samples_per_shard`` wins over ``shard_size``. ``metadata_member="auto"`` writes the metadata
    into the tars as ``<key>.json`` (``<key>.meta.json`` where samples have a json of their own);
    "none" leaves it to the sidecar; any other value is the ext to use.
    """

    shard_size: int | str = DEFAULT_SHARD_SIZE
    samples_per_shard: int | None = None
    shuffle: Literal["none", "global"] = "none"
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    metadata_member: str = "auto"

    def __post_init__(self) -> None:
        """Check every value."""
        object.__setattr__(self, "shard_size", parse_size(self.shard_size, "shard_size"))
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard={self.samples_per_shard} must be at least 1")
        if self.shuffle not in ("none", "global"):
            raise ConfigError(f"shuffle={self.shuffle!r} is not one of 'none', 'global'")
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error={self.on_error!r} is not one of 'raise', 'skip'")


@dataclass(frozen=True)
class Plan:
    """Shards as stretches of the index's rows (of the shuffled index, with ``shuffle``)."""

    index: str
    """Fingerprint of the index: contents, which of its columns are what, and the filter."""
    num_rows: int
    rows_per_shard: int | None
    """Rows of every shard but the last; None where ``starts`` says it."""
    starts: tuple[int, ...]
    """First row of every shard where the sizes were known; else empty."""
    exts: tuple[str, ...]
    """Member exts seen in the first rows: every sidecar has a column for each."""
    metadata_ext: str | None
    json_columns: tuple[str, ...]
    options: PackOptions = field(default_factory=PackOptions)

    @property
    def all_exts(self) -> tuple[str, ...]:
        """Exts of all members that are foreseen, the metadata's included."""
        return (*self.exts, *([] if self.metadata_ext is None else [self.metadata_ext]))

    @property
    def num_shards(self) -> int:
        """How many shards there will be."""
        if self.rows_per_shard is None:
            return len(self.starts)
        return -(-self.num_rows // self.rows_per_shard)

    def rows(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last."""
        if self.rows_per_shard is not None:
            start = shard * self.rows_per_shard
            return start, min(start + self.rows_per_shard, self.num_rows)
        stop = self.starts[shard + 1] if shard + 1 < len(self.starts) else self.num_rows
        return self.starts[shard], stop

    def shard_name(self, shard: int) -> str:
        """File name of a shard's tar."""
        return f"shard-{shard:0{self.name_digits}d}.tar"

    @property
    def name_digits(self) -> int:
        """Digits of a shard's number in its name: six, or as many as are needed."""
        return max(6, len(str(self.num_shards - 1)))

    @property
    def brace_url(self) -> str:
        """All shards' names in one, as webdataset's users write them."""
        last = self.num_shards - 1
        return f"shard-{{{0:0{self.name_digits}d}..{last:0{self.name_digits}d}}}.tar"

    @property
    def identity(self) -> str:
        """A hash of all that decides the bytes of the shards.

        Not ``on_error``: a shard with nothing to skip is the same either way.
        """
        return xxh3_128_hexdigest(self.with_errors("raise").encode())

    def with_errors(self, on_error: Literal["raise", "skip"]) -> Plan:
        """The same shards under another policy for rows that can't be packed."""
        return replace(self, options=replace(self.options, on_error=on_error))

    def for_manifest(self) -> dict[str, Any]:
        """The plan but for ``starts``, which the shard table's rows say."""
        values = asdict(self)
        del values["starts"]
        return values

    @classmethod
    def from_manifest(cls, manifest: Manifest, shards: ShardTable) -> Plan:
        """The plan that a dataset was packed by.

        Raises:
            ConfigError: it was not packed by a plan of ours (adopted tars), or by another version.
        """
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in manifest.packed.items()
        }
        try:
            starts: tuple[int, ...] = ()
            if values["rows_per_shard"] is None:
                starts = tuple((np.cumsum(shards.rows) - shards.rows).tolist())
            plan = cls(**{**values, "starts": starts, "options": PackOptions(**values["options"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the dataset was not packed by a plan ({error})") from error
        if plan.identity != manifest.plan:
            raise ConfigError("the dataset was packed by another version's plan")
        return plan

    def encode(self) -> bytes:
        """The bytes of the saved plan."""
        values = {"format": "shardkit-plan", "version": PLAN_VERSION, **asdict(self)}
        return json.dumps(values, sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes, url: str) -> Plan:
        """A saved plan.

        Raises:
            CorruptError: the bytes are no plan of this version.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            if (values.pop("format"), values.pop("version")) != ("shardkit-plan", PLAN_VERSION):
                raise ValueError("another format or version")
            for name in ("starts", "exts", "json_columns"):
                values[name] = tuple(values[name])
            return cls(**{**values, "options": PackOptions(**values["options"])})
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(
                f"{url} is no plan that this shardkit can continue ({error}); remove the folder "
                "and pack anew"
            ) from error


def make_plan(index: Index, options: PackOptions, store: Store) -> Plan:
    """Decide the shards of ``index``.

    Raises:
        IndexDataError: the index is empty, no column holds files, or none of the sampled rows'
            files can be found.
    """
    if index.num_rows == 0:
        raise IndexDataError(
            f"{index.source} has no rows; check the path, and the filter if there is one"
        )
    if not index.findings.files:
        raise IndexDataError(
            f"no column of {index.source} holds files, so samples would have no members: name the "
            "columns that do (--files COLUMN), or make members of values (--inline COLUMN=txt)"
        )
    sample = list(_sample(index, options.seed))
    exts = _exts(sample)
    metadata_ext, json_columns = json_metadata(index, exts, options.metadata_member)
    check_metadata_names(index.metadata_columns, [*exts, metadata_ext])
    rows_per_shard, starts = _boundaries(index, options, store, sample, json_columns)
    return Plan(
        index=index.fingerprint,
        num_rows=index.num_rows,
        rows_per_shard=rows_per_shard,
        starts=starts,
        exts=exts,
        metadata_ext=metadata_ext,
        json_columns=json_columns,
        options=options,
    )


def json_metadata(
    index: Index, exts: Sequence[str], choice: str
) -> tuple[str | None, tuple[str, ...]]:
    """The ext of the metadata member and the columns in it; (None, ()) where there is none.

    The key column alone makes no metadata member: the member's name already says it.
    """
    columns = tuple(index.metadata_columns)
    if choice == "none" or not set(columns) - {index.key_column}:
        return None, ()
    if choice != "auto":
        return choice.lower().lstrip("."), columns
    return ("meta.json" if "json" in exts else "json"), columns


def _sample(index: Index, seed: int) -> Iterator[Rows]:
    """Up to ``_SAMPLE_ROWS`` rows from a few row groups, the same ones for the same seed."""
    groups = np.flatnonzero(index.counts)
    groups = groups[_picked(len(groups), _SAMPLE_GROUPS, seed)]
    for group in groups.tolist():
        yield index.take(
            group, _picked(int(index.counts[group]), _SAMPLE_ROWS // len(groups), seed)
        )


def _picked(size: int, num_picked: int, seed: int) -> npt.NDArray[np.int64]:
    """At most ``num_picked`` numbers below ``size``, in rising order."""
    numbers = np.arange(min(size, num_picked), dtype=np.int64)
    return np.sort(Permutation(size, make_key("pack-sample", seed))(numbers))


def _exts(sample: Sequence[Rows]) -> tuple[str, ...]:
    return tuple(
        sorted(
            {
                name
                for rows in sample
                for member in rows.members
                for name in member.names
                if name is not None
            }
        )
    )


def _boundaries(
    index: Index,
    options: PackOptions,
    store: Store,
    sample: Sequence[Rows],
    json_columns: Sequence[str],
) -> tuple[int | None, tuple[int, ...]]:
    if options.samples_per_shard is not None:
        return options.samples_per_shard, ()
    shard_size = int(options.shard_size) - len(END_OF_TAR)
    if options.shuffle == "none" and all(_sizes_known(rows) for rows in sample):
        return None, tuple(_exact_starts(index, shard_size, json_columns))
    json_bytes = np.mean(np.concatenate([_json_sizes(rows, json_columns) for rows in sample]))
    sizes = _sampled_sizes(sample, store)
    return max(1, int(shard_size // (np.mean(sizes) + json_bytes))), ()


def _exact_starts(index: Index, shard_size: int, json_columns: Sequence[str]) -> Iterator[int]:
    """First rows of shards that are as full as can be without passing ``shard_size``."""
    yield 0
    row, room = 0, shard_size
    for rows in index.batches():
        for size in (_row_sizes(rows) + _json_sizes(rows, json_columns)).tolist():
            if size > room and room < shard_size:
                yield row
                room = shard_size
            room -= size
            row += 1


def _sizes_known(rows: Rows) -> bool:
    return all(
        column.urls[row] is None or (column.sizes is not None and column.sizes[row] >= 0)
        for column in rows.members
        for row in range(len(rows))
    )


def _row_sizes(rows: Rows) -> npt.NDArray[np.int64]:
    """Bytes that each row's members take in a tar, their headers included; sizes are known."""
    total = np.zeros(len(rows), dtype=np.int64)
    for column in rows.members:
        total += [_tar_bytes(_size(column, row)) for row in range(len(rows))]
    return total


def _json_sizes(rows: Rows, columns: Sequence[str]) -> npt.NDArray[np.int64]:
    """Bytes that each row's metadata member takes in a tar."""
    if not columns:
        return np.zeros(len(rows), dtype=np.int64)
    jsons = json_rows(rows.metadata.select(list(columns)))
    return np.array([_tar_bytes(len(data)) for data in jsons], dtype=np.int64)


def _size(column: MemberColumn, row: int) -> int | None:
    """Bytes of a member; None where there is none, -1 where its size is not known."""
    if column.urls[row] is not None:
        return column.sizes[row] if column.sizes is not None else -1
    value = column.values[row] if column.values is not None else None
    return None if value is None else len(value)


def _tar_bytes(size: int | None) -> int:
    return 0 if size is None else BLOCK + padded(max(0, size))


def _sampled_sizes(sample: Sequence[Rows], store: Store) -> list[int]:
    """Tar bytes of the sampled rows that can be found, asked of the store where they must be."""
    if all(_sizes_known(rows) for rows in sample):
        known = [size for rows in sample for size in _row_sizes(rows).tolist()]
        if any(known):
            return known

    def size(place: tuple[Rows, int]) -> int | StoreError:
        rows, row = place
        total = 0
        for column in rows.members:
            num_bytes = _size(column, row)
            if num_bytes == -1:
                try:
                    num_bytes = store.stat(column.urls[row] or "").size
                except TransientError:  # parts that plan at the same time must plan the same
                    raise
                except StoreError as error:
                    return error
            total += _tar_bytes(num_bytes)
        return total

    places = [(rows, row) for rows in sample for row in range(len(rows))]
    share = -(-len(places) // _STAT_THREADS)
    shares = [places[start : start + share] for start in range(0, len(places), share)]
    with ThreadPoolExecutor(_STAT_THREADS, "shardkit-stat") as pool:
        found = pool.map(lambda some: [size(place) for place in some], shares)
        results = [result for some in found for result in some]
    sizes = [result for result in results if isinstance(result, int)]
    if not any(sizes):
        errors = [result for result in results if isinstance(result, StoreError)]
        reason = str(errors[0]) if errors else "no row has a file"
        raise IndexDataError(
            f"none of {len(results)} sampled rows has a file that can be found: {reason}. Check "
            "the columns that hold files (--files) and what relative paths start from"
        ) from (errors[0] if errors else None)
    return sizes
