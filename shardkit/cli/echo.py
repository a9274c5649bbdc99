"""The one seam through which commands speak: lines to stdout, errors to stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from shardkit.errors import StoreError

__all__ = ["counted", "echo", "echo_bytes", "echo_error"]


def echo(text: str = "") -> None:
    """Write a line to standard output."""
    with _written():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def echo_bytes(data: bytes) -> None:
    """Write bytes to standard output as they are."""
    with _written():
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def echo_error(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Name what is wrong with standard output; a reader that has enough is for ``main``."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write to standard output: {error.strerror}") from error


def counted(number: int, noun: str) -> str:
    """``1 shard``, ``2,000 shards``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
