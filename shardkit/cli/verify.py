"""``shardkit verify OUT``: every byte of a packed dataset, or of lone tars.

Exit status: 0 right (or repaired), 1 wrong data, 2 could not run.
"""

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
from shardkit.cli.echo import counted, echo, echo_error
from shardkit.cli.progress import progress_bar
from shardkit.errors import ConfigError
from shardkit.format.sizes import show_size
from shardkit.pack import VerifyReport, open_for_pack, repair_shards, verify

__all__ = ["add_arguments", "run"]

_MOST_LINES = 100  # a shard gone bad can have a problem per sample; the first ones tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "dataset", metavar="OUT", nargs="+", help="a packed dataset, or tars (braces work)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--repair", metavar="INDEX", help="make bad shards again from the index they came from"
    )
    add_executor_arguments(parser, "each part says what is wrong with its shards")
    add_index_arguments(parser)
    add_folder_arguments(parser)
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Verify; say what is wrong with which shard and which key."""
    executor, part, options = executor_of(args), part_of(args), storage_options(args)
    with progress_bar(None, "verifying", quiet=args.quiet) as progress:
        report = verify(
            args.dataset,
            executor=executor,
            part=(part.index, part.count),
            storage_options=options,
            report=progress,
        )
    for problem in report.problems[:_MOST_LINES]:
        echo_error(str(problem))
    if len(report.problems) > _MOST_LINES:
        echo_error(f"… and {len(report.problems) - _MOST_LINES:,} more")
    what = (
        f"{counted(report.num_samples, 'sample')} in {counted(report.num_shards, 'shard')}, "
        f"{show_size(report.num_bytes)}"
    )
    if report.ok:
        echo(f"{report.url}: {_rightness(report)} ({what})")
        return 0
    echo_error(f"{report.url}: {counted(len(report.problems), 'problem')} ({what})")
    if args.repair is None:
        return 1
    if not report.bad_shards or report.is_lone_tars:
        raise ConfigError("there is no shard of a packed dataset to repair; pack anew")
    index, output = open_for_pack(
        args.repair,
        report.url,
        storage_options=options,
        **index_arguments(args),
        **folder_arguments(args),
    )
    repaired = repair_shards(index, output, report.bad_shards, executor)
    echo(f"made again, with the bytes that were packed first: {', '.join(repaired)}")
    return 0


def _rightness(report: VerifyReport) -> str:
    """What has been shown of a dataset with nothing wrong."""
    if not report.num_unproved:
        return "every byte is right"
    return (
        f"nothing is wrong, as far as can be known: {report.num_unproved:,} of "
        f"{report.num_shards:,} tars were adopted by their headers alone, so their members are "
        "where they were and as large, but their bytes have no checksums"
    )
