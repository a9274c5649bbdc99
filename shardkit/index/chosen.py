"""Which rows a filter and a list of keys leave: one meaning for datasets and for reshards."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.format.keys import fit_key
from shardkit.format.sidecar import KEY
from shardkit.index.groups import Groups
from shardkit.index.scratch import Scratch
from shardkit.index.where import select_rows

__all__ = ["chosen_rows", "fitted", "keys_fit"]

logger = logging.getLogger(__name__)

_FITS = r"\A[!-\-0-\[\]-~]{1,70}\z"  # ``keys.fits``, but for two underscores in front


def chosen_rows(
    groups: Groups, where: str | None, exclude: Collection[str], scratch: Scratch
) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield, group by group, whether each row is left.

    Args:
        groups: rows with ``__key__`` and what the condition names.
        where: condition in DuckDB's SQL; None leaves all.
        exclude: keys to leave out, as ``__key__`` spells them.
        scratch: keeps the condition's bitmap.

    Raises:
        ConfigError: DuckDB does not take the condition.
    """
    filtered = None if where is None else select_rows(groups, where, scratch)
    excluded = pa.array(sorted(exclude), pa.string())
    num_found = 0
    for group, count in enumerate(groups.counts.tolist()):
        left = np.ones(count, dtype=bool)
        if filtered is not None:
            left[:] = False
            left[filtered.rows(group)] = True
        if len(excluded):
            keys = fitted(groups.read(group, [KEY]).column(KEY))
            gone = pc.is_in(keys, value_set=excluded).to_numpy()
            num_found += int(gone.sum())
            left[gone] = False
        yield left
    if num_found < len(excluded):
        logger.warning(
            "%d of %d keys to exclude are keys of no sample",
            len(excluded) - num_found,
            len(excluded),
        )


def fitted(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys as samples have them: those of tars that others made may not fit the dialect."""
    keys = keys.cast(pa.string())
    fits = pc.and_(pc.match_substring_regex(keys, _FITS), pc.invert(pc.starts_with(keys, "__")))
    if pc.all(fits, min_count=0).as_py():
        return keys
    return pa.chunked_array([[fit_key(key) for key in keys.to_pylist()]], pa.string())


def keys_fit(groups: Groups) -> bool:
    """Whether samples keep all the keys that the groups have."""
    tables = (groups.read(group, [KEY]) for group in range(len(groups.counts)))
    return all(fitted(table.column(KEY)).equals(table.column(KEY)) for table in tables)
