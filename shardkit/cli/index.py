"""``shardkit index SRC OUT.parquet``: any source, written down as one index."""

from __future__ import annotations

import argparse

from shardkit.cli.arguments import (
    add_index_arguments,
    add_storage_arguments,
    index_arguments,
    storage_options,
)
from shardkit.cli.echo import echo
from shardkit.cli.progress import progress_bar
from shardkit.executors import LocalExecutor
from shardkit.index import open_index, write_index
from shardkit.index.names import MEDIA_TYPES
from shardkit.storage.store import open_store

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SRC", help="index file, wildcard, list, folder or tars")
    parser.add_argument(
        "out", metavar="OUT", nargs="?", help=".parquet file to write; without it, say what SRC is"
    )
    add_index_arguments(parser)
    folders = parser.add_argument_group("folders of files")
    folders.add_argument(
        "--data-type", choices=tuple(MEDIA_TYPES), help="keep samples that have such a file"
    )
    folders.add_argument(
        "--folder-as", metavar="COLUMN", help="keep the name of a sample's folder: its class"
    )
    parser.add_argument("--scratch", metavar="DIR", help="where scans and conversions are kept")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Open, say what was found, check the keys, write."""
    store = open_store(storage_options(args))
    executor = LocalExecutor(args.workers)
    index = open_index(
        args.source,
        store=store,
        scratch=args.scratch,
        data_type=args.data_type,
        folder_as=args.folder_as,
        executor=executor if executor.num_workers > 1 else None,
        **index_arguments(args),
    )
    echo(index.describe())
    if args.out is None:
        return 0
    index.check_keys()
    done = 0
    with progress_bar(index.num_rows, "writing", quiet=args.quiet) as report:

        def on_rows(total: int) -> None:
            nonlocal done
            report(total - done, 0)
            done = total

        write_index(index, args.out, store=store, on_rows=on_rows)
    echo(f"{index.num_rows:,} rows written to {args.out}")
    return 0
