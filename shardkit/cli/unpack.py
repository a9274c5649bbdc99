"""``shardkit unpack SRC DST``: download what an index lists."""

from __future__ import annotations

import argparse

from shardkit.cli.arguments import (
    add_folder_arguments,
    add_storage_arguments,
    folder_arguments,
    storage_options,
)
from shardkit.cli.echo import echo, echo_error
from shardkit.cli.progress import progress_bar
from shardkit.cli.unpacking import unpack
from shardkit.format.sizes import show_size
from shardkit.index.open import open_index
from shardkit.storage.store import open_store

__all__ = ["add_arguments", "run"]

_NAMED = 20  # failures that are worth a line each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SRC", help="index file, wildcard, list, folder, shards")
    parser.add_argument("out", metavar="DST", help="local folder for the files")
    columns = parser.add_argument_group("columns of the index (found by themselves if not named)")
    columns.add_argument("--columns", metavar="COLUMN", nargs="+", help="columns that hold files")
    columns.add_argument("--index-col", metavar="COLUMN", help="the column that names samples")
    columns.add_argument("--where", metavar="SQL", help="the rows for which this SQL is true")
    add_folder_arguments(parser)
    running = parser.add_argument_group("running")
    running.add_argument("--workers", type=int, default=32, metavar="N", help="downloads at once")
    running.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="end at a file that can't be had (the default), or go on and list it",
    )
    running.add_argument("--quiet", action="store_true", help="no progress bar")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Download; say how much came, and what did not."""
    store = open_store(storage_options(args))
    index = open_index(
        args.source,
        key=args.index_col,
        files=args.columns,
        where=args.where,
        store=store,
        **folder_arguments(args),
    )
    with progress_bar(index.num_rows, "unpacking", quiet=args.quiet) as report:
        done = unpack(
            index,
            store,
            args.out,
            num_threads=args.workers,
            on_error=args.on_error,
            report=report,
        )
    for failure in done.failures[:_NAMED]:
        echo_error(f"left out: {failure}")
    kept = f", {done.num_kept:,} were there" if done.num_kept else ""
    failed = f", {len(done.failures):,} failed" if done.failures else ""
    echo(f"{done.num_files:,} files, {show_size(done.num_bytes)}, in {args.out}{kept}{failed}")
    return 1 if done.failures else 0
