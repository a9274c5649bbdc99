"""How well an order is shuffled, as numbers beside those of an ideal permutation.

Sample ids stand for the data set's natural order, sorted by label in the worst case, so all that
is measured is how far the order has come from it. Every figure is also given for an ideal
permutation of the same length, so that 1 means "as good as ideal".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError
from shardkit.order.hashing import Int64Array

__all__ = ["NUM_LABELS", "WINDOW", "Quality", "measure_quality", "measure_stretches"]

# A sorted data set of as many classes as ImageNet, read in usual batches.
NUM_LABELS = 1000
WINDOW = 256


@dataclass(frozen=True, slots=True)
class Quality:
    """The figures of one stretch of an order.

    Attributes:
        rank_correlation: Spearman's, of position and id over the stretch: 0 is ideal, 1 is
            sorted.
        local_correlation: the same within windows of 256 positions, averaged: 0 is ideal.
        neighbour_distance: mean distance of the ids of neighbours over that of an ideal
            permutation of the whole data set, (N + 1) / 3: 1 is ideal.
        label_run: mean length of runs of one label over the ideal's: 1 is ideal, more is worse.
        labels_per_window: distinct labels in 256 positions over the ideal's: 1 is ideal.
    """

    rank_correlation: float
    local_correlation: float
    neighbour_distance: float
    label_run: float
    labels_per_window: float


def measure_quality(
    ids: npt.NDArray[np.int64],
    num_samples: int,
    *,
    num_labels: int = NUM_LABELS,
    window: int = WINDOW,
) -> Quality:
    """Measure a stretch of consecutive positions.

    Args:
        ids: sample ids in [0, num_samples) in order, at least ``window`` of them.
        num_samples: N of the data set; id i has label i · num_labels div N.
        num_labels: equally frequent labels that the data set is sorted by.
        window: positions of a batch.

    Raises:
        ConfigError: the stretch is shorter than a window, or a window than two.
    """
    if not 2 <= window <= len(ids):
        raise ConfigError(
            f"a stretch of {len(ids)} samples in windows of {window} can't be measured: pass at "
            "least one window of at least two samples"
        )
    num_labels = min(num_labels, num_samples)
    labels = ids * num_labels // num_samples
    num_runs = 1 + np.count_nonzero(labels[1:] != labels[:-1])
    # Neighbours of an ideal permutation share a label by chance.
    per_label = num_samples / num_labels
    chance = (per_label - 1) / max(num_samples - 1, 1)
    ideal_run = len(ids) / (1 + (len(ids) - 1) * (1 - chance))
    windows = ids[: len(ids) // window * window].reshape(-1, window)
    sorted_labels = np.sort(windows * num_labels // num_samples, axis=1)
    distinct = 1 + np.count_nonzero(np.diff(sorted_labels, axis=1), axis=1)
    distance = np.abs(np.diff(ids)).mean() / ((num_samples + 1) / 3)
    return Quality(
        rank_correlation=float(_correlations(ids[None, :])[0]),
        local_correlation=float(_correlations(windows).mean()),
        neighbour_distance=float(distance),
        label_run=len(ids) / num_runs / ideal_run,
        labels_per_window=float(distinct.mean()) / _ideal_labels(num_samples, num_labels, window),
    )


def measure_stretches(
    ids: npt.NDArray[np.int64], num_samples: int, length: int
) -> dict[str, Quality]:
    """Measure the first, the middle and the last ``length`` positions, and the whole epoch.

    Args:
        ids: of a whole epoch, or of one rank's.
        num_samples: N.
        length: usually ``buffer_size``; cut to a third of the epoch.
    """
    length = max(min(length, len(ids) // 3), WINDOW)
    middle = (len(ids) - length) // 2
    starts = {"start": 0, "middle": middle, "end": len(ids) - length}
    stretches = {name: ids[start : start + length] for name, start in starts.items()}
    return {
        name: measure_quality(part, num_samples)
        for name, part in ({"epoch": ids} | stretches).items()
    }


def _correlations(rows: Int64Array) -> npt.NDArray[np.float64]:
    """Return Spearman's rank correlation of each row (distinct values) with its own order."""
    num_columns = rows.shape[1]
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1, kind="stable")
    centred = np.arange(num_columns) - (num_columns - 1) / 2
    products: npt.NDArray[np.float64] = (ranks @ centred) / (centred @ centred)
    return products


def _ideal_labels(num_samples: int, num_labels: int, window: int) -> float:
    """Return the expected number of distinct labels of ``window`` draws without replacement."""
    per_label = num_samples / num_labels
    draws = np.arange(window)
    missed = float(np.prod(np.maximum(num_samples - per_label - draws, 0) / (num_samples - draws)))
    return num_labels * (1 - missed)
