"""``shardkit index SRC [OUT]``: write an index down, or adopt tars that exist."""

from __future__ import annotations

import argparse

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
from shardkit.errors import ConfigError
from shardkit.executors import LocalExecutor
from shardkit.format.sizes import show_size
from shardkit.index import (
    AdoptOptions,
    AdoptSummary,
    MetadataChoice,
    adopt,
    open_index,
    write_index,
)
from shardkit.index.places import is_adopted
from shardkit.index.sources import identify
from shardkit.storage.protocol import Store
from shardkit.storage.store import open_store

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SRC", help="index file, wildcard, list, folder or tars")
    parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        help=".parquet file to write; of tars: the folder for sidecars and manifest (default: "
        "theirs). Without it, say what another SRC is",
    )
    add_index_arguments(parser)
    add_folder_arguments(parser)
    tars = parser.add_argument_group("tars that are adopted")
    tars.add_argument(
        "--metadata-from",
        metavar="EXT",
        help="make columns of the fields of this JSON member (json), or of the tables beside the "
        "tars (parquet); --meta names the columns to keep",
    )
    tars.add_argument(
        "--read",
        choices=("auto", "headers", "whole"),
        default="auto",
        help="whole tars give checksums, headers alone are quicker where members are large "
        "(default: whole where headers lie close)",
    )
    tars.add_argument("--dry-run", action="store_true", help="say what SRC is, and stop")
    parser.add_argument("--scratch", metavar="DIR", help="where scans and conversions are kept")
    add_executor_arguments(
        parser, "of tars that are adopted; the last one to end publishes, or a run without --part"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Adopt tars; of any other source say what was found, check the keys, write."""
    store = open_store(storage_options(args))
    writes_table = args.out is not None and args.out.lower().endswith((".parquet", ".pq"))
    if not writes_table and not args.dry_run and _is_tars(args, store):
        return _adopt(args, store)
    if not part_of(args).is_whole:
        raise ConfigError("--part is for tars that are adopted; this SRC is written down in one go")
    executor = executor_of(args)
    alone = isinstance(executor, LocalExecutor) and executor.num_workers == 1
    index = open_index(
        args.source,
        store=store,
        scratch=args.scratch,
        executor=None if alone else executor,
        **index_arguments(args),
        **folder_arguments(args),
    )
    echo(index.describe())
    if args.out is None or args.dry_run:
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


def _is_tars(args: argparse.Namespace, store: Store) -> bool:
    """Whether the source is tars, adopted before or not."""
    found = identify(store, args.source)
    return found.kind == "tars" or (found.kind == "packed" and is_adopted(found.root, store))


def _adopt(args: argparse.Namespace, store: Store) -> int:
    chosen = index_arguments(args) | folder_arguments(args)
    strangers = [name for name, value in chosen.items() if value is not None and name != "metadata"]
    if strangers:
        raise ConfigError(
            f"{', '.join(strangers)}: tars are adopted as they are; choose when you read them "
            "(where=, members=), or write an index down (let OUT end in .parquet)"
        )
    if args.meta is not None and args.metadata_from is None:
        raise ConfigError("--meta chooses among the columns of --metadata-from; give that too")
    part = part_of(args)
    source = args.metadata_from and args.metadata_from.lower().lstrip(".")
    columns = None if args.meta is None else tuple(args.meta)
    with progress_bar(None, "adopting", quiet=args.quiet) as report:
        summary = adopt(
            args.source,
            args.out,
            store=store,
            executor=executor_of(args),
            part=(part.index, part.count),
            options=AdoptOptions(args.read, MetadataChoice(source, columns)),
            scratch=args.scratch,
            report=report,
        )
    for line in _closing(summary):
        echo(line)
    return 0


def _closing(summary: AdoptSummary) -> list[str]:
    what = f"{counted(summary.num_samples, 'sample')} in {counted(summary.num_shards, 'tar')}"
    lines = [
        f"{what}, {show_size(summary.num_bytes)}, adopted in {summary.seconds:,.1f} s",
        f"{summary.num_proved:,} of the tars were read whole: their members have checksums",
    ]
    if summary.num_resumed:
        lines.append(f"{summary.num_resumed:,} tars were done by an earlier run")
    if summary.num_without_metadata:
        lines.append(f"{summary.num_without_metadata:,} samples have no metadata that can be read")
    if summary.without_end:
        lines.append(
            f"{len(summary.without_end):,} tars have no end marker, and may have been cut between "
            f"members: {summary.without_end[0]}"
        )
    if summary.num_missing:
        lines.append(
            f"{counted(summary.num_missing, 'tar')} of other parts are missing: the last part to "
            "end publishes the dataset; if one was lost, run it again, or without --part"
        )
        return lines
    if summary.repeated is not None:
        lines.append(f"{summary.repeated} (reading does not mind; cat and exclude= do)")
    lines.append(f"fingerprint  {summary.fingerprint}")
    lines.append(f"shardkit     ShardDataset({summary.url!r})")
    return lines
