"""``shardkit cache ls|check|clear [DIR]``: look into a cache folder, prove it sound, empty it."""

from __future__ import annotations

import argparse
import os
import time

from shardkit.cli.echo import counted, echo
from shardkit.errors import ConfigError
from shardkit.format.sizes import show_size
from shardkit.storage.cache import Cache
from shardkit.storage.folder import Folder

__all__ = ["add_arguments", "run"]

DEFAULT_DIR = "~/.cache/shardkit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "action",
        choices=("ls", "check", "clear"),
        help="ls: entries, least recently used first; check: compare ledger and disk, exit 1 if "
        "they differ; clear: delete what nobody has open",
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", default=DEFAULT_DIR, help="default: %(default)s"
    )
    parser.add_argument(
        "--repair", action="store_true", help="with check: make ledger and disk agree"
    )


def run(args: argparse.Namespace) -> int:
    """Do one of the three; safe while others use the cache."""
    folder = os.path.abspath(os.path.expanduser(args.folder))
    if not os.path.isdir(Folder(folder).root):
        raise ConfigError(f"{folder} holds no cache; name the cache_dir of your datasets")
    with Cache(folder) as cache:
        if args.action == "ls":
            return _list(cache)
        if args.action == "check":
            return _check(cache, repair=args.repair)
        echo(f"{show_size(cache.clear())} deleted")
        return 0


def _list(cache: Cache) -> int:
    entries = sorted(cache.entries(), key=lambda entry: entry.last_used)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.last_used))
        echo(f"{show_size(entry.size):>8}  {used}  {entry.key.replace(chr(10), ' ')}")
    total = sum(entry.size for entry in entries)
    echo(f"{len(entries):,} entries, {show_size(total)}, in {cache.folder}")
    return 0


def _check(cache: Cache, *, repair: bool) -> int:
    found = cache.repair() if repair else cache.check()
    for problem in found:
        echo(problem)
    if not found:
        echo(f"{cache.folder}: sound")
        return 0
    echo(counted(len(found), "problem") + (", repaired" if repair else "; --repair mends them"))
    return 0 if repair else 1
