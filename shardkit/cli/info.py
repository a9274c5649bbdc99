"""``shardkit info SRC``: what a packed dataset or an index holds."""

from __future__ import annotations

import argparse

import numpy as np

from shardkit.cli.arguments import add_storage_arguments, storage_options
from shardkit.cli.echo import counted, echo
from shardkit.format.sizes import show_size
from shardkit.index.open import open_index
from shardkit.index.shards import PackedDataset
from shardkit.index.sources import identify
from shardkit.storage.store import open_store

__all__ = ["add_arguments", "run"]

_LOOKED_AT = 64  # sidecars read for the sizes: a few seconds even from far away
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="SRC", help="a packed dataset, or any index")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Say what there is: counts, sizes, members, metadata."""
    store = open_store(storage_options(args))
    if identify(store, args.dataset).kind != "packed":
        echo(open_index(args.dataset, store=store).describe())
        return 0
    dataset = PackedDataset.open(args.dataset, store)
    manifest, shards = dataset.manifest, dataset.shards
    echo(f"{dataset.url}")
    echo(
        f"{counted(manifest.num_samples, 'sample')} in {counted(manifest.num_shards, 'shard')}, "
        f"{show_size(manifest.num_bytes)}"
    )
    if manifest.num_failed:
        echo(f"{manifest.num_failed:,} rows were skipped when it was packed (failed.parquet)")
    if shards.adopted is not None:
        echo(
            f"adopted: tars in {dataset.places.tars}, {int(shards.adopted.proved.sum()):,} of them "
            "read whole (their members have checksums)"
        )
        if manifest.adopted is not None and not manifest.adopted.unique_keys:
            echo("keys repeat")
    echo(f"fingerprint {manifest.fingerprint}")
    per_shard = ", ".join(f"{np.quantile(shards.samples, q):,.0f}" for q in (0, 0.5, 1))
    echo(f"samples per shard (least, median, most): {per_shard}")
    echo()
    echo("members")
    for line in _member_lines(dataset):
        echo(f"  {line}")
    echo("metadata" if manifest.metadata else "metadata: none")
    for name, kind in manifest.metadata.items():
        echo(f"  {name:<24} {kind}")
    return 0


def _member_lines(dataset: PackedDataset) -> list[str]:
    """One line an ext: how many, and quantiles of their sizes over some of the shards."""
    numbers = np.linspace(0, len(dataset.shards) - 1, min(_LOOKED_AT, len(dataset.shards)))
    looked_at = np.unique(numbers.astype(int)).tolist()
    members = dataset.manifest.members
    layouts = [dataset.layout(shard, exts=tuple(members), metadata=()) for shard in looked_at]
    of = "" if len(looked_at) == len(dataset.shards) else f" (of {len(looked_at)} shards)"
    lines = []
    for ext, count in members.items():
        sizes = np.concatenate(
            [
                (layout.stops[ext] - layout.starts[ext])[layout.starts[ext] >= 0]
                for layout in layouts
                if ext in layout.starts
            ]
            or [np.zeros(0, dtype=np.int64)]
        )
        text = "none in the shards looked at"
        if len(sizes):
            shown = " ".join(show_size(float(np.quantile(sizes, q))) for q in _QUANTILES)
            text = f"size 0 5 50 95 100 %: {shown}{of}"
        mark = " = metadata" if ext == dataset.manifest.metadata_ext else ""
        lines.append(f"{ext:<16} {count:>12,}{mark}   {text}")
    return lines
