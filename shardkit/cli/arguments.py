"""Arguments that several commands share, each with one meaning."""

from __future__ import annotations

import argparse
import json
from typing import Any

from shardkit.errors import ConfigError
from shardkit.executors import Executor, LocalExecutor, Part, RayExecutor
from shardkit.index.names import MEDIA_TYPES

__all__ = [
    "add_executor_arguments",
    "add_folder_arguments",
    "add_index_arguments",
    "add_members_argument",
    "add_storage_arguments",
    "executor_of",
    "folder_arguments",
    "index_arguments",
    "members_of",
    "part_of",
    "storage_options",
]


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """How the columns of an index are used: findings, overridden."""
    group = parser.add_argument_group("columns of the index (found by themselves if not named)")
    group.add_argument("--key", metavar="COLUMN", help="the column that names samples")
    group.add_argument(
        "--files",
        metavar="COLUMN[=EXT]",
        nargs="+",
        help="columns that hold URLs, paths or bytes of files",
    )
    group.add_argument(
        "--inline",
        metavar="COLUMN=EXT",
        nargs="+",
        help="columns whose values become members, such as caption=txt",
    )
    group.add_argument(
        "--meta", metavar="COLUMN", nargs="*", help="metadata columns to keep (default: all others)"
    )
    group.add_argument("--where", metavar="SQL", help="keep the rows for which this SQL is true")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """How a folder of files is read as an index."""
    group = parser.add_argument_group("folders of files")
    group.add_argument(
        "--data-type", choices=tuple(MEDIA_TYPES), help="keep samples that have such a file"
    )
    group.add_argument(
        "--folder-as", metavar="COLUMN", help="keep the name of a sample's folder: its class"
    )


def folder_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``open_index`` for folders."""
    return {"data_type": args.data_type, "folder_as": args.folder_as}


def index_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``open_index`` that the user gave."""
    return {
        "key": args.key,
        "files": args.files,
        "inline": args.inline,
        "metadata": args.meta,
        "where": args.where,
    }


def add_executor_arguments(parser: argparse.ArgumentParser, closing: str | None = None) -> None:
    """Who does the work; ``executor_of`` makes it.

    With ``closing``, what ends a work of several parts, also which part it is; see ``part_of``.
    """
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: cores); on Ray, tasks at a time (default: what has room)",
    )
    group.add_argument("--executor", choices=("local", "ray"), default="local")
    group.add_argument(
        "--ray-address",
        metavar="ADDR",
        help="of a running Ray cluster (default: RAY_ADDRESS, one on this machine, or a new one)",
    )
    group.add_argument(
        "--cpus-per-worker", type=float, metavar="C", help="that Ray reserves for each (default: 1)"
    )
    if closing is not None:
        group.add_argument(
            "--part",
            default="0/1",
            metavar="I/N",
            help=f"do part I of N only, counted from 0, as an array job does; {closing}",
        )


def executor_of(args: argparse.Namespace) -> Executor:
    """The executor that the arguments name.

    Raises:
        ConfigError: an argument of another executor was given.
    """
    if args.executor == "ray":
        return RayExecutor(
            args.ray_address,
            num_workers=args.workers,
            cpus_per_worker=1.0 if args.cpus_per_worker is None else args.cpus_per_worker,
        )
    for name in ("ray_address", "cpus_per_worker"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is Ray's: say --executor ray too")
    return LocalExecutor(args.workers)


def part_of(args: argparse.Namespace) -> Part:
    """The part that the arguments name.

    Raises:
        ConfigError: there is no such part.
    """
    return Part.parse(args.part)


def add_members_argument(group: argparse._ActionsContainer, does: str) -> None:
    """Which members of samples; ``members_of`` reads them."""
    group.add_argument(
        "--members",
        metavar="EXT",
        nargs="+",
        help=f"members to {does}, such as jpg json; default all",
    )


def members_of(args: argparse.Namespace) -> list[str] | None:
    """The exts that the arguments name, between blanks or commas; None for all."""
    if args.members is None:
        return None
    return [ext for item in args.members for ext in item.split(",") if ext]


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """How far storage is reached."""
    parser.add_argument(
        "--storage-options",
        metavar="JSON",
        help='options of the store, such as \'{"endpoint_url": "…", "anon": true}\'',
    )


def storage_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """The options as a mapping.

    Raises:
        ConfigError: they are no JSON object.
    """
    if args.storage_options is None:
        return None
    try:
        options = json.loads(args.storage_options)
    except ValueError as error:
        raise ConfigError(f"--storage-options is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"--storage-options must be a JSON object, not {options!r}")
    return options
