"""Which samples of a dataset a reshard takes, and to which of its named parts each goes.

Every choice is a bitmap over the source's samples, kept in scratch under all that decides it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from shardkit.errors import ConfigError, IndexDataError
from shardkit.format.sidecar import KEY
from shardkit.index.chosen import chosen_rows, fitted
from shardkit.index.groups import Groups
from shardkit.index.scratch import Scratch
from shardkit.index.selection import Selection, keep_selection
from shardkit.index.where import select_rows
from shardkit.order.hashing import make_key
from shardkit.order.permutation import Permutation

__all__ = ["Chosen", "Parts", "choose_rows", "first_without_members", "split_rows"]

_VERSION = "1"  # of what is kept in scratch
_MAX_PARTS = 1_000
_NO_PART = np.uint16(0xFFFF)
_PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}", re.ASCII)
_ALL_HASHES = 2**64


@dataclass(frozen=True)
class Chosen:
    """What the user chose of the source's samples.

    Attributes:
        where: condition in DuckDB's SQL over ``__key__``, metadata columns and members.
        exclude: keys to leave out.
        max_samples: take so many of what is left, every one equally likely; None takes all.
        seed: chooses which.
    """

    where: str | None = None
    exclude: frozenset[str] = frozenset()
    max_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.where is not None and not self.where.strip():
            raise ConfigError("where is empty; leave it out to take all samples")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples={self.max_samples} must be at least 1")


@dataclass(frozen=True)
class Parts:
    """Named parts of the result.

    Attributes:
        fractions: name → fraction of the samples; they sum to 1.
        by: ``"key"``: a sample's part is decided by the hash of its key alone, so that it stays
            the same in a data set that grew or was shuffled, and sizes are fractions on average;
            ``"count"``: sizes are the fractions exactly, and a seed decides.
        column: metadata column whose values name the parts, in place of fractions.
    """

    fractions: Mapping[str, float] | None = None
    by: Literal["key", "count"] = "key"
    column: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.by not in ("key", "count"):
            raise ConfigError(f"parts_by={self.by!r} is not one of 'key', 'count'")
        if self.fractions is None:
            return
        if self.column is not None:
            raise ConfigError("give parts or part_column, not both")
        for name, fraction in self.fractions.items():
            check_part_name(name, "parts")
            if not 0 < fraction <= 1:
                raise ConfigError(f"parts: {name}={fraction:g} is not between 0 and 1")
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise ConfigError(
                f"parts: the fractions of {', '.join(self.fractions)} sum to {total:.6g}, not to "
                "1; name a part for the rest, or take fewer samples with max_samples"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the result is one dataset."""
        return self.fractions is None and self.column is None


def check_part_name(name: str, what: str) -> str:
    """The name itself, if it can be that of a folder anywhere.

    Raises:
        ConfigError: it can't.
    """
    if not _PART_NAME.fullmatch(name):
        raise ConfigError(
            f"{what}: {name!r} can't name a part: it becomes a folder, so it has 1 to 64 letters, "
            "digits, '_', '-' and '.', and does not begin with '.' or '-'"
        )
    return name


def choose_rows(groups: Groups, chosen: Chosen, source: str, scratch: Scratch) -> Selection | None:
    """The samples that are left; None where all are.

    Raises:
        ConfigError: the condition can't be evaluated.
        IndexDataError: none is left.
    """
    counts = groups.counts
    num_rows = int(counts.sum())
    selection: Selection | None = None
    if chosen.where is not None:
        selection = select_rows(groups, chosen.where, scratch)
    if chosen.exclude:
        name = _name(groups, selection, "exclude", sorted(chosen.exclude))
        selection = keep_selection(
            scratch,
            name,
            counts,
            lambda: chosen_rows(groups, chosen.where, chosen.exclude, scratch),
        )
    left = num_rows if selection is None else int(selection.counts.sum())
    if not left:
        raise IndexDataError(
            f"no sample is left of the {num_rows:,} in {source} after where={chosen.where!r} and "
            f"{len(chosen.exclude):,} excluded keys; loosen them"
        )
    if chosen.max_samples is None or chosen.max_samples >= left:
        return selection
    name = _name(groups, selection, "subset", (chosen.max_samples, chosen.seed))
    order = Permutation(left, make_key("subset", left, chosen.seed))
    limit = chosen.max_samples
    return keep_selection(
        scratch, name, counts, lambda: _by_rank(counts, selection, lambda r: order(r) < limit)
    )


def split_rows(
    groups: Groups, selection: Selection | None, parts: Parts, seed: int, scratch: Scratch
) -> dict[str, Selection]:
    """The samples of each part, by its name.

    Raises:
        ConfigError: the column is not there, or its values can't name parts.
        IndexDataError: a part gets no sample, or a sample has no part.
    """
    if parts.fractions is not None:
        names, numbers = _by_fraction(groups, selection, parts, seed)
    else:
        names, numbers = _by_column(groups, selection, parts.column or "")
    asked = (names, parts.by, parts.column, seed, sorted((parts.fractions or {}).items()))
    name = _name(groups, selection, "parts", asked)

    def fill(part: str) -> None:
        with open(part, "wb") as file:
            file.writelines(found.tobytes() for found in numbers())

    path = scratch.keep(f"{name}.parts", fill)
    found = {}
    for number, part_name in enumerate(names):
        found[part_name] = keep_selection(
            scratch, f"{name}-{number}", groups.counts, partial(_of_part, groups, path, number)
        )
        if not found[part_name].counts.sum():
            left = groups.counts if selection is None else selection.counts
            raise IndexDataError(
                f"the part {part_name!r} gets none of {int(left.sum()):,} samples: make it "
                "larger, or split exactly (parts_by='count')"
            )
    return found


