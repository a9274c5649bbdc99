"""``shardkit bench OUT``: how fast a dataset streams here, what holds it up, how it shuffles."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from shardkit.cli.arguments import (
    add_members_argument,
    add_storage_arguments,
    members_of,
    storage_options,
)
from shardkit.cli.echo import echo
from shardkit.dataset import SampleDataset, ShardDataset
from shardkit.errors import ConfigError
from shardkit.loader import DataLoader
from shardkit.order.quality import WINDOW, Quality, measure_quality

__all__ = ["add_arguments", "run"]

_LONGEST_STRETCH = 1_000_000
"""Positions measured at a time: enough for three digits, and a second of work."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="OUT", help="folder or URL of a packed dataset")
    parser.add_argument(
        "--shuffle",
        choices=("none", "shard", "buffer", "global"),
        default="buffer",
        help="the order to stream and to measure (default: %(default)s)",
    )
    parser.add_argument("--buffer-size", type=int, metavar="SAMPLES", help="how far buffer mixes")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--num-workers", type=int, help="default: as many as cores")
    parser.add_argument(
        "--workers", choices=("threads", "processes"), default="threads", help="default: threads"
    )
    add_members_argument(parser, "load")
    parser.add_argument(
        "--no-decode", action="store_true", help="stream bytes: what storage alone can do"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each stage (default: %(default)s)"
    )
    parser.add_argument("--cache-dir", help="where far shards are kept")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Time each stage alone, then the loader; measure the order."""
    if not 0 < args.seconds < math.inf:
        raise ConfigError(f"--seconds {args.seconds} must be more than 0, and have an end")
    rates = {"order": _order_rate(_dataset(args, decode=None), args.seconds / 5)}
    rates["read"] = _rate(_dataset(args, decode=None), args.seconds)
    if not args.no_decode:
        rates["read, decode"] = _rate(_dataset(args, decode="auto"), args.seconds)
    loader = DataLoader(
        _dataset(args, decode=None if args.no_decode else "auto"),
        args.batch_size,
        num_workers=args.num_workers,
        workers=args.workers,
    )
    with loader:
        batches = _epochs(loader)
        next(batches, None)  # workers have started
        began = time.perf_counter()
        num_samples = sum(_count(batch) for batch in _for_seconds(batches, args.seconds))
        spent = time.perf_counter() - began
        stats = loader.stats()
    made_by = f"{loader.num_workers} {args.workers}"
    rates[f"loader, batches of {args.batch_size}, {made_by}"] = num_samples / max(spent, 1e-9)
    echo("samples a second")
    for name, rate in rates.items():
        echo(f"  {name:<44} {rate:>14,.0f}")
    stages = {name: stats[f"{name}_s"] for name in ("fetch", "decode", "transform", "collate")}
    total = sum(map(float, stages.values())) or 1.0
    shares = ", ".join(f"{name} {float(value) / total:.0%}" for name, value in stages.items())
    echo(f"time of the workers: {shares}")
    echo(f"bottleneck: {stats['bottleneck']} ({stats['advice']})")
    _tell_quality(loader.dataset)  # type: ignore[arg-type]
    return 0


def _dataset(args: argparse.Namespace, decode: Any) -> SampleDataset:
    options = {} if args.cache_dir is None else {"cache_dir": args.cache_dir}
    return ShardDataset(
        args.dataset,
        shuffle=args.shuffle,
        buffer_size=args.buffer_size,
        members=members_of(args),
        decode=decode,
        storage_options=storage_options(args),
        **options,
    )


def _order_rate(dataset: SampleDataset, seconds: float) -> float:
    """Positions that become places a second."""
    order, locate = dataset.order(0), dataset.stream.selection.locate
    block = min(order.block_size, dataset.num_samples)
    done, start, began = 0, 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not done:
        locate(order.at(np.arange(start, start + block)))
        done += block
        start = (start + block) % max(1, dataset.num_samples - block + 1)
    return done / spent


def _rate(dataset: SampleDataset, seconds: float) -> float:
    """Samples a second of one thread, the opening of the first shard left out."""
    samples = _epochs(dataset)
    next(samples, None)
    began = time.perf_counter()
    count = sum(1 for _ in _for_seconds(samples, seconds))
    return count / max(time.perf_counter() - began, 1e-9)


def _epochs(things: Iterable[Any]) -> Iterator[Any]:
    """One epoch after the other: a small data set has to last for the seconds too."""
    some = True
    while some:
        some = False
        for thing in things:
            some = True
            yield thing


def _for_seconds(things: Iterable[Any], seconds: float) -> Iterable[Any]:
    until = time.perf_counter() + seconds
    for thing in things:
        yield thing
        if time.perf_counter() >= until:
            return


def _count(batch: dict[str, Any]) -> int:
    return len(batch["__key__"])


def _tell_quality(dataset: SampleDataset) -> None:
    """The order of epoch 0 beside an ideal permutation, at its start, middle and end."""
    num_samples = dataset.num_samples
    if num_samples < WINDOW:
        echo(f"shuffle quality: {num_samples} samples are too few to measure")
        return
    order = dataset.order(0)
    length = min(num_samples, max(dataset.options.buffer_size, WINDOW), _LONGEST_STRETCH)
    starts = {"start": 0, "middle": (num_samples - length) // 2, "end": num_samples - length}
    echo(
        f"shuffle {dataset.options.shuffle!r} beside an ideal permutation, were the samples sorted "
        "by 1,000 labels"
    )
    echo(f"  {'':<8} {'rank corr.':>10} {'distance':>10} {'label run':>10} {'labels':>10}")
    for name, start in starts.items():
        found = measure_quality(order.at(np.arange(start, start + length)), num_samples)
        echo(f"  {name:<8} {_row(found)}")
    echo("  ideal           0.000      1.000      1.000      1.000")


def _row(quality: Quality) -> str:
    figures = (
        quality.rank_correlation,
        quality.neighbour_distance,
        quality.label_run,
        quality.labels_per_window,
    )
    return " ".join(f"{figure:>10.3f}" for figure in figures)
