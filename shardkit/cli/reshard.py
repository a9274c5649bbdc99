"""``shardkit reshard SRC OUT``: shards anywhere → new shards: another order, size, selection."""

from __future__ import annotations

import argparse

from shardkit.cli.arguments import (
    add_executor_arguments,
    add_members_argument,
    add_storage_arguments,
    executor_of,
    members_of,
    part_of,
    storage_options,
)
from shardkit.cli.echo import counted, echo
from shardkit.cli.progress import progress_bar
from shardkit.errors import ConfigError
from shardkit.format.sizes import show_size
from shardkit.pack import PackOptions, Reshard, ReshardSummary, open_reshard
from shardkit.pack.plan import DEFAULT_SHARD_SIZE
from shardkit.storage.store import open_store

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SRC", help="packed or adopted dataset, or tars")
    parser.add_argument("out", metavar="OUT", help="folder for the shards, local or a URL")
    shards = parser.add_argument_group("shards")
    shards.add_argument(
        "--shuffle",
        default="global",
        choices=("none", "global"),
        help="every sample anywhere (the default), or the order of the source",
    )
    shards.add_argument(
        "--seed", type=int, default=0, help="of the order, of parts and of samples (default: 0)"
    )
    shards.add_argument(
        "--shard-size",
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help="such as 512mb or 1gib (default: %(default)s)",
    )
    shards.add_argument(
        "--samples-per-shard", type=int, metavar="N", help="in place of a size in bytes"
    )
    shards.add_argument(
        "--metadata-member",
        default="auto",
        metavar="EXT",
        help="ext of the metadata inside the tars: auto (as in the source), none, or any other",
    )
    samples = parser.add_argument_group("samples")
    samples.add_argument("--where", metavar="SQL", help="take the samples for which this is true")
    samples.add_argument(
        "--exclude", metavar="FILE", help="leave out the keys in this file or URL, one a line"
    )
    samples.add_argument(
        "--max-samples", type=int, metavar="N", help="take so many of them, chosen by the seed"
    )
    add_members_argument(samples, "keep")
    parts = parser.add_argument_group("named parts, each a dataset of its own in OUT/NAME")
    parts.add_argument(
        "--parts", metavar="NAME=F,…", help="by fractions that sum to 1: train=0.9,val=0.1"
    )
    parts.add_argument(
        "--parts-by",
        default="key",
        choices=("key", "count"),
        help="key: the hash of a sample's key decides, whatever else is there (the default); "
        "count: sizes are exact",
    )
    parts.add_argument("--part-column", metavar="COLUMN", help="by the values of this column")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--way",
        default="auto",
        choices=("auto", "ranges", "spill"),
        help="gather each shard's samples by ranges, or spill every source shard once; the bytes "
        "are the same (default: what --dry-run finds cheaper)",
    )
    running.add_argument(
        "--scratch",
        metavar="DIR",
        help="where spill files lie, and what is made of the index (default: OUT, if it is local)",
    )
    running.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    running.add_argument("--quiet", action="store_true", help="no progress bar")
    add_executor_arguments(
        parser, "the last one to end publishes the datasets, or a run without --part does"
    )
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Reshard; say what will be done before and what was done after."""
    executor, part = executor_of(args), part_of(args)
    job = open_reshard(
        args.source,
        args.out,
        options=PackOptions(
            shard_size=args.shard_size,
            samples_per_shard=args.samples_per_shard,
            shuffle=args.shuffle,
            seed=args.seed,
            metadata_member=args.metadata_member,
        ),
        where=args.where,
        exclude=_keys(args),
        max_samples=args.max_samples,
        members=members_of(args),
        parts=_fractions(args.parts),
        parts_by=args.parts_by,
        part_column=args.part_column,
        scratch=args.scratch,
        storage_options=storage_options(args),
    )
    if args.dry_run:
        echo(_plan(job))
        return 0
    what = "resharding" if part.is_whole else f"resharding part {part}"
    with progress_bar(job.num_samples // part.count, what, quiet=args.quiet) as report:
        summary = job.run(executor=executor, way=args.way, part=part, report=report)
    echo(_closing(summary))
    return 0


def _keys(args: argparse.Namespace) -> list[str]:
    if args.exclude is None:
        return []
    data = open_store(storage_options(args)).get(args.exclude)
    try:
        return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"--exclude {args.exclude}: it is no UTF-8 text of keys") from error


def _fractions(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    found: dict[str, float] = {}
    for item in text.split(","):
        name, sign, fraction = item.partition("=")
        try:
            value = float(fraction)
        except ValueError:
            sign = ""
        if not sign or name in found:
            raise ConfigError(f"--parts {text!r}: write each part once, as in train=0.9,val=0.1")
        found[name] = value
    return found


def _plan(job: Reshard) -> str:
    lines = [f"{job.num_samples:,} of {int(job.source.counts.sum()):,} samples in {job.source.url}"]
    lines.append(f"members  {', '.join(job.exts)}")
    for target, plan in zip(job.targets, job.plans, strict=True):
        what = f"{counted(plan.num_rows, 'sample')} in {counted(plan.num_shards, 'shard')}"
        lines.append(f"{target.output.url}: {what}")
    for number, cost in enumerate(job.costs()):
        lines.append(f"{'→' if number == 0 else ' '} {cost.describe()}")
    return "\n".join(lines)


def _closing(summary: ReshardSummary) -> str:
    seconds = max(summary.seconds, 1e-9)
    rates = f"{summary.num_samples / seconds:,.0f} samples/s, "
    rates += f"{show_size(summary.num_bytes / seconds)}/s"
    what = f"{counted(summary.num_samples, 'sample')} in {counted(summary.num_shards, 'shard')}"
    lines = [f"{what}, {show_size(summary.num_bytes)}, in {summary.seconds:,.1f} s ({rates})"]
    if summary.way is not None:
        lines.append(f"moved by {summary.way}")
    if summary.num_resumed:
        lines.append(f"{summary.num_resumed:,} shards were there from an earlier run")
    if summary.num_missing:
        lines.append(
            f"{summary.num_missing:,} shards of other parts are missing: the last part to end "
            "publishes the datasets; if one was lost, run it again, or without --part"
        )
        return "\n".join(lines)
    for dataset in summary.datasets.values():
        lines.append(f"fingerprint  {dataset.fingerprint}")
        lines.append(f"shardkit     ShardDataset({dataset.url!r})")
        lines.append(f"webdataset   {dataset.brace_url}")
    return "\n".join(lines)
