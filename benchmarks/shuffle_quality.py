"""Shuffle quality of every mode on a sorted data set, beside webdataset and MosaicML's py1e.

python benchmarks/shuffle_quality.py [--samples N] [--seeds N] [--plot docs/shuffle_quality.png]

Peers that are not installed are left out. matplotlib (extra "docs") makes the plot.
"""

import argparse
import json
import random
import warnings
from dataclasses import asdict
from functools import partial

import numpy as np

from shardkit.order.epoch import EpochOrder, ShuffleOptions
from shardkit.order.hashing import hash_range
from shardkit.order.quality import measure_stretches

SHARD = 1000
BUFFERS = (1000, 10_000, 100_000)


def ours(num_samples, mode, buffer_size, seed):
    counts = np.full(num_samples // SHARD, SHARD)
    order = EpochOrder(counts, ShuffleOptions(mode, buffer_size, seed))
    return order.at(np.arange(num_samples))


def webdataset(num_samples, buffer_size, seed):
    """Shards shuffled, then shuffle(buffer_size), as its documentation recommends."""
    from webdataset.filters import _shuffle

    rng = random.Random(seed)
    shards = list(range(num_samples // SHARD))
    rng.shuffle(shards)
    stream = (sample for s in shards for sample in range(s * SHARD, (s + 1) * SHARD))
    # initial=buffer_size: kinder to it than its default of 100, which fills while it emits
    return np.fromiter(_shuffle(stream, buffer_size, buffer_size, rng), np.int64, num_samples)


def py1e(num_samples, block_size, seed):
    from streaming.base.shuffle.py1e import get_shuffle_py1e

    sizes = np.full(num_samples // SHARD, SHARD)
    return get_shuffle_py1e(sizes, 1, seed, 0, block_size)


def orders(num_samples):
    """Name, length of the stretches at the ends, and what makes the ids of a seed."""
    yield "ideal", 1000, lambda seed: np.argsort(hash_range(0, num_samples, seed))
    for mode in ("none", "shard", "global"):
        yield mode, 1000, partial(ours, num_samples, mode, 1000)
    for size in BUFFERS:
        yield f"buffer {size}", size, partial(ours, num_samples, "buffer", size)
        yield f"webdataset {size}", size, partial(webdataset, num_samples, size)
        yield f"py1e {size}", size, partial(py1e, num_samples, size)


def plot(results, path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figures = {
        "neighbour_distance": "neighbour distance / ideal",
        "labels_per_window": "labels in 256 samples / ideal",
        "label_run": "label run / ideal",
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 5), sharey=True)
    names = [name for name in results if name != "none"]
    for axis, (field, title) in zip(axes, figures.items(), strict=True):
        for offset, stretch in enumerate(("start", "middle", "end")):
            values = [results[name][stretch][field] for name in names]
            axis.barh(np.arange(len(names)) + (offset - 1) * 0.27, values, 0.27, label=stretch)
        axis.set_title(title)
        axis.axvline(1, color="black", linewidth=0.8)
        if field == "label_run":
            axis.set_xscale("log")
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].invert_yaxis()
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    warnings.simplefilter("ignore")  # py1e's, of blocks no longer than shards
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**6)
    parser.add_argument("--seeds", type=int, default=10, help="epochs to average over")
    parser.add_argument("--plot")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results = {}
    fields = f"{'rank':>9}{'local':>9}{'distance':>10}{'run':>10}{'labels':>8}"
    print(f"{'mean of epochs':28}{fields}")
    for name, length, make in orders(arguments.samples):
        try:
            measured = [
                measure_stretches(make(seed), arguments.samples, length)
                for seed in range(arguments.seeds)
            ]
        except ImportError as error:
            print(f"{name:20} left out: {error}")
            continue
        results[name] = {
            stretch: {
                field: float(np.mean([asdict(one[stretch])[field] for one in measured]))
                for field in asdict(measured[0][stretch])
            }
            for stretch in measured[0]
        }
        for stretch, found in results[name].items():
            rank, local, distance, run, labels = found.values()
            print(
                f"{name:20}{stretch:8}{rank:9.4f}{local:9.4f}{distance:10.5f}{run:10.3f}{labels:8.3f}"
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
