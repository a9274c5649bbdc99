"""Arguments that several commands share, each with one meaning."""

from __future__ import annotations

import argparse
import json
from typing import Any

from shardkit.errors import ConfigError
from shardkit.index.names import MEDIA_TYPES

__all__ = [
    "add_folder_arguments",
    "add_index_arguments",
    "add_storage_arguments",
    "folder_arguments",
    "index_arguments",
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
