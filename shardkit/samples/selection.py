"""Which samples take part: a filter, keys to leave out, weights; resolved once into a bitmap."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128

from shardkit.errors import ConfigError, IndexDataError
from shardkit.format.keys import fit_key
from shardkit.index.chosen import chosen_rows
from shardkit.index.groups import Groups
from shardkit.index.scratch import Scratch
from shardkit.order.selection import (
    Selection,
    copies_of,
    open_selection,
    selection_key,
    write_selection,
)

__all__ = ["Chosen", "Weights", "select"]

Weights = str | Callable[[pa.Table], npt.ArrayLike]


@dataclass(frozen=True)
class Chosen:
    """What the user chose of a dataset's samples.

    Attributes:
        where: condition in DuckDB's SQL over the metadata columns and ``__key__``; other tables
            can be named by file: ``"id IN (SELECT id FROM 'scores.parquet' WHERE score > 5)"``.
        exclude: keys to leave out, as the user or as the tars spell them.
        weights: a numeric column, or a function from the metadata of some rows (a table) to one
            number a row: 0.5 keeps half of such samples, 2 repeats each.
        seed: chooses which samples a broken weight keeps.
        first: take part at most so many rows, the first ones; None is all.
    """

    where: str | None = None
    exclude: Iterable[str] = ()
    weights: Weights | None = None
    seed: int = 0
    first: int | None = None

    def __post_init__(self) -> None:
        """Take the keys once, whatever kind of iterable they came in.

        Raises:
            ConfigError: something chooses nothing.
        """
        if self.where is not None and not self.where.strip():
            raise ConfigError("where is empty; leave it out to take all samples")
        if self.first is not None and self.first < 1:
            raise ConfigError(f"max_samples={self.first} must be at least 1")
        if isinstance(self.exclude, str):
            raise ConfigError(
                f"exclude={self.exclude!r} is one text; give a list of keys (or read the file: "
                "exclude=open(path).read().split())"
            )
        object.__setattr__(self, "exclude", frozenset(fit_key(key) for key in self.exclude))

    @property
    def is_all(self) -> bool:
        """Whether every sample takes part once."""
        return (self.where, self.weights, self.first) == (None, None, None) and not self.exclude


def select(
    open_groups: Callable[[], Groups],
    counts: npt.NDArray[np.int64],
    fingerprint: str,
    chosen: Chosen,
    scratch: Scratch,
) -> Selection:
    """Resolve what was chosen; the result is kept in ``scratch`` and found again.

    Args:
        open_groups: opens the dataset's rows, with ``__key__`` and the metadata columns; called
            only if something was chosen.
        counts: int64 [groups], rows per group.
        fingerprint: of the dataset.
        chosen: what the user chose.
        scratch: where the bitmap lies, memory-mapped.

    Raises:
        ConfigError: the condition or the weights can't be evaluated.
        IndexDataError: no sample is left.
    """
    if chosen.is_all:
        return Selection.all(counts)
    groups = open_groups()
    excluded = xxh3_128("\n".join(sorted(chosen.exclude)).encode()).hexdigest()
    weights = chosen.weights if isinstance(chosen.weights, str) else None
    if callable(chosen.weights):
        weights = _identity_of(groups, chosen)
    key = selection_key(fingerprint, chosen.where, excluded, weights, chosen.seed, chosen.first)
    path = scratch.keep(
        f"{key}.selection",
        lambda part: _write(part, groups, counts, chosen, scratch, key),
    )
    selection = open_selection(path, counts, key=key)
    if not selection.num_samples:
        raise IndexDataError(
            f"no sample is left of {int(counts.sum()):,} after where={chosen.where!r}, "
            f"{len(frozenset(chosen.exclude)):,} excluded keys and weights; loosen them"
        )
    return selection


def _write(
    part: str,
    groups: Groups,
    counts: npt.NDArray[np.int64],
    chosen: Chosen,
    scratch: Scratch,
    key: str,
) -> None:
    if os.path.exists(part):
        os.unlink(part)
    write_selection(part, counts, _copies(groups, counts, chosen, scratch), key=key)


def _copies(
    groups: Groups, counts: npt.NDArray[np.int64], chosen: Chosen, scratch: Scratch
) -> Iterator[npt.NDArray[np.int64]]:
    """How often each row takes part, group by group."""
    starts = np.cumsum(counts) - counts
    left = chosen_rows(groups, chosen.where, frozenset(chosen.exclude), scratch)
    for group, is_left in enumerate(left):
        copies = np.ones(len(is_left), dtype=np.int64)
        if chosen.weights is not None:
            weights = _weights(groups, group, chosen.weights)
            copies = copies_of(weights, seed=chosen.seed, start=int(starts[group]))
        copies[~is_left] = 0
        if chosen.first is not None:
            copies[max(0, chosen.first - int(starts[group])) :] = 0
        yield copies


def _weights(groups: Groups, group: int, weights: Weights) -> npt.NDArray[np.float64]:
    names = [
        name
        for name in groups.schema.names
        if not pa.types.is_struct(groups.schema.field(name).type)
    ]
    if isinstance(weights, str):
        if weights not in names:
            raise ConfigError(f"weights={weights!r} is no column; there are {', '.join(names)}")
        values: Any = groups.read(group, [weights]).column(0)
        try:
            return values.cast(pa.float64()).fill_null(0.0).to_numpy()  # type: ignore[no-any-return]
        except pa.ArrowException as error:
            raise ConfigError(
                f"weights={weights!r} is a column of {values.type}: {error}"
            ) from error
    table = groups.read(group, names)
    found = np.asarray(weights(table), dtype=np.float64)
    if found.shape != (len(table),):
        raise ConfigError(f"weights gave an array of shape {found.shape} for {len(table)} rows")
    return found


def _identity_of(groups: Groups, chosen: Chosen) -> str:
    """A hash of what a function gives: functions have no name that tells two versions apart."""
    if not callable(chosen.weights):
        return ""
    digest = xxh3_128()
    for group in range(len(groups.counts)):
        digest.update(_weights(groups, group, chosen.weights).tobytes())
    return digest.hexdigest()
