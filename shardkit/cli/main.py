"""``shardkit COMMAND …``: finds the command's module and hands over.

Exit status: 0 right, 1 the data is wrong (or the work failed on it), 2 it could not run.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from shardkit import __version__
from shardkit.cli.echo import echo_error
from shardkit.errors import CorruptError, ShardkitError

__all__ = ["main"]

COMMANDS = {
    "pack": "pack the samples of any index into WebDataset shards",
    "unpack": "download the files that an index lists",
    "index": "write an index down, or adopt tars that exist",
    "info": "what a packed dataset or an index holds",
    "cat": "one sample, or one of its members",
    "verify": "prove every byte of a packed dataset, or make bad shards again",
    "reshard": "write shards anew: another order, other sizes, a selection, named parts",
    "cache": "list, check or clear a cache folder",
    "state": "explain a saved state",
    "bench": "how fast a dataset streams, what holds it up, how well it shuffles",
    "demo": "make a small data set, pack it, verify it, train on it",
}
"""Commands and the line of help for each; command NAME lives in ``shardkit.cli.NAME``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # also while modules are imported
        echo_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has enough
        sys.stderr.close()
        return 0


def _run(arguments: Sequence[str]) -> int:
    args = _parser(arguments).parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        status: int = args.run(args)
    except ShardkitError as error:
        if args.verbose:
            raise
        echo_error(f"error: {error}")
        return 1 if isinstance(error, CorruptError) else 2
    return status


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the chosen command's module is imported, so that ``--help`` is quick."""
    parser = argparse.ArgumentParser(
        prog="shardkit",
        description="Training data from files to GPUs: pack, verify, stream, reshard.",
        epilog="`shardkit COMMAND --help` tells the rest.",
    )
    parser.add_argument("--version", action="version", version=f"shardkit {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what happens, show tracebacks")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f"shardkit.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
