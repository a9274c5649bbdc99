"""``shardkit pack SRC OUT``: any index of files → WebDataset shards."""

from __future__ import annotations

import argparse
import contextlib

from shardkit.cli.arguments import (
    add_executor_arguments,
    add_folder_arguments,
    add_index_arguments,
    add_storage_arguments,
    executor_of,
    folder_arguments,
    index_arguments,
    part_of,
    storage_options,
)
from shardkit.cli.echo import counted, echo
from shardkit.cli.progress import progress_bar
from shardkit.format.sizes import show_size
from shardkit.pack import PackSummary, open_for_pack, pack_index
from shardkit.pack.plan import DEFAULT_SHARD_SIZE, PackOptions
from shardkit.pack.write import ShardTask

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SRC", help="index file, wildcard, list, folder or tars")
    parser.add_argument("out", metavar="OUT", help="folder for the shards, local or a URL")
    add_index_arguments(parser)
    add_folder_arguments(parser)
    shards = parser.add_argument_group("shards")
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
        "--shuffle",
        nargs="?",
        const="global",
        default="none",
        choices=("none", "global"),
        help="pack in a random order of all samples",
    )
    shards.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    shards.add_argument(
        "--metadata-member",
        default="auto",
        metavar="EXT",
        help="ext of the metadata inside the tars: auto (json), none, or any other",
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="end at a row that can't be packed (the default), or leave it out and list it",
    )
    running.add_argument("--dry-run", action="store_true", help="stop after the findings")
    running.add_argument("--quiet", action="store_true", help="no progress bar")
    running.add_argument(
        "--scratch", metavar="DIR", help="where conversions of the index and filters are kept"
    )
    add_executor_arguments(
        parser, "the last one to end publishes the dataset, or a run without --part does"
    )
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Pack; say what was found before and what was done after."""
    options = PackOptions(
        shard_size=args.shard_size,
        samples_per_shard=args.samples_per_shard,
        shuffle=args.shuffle,
        seed=args.seed,
        on_error=args.on_error,
        metadata_member=args.metadata_member,
    )
    executor, part = executor_of(args), part_of(args)
    with contextlib.nullcontext() if args.dry_run else executor.ready(ShardTask):
        index, output = open_for_pack(
            args.source,
            args.out,
            scratch=args.scratch,
            storage_options=storage_options(args),
            **index_arguments(args),
            **folder_arguments(args),
        )
        echo(index.describe())
        if args.dry_run:
            return 0
        what = "packing" if part.is_whole else f"packing part {part}"
        with progress_bar(index.num_rows // part.count, what, quiet=args.quiet) as report:
            summary = pack_index(
                index, output, options, executor=executor, part=part, report=report
            )
    echo(_closing(summary))
    return 0


def _closing(summary: PackSummary) -> str:
    seconds = max(summary.seconds, 1e-9)
    rates = ""  # of what was done now, which is not known of a run that went on
    if not summary.num_resumed:
        speed = show_size(summary.num_bytes / seconds)
        rates = f" ({summary.num_samples / seconds:,.0f} samples/s, {speed}/s)"
    what = f"{counted(summary.num_samples, 'sample')} in {counted(summary.num_shards, 'shard')}"
    lines = [f"{what}, {show_size(summary.num_bytes)}, in {summary.seconds:,.1f} s{rates}"]
    if summary.num_resumed:
        were = "was" if summary.num_resumed == 1 else "were"
        lines.append(f"{counted(summary.num_resumed, 'shard')} {were} there from an earlier run")
    if summary.num_missing:
        lines.append(
            f"{summary.num_missing:,} shards of other parts are missing: the last part to end "
            "publishes the dataset; if one was lost, run it again, or without --part"
        )
        return "\n".join(lines)
    if summary.num_failed:
        lines.append(f"{summary.num_failed:,} rows were skipped: see {summary.url}/failed.parquet")
    lines.append(f"fingerprint  {summary.fingerprint}")
    lines.append(f"shardkit     ShardDataset({summary.url!r})")
    lines.append(f"webdataset   {summary.brace_url}")
    return "\n".join(lines)