def first_without_members(
    groups: Groups, selection: Selection | None, exts: tuple[str, ...]
) -> str | None:
    """The key of the first sample that takes part and has none of these members; None if none."""
    for group, count in enumerate(groups.counts.tolist()):
        rows = _rows_of(selection, group, count)
        if not len(rows):
            continue
        table = groups.read(group, [KEY, *exts])
        has = np.zeros(count, dtype=bool)
        for ext in exts:
            has |= pc.is_valid(table.column(ext)).to_numpy()
        without = rows[~has[rows]]
        if len(without):
            return str(table.column(KEY)[int(without[0])].as_py())
    return None


_Numbers = Callable[[], Iterator[npt.NDArray[np.uint16]]]
"""Yields the number of each row's part, group by group."""


def _by_fraction(
    groups: Groups, selection: Selection | None, parts: Parts, seed: int
) -> tuple[list[str], _Numbers]:
    fractions = parts.fractions or {}
    names = list(fractions)
    ends = np.cumsum(list(fractions.values()))
    counts = groups.counts
    left = int(counts.sum() if selection is None else selection.counts.sum())
    order = Permutation(left, make_key("parts", left, seed))
    total = left if parts.by == "count" else _ALL_HASHES
    bounds = np.array(
        [min(round(float(end) * total), _ALL_HASHES - 1) for end in ends[:-1]], dtype=np.uint64
    )
    starts = _starts(counts, selection)

    def numbers() -> Iterator[npt.NDArray[np.uint16]]:
        for group, count in enumerate(counts.tolist()):
            rows = _rows_of(selection, group, count)
            found = np.full(count, _NO_PART, dtype=np.uint16)
            if parts.by == "count":
                ranks = starts[group] + np.arange(len(rows), dtype=np.int64)
                values = order(ranks).astype(np.uint64)
            else:
                keys = fitted(groups.read(group, [KEY]).column(KEY)).take(pa.array(rows))
                hashes = (xxh3_64_intdigest(key.encode()) for key in keys.to_pylist())
                values = np.fromiter(hashes, dtype=np.uint64, count=len(rows))
            found[rows] = np.searchsorted(bounds, values, side="right")
            yield found

    return names, numbers


def _by_column(
    groups: Groups, selection: Selection | None, column: str
) -> tuple[list[str], _Numbers]:
    if column not in groups.schema.names:
        known = [f.name for f in groups.schema if not pa.types.is_struct(f.type)]
        raise ConfigError(f"part_column={column!r} is no column; there are {', '.join(known)}")
    kind = groups.schema.field(column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_is_text(plain) or pa.types.is_integer(plain) or pa.types.is_boolean(plain)):
        raise ConfigError(f"part_column={column!r} holds {kind}, which can't name parts")

    def values(group: int, rows: npt.NDArray[np.int64]) -> pa.Array:
        found = groups.read(group, [column]).column(column).cast(plain).cast(pa.string())
        return found.take(pa.array(rows)).combine_chunks()

    names: set[str] = set()
    for group, count in enumerate(groups.counts.tolist()):
        rows = _rows_of(selection, group, count)
        found = values(group, rows)
        if found.null_count:
            row = int(rows[pc.index(pc.is_null(found), value=True).as_py()])
            key = groups.read(group, [KEY]).column(KEY)[row].as_py()
            raise IndexDataError(
                f"part_column={column!r} is null for the key {key!r}, so that it has no part; "
                f"leave such samples out (where={column + ' IS NOT NULL'!r})"
            )
        names.update(pc.unique(found).to_pylist())
        if len(names) > _MAX_PARTS:
            raise ConfigError(
                f"part_column={column!r} has more than {_MAX_PARTS:,} values: each would be a "
                "dataset of its own"
            )
    ordered = sorted(check_part_name(name, f"part_column={column!r}") for name in names)
    all_names = pa.array(ordered, pa.string())

    def numbers() -> Iterator[npt.NDArray[np.uint16]]:
        for group, count in enumerate(groups.counts.tolist()):
            rows = _rows_of(selection, group, count)
            found = np.full(count, _NO_PART, dtype=np.uint16)
            found[rows] = pc.index_in(values(group, rows), value_set=all_names).to_numpy(
                zero_copy_only=False
            )
            yield found

    return ordered, numbers


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _of_part(groups: Groups, path: str, number: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Whether each row is in a part, by the numbers in a file."""
    with open(path, "rb") as file:
        for count in groups.counts.tolist():
            yield np.frombuffer(file.read(2 * count), dtype=np.uint16) == number


def _by_rank(
    counts: npt.NDArray[np.int64],
    selection: Selection | None,
    takes: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
) -> Iterator[npt.NDArray[np.bool_]]:
    """Whether each row takes part, decided by its number among those that did so far."""
    starts = _starts(counts, selection)
    for group, count in enumerate(counts.tolist()):
        rows = _rows_of(selection, group, count)
        taken = np.zeros(count, dtype=bool)
        taken[rows] = takes(starts[group] + np.arange(len(rows), dtype=np.int64))
        yield taken


def _rows_of(selection: Selection | None, group: int, count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) if selection is None else selection.rows(group)


def _starts(counts: npt.NDArray[np.int64], selection: Selection | None) -> npt.NDArray[np.int64]:
    taken = counts if selection is None else selection.counts
    starts: npt.NDArray[np.int64] = np.cumsum(taken) - taken
    return starts


def _name(groups: Groups, selection: Selection | None, step: str, asked: Any) -> str:
    before = None if selection is None else selection.identity
    return xxh3_128_hexdigest(repr((_VERSION, groups.identity, before, step, asked)).encode())
