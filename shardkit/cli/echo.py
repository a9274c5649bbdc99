"""The one seam through which commands speak: lines to stdout, errors to stderr."""

from __future__ import annotations

import sys

__all__ = ["counted", "echo", "echo_bytes", "echo_error"]


def echo(text: str = "") -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def echo_bytes(data: bytes) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def echo_error(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def counted(number: int, noun: str) -> str:
    """``1 shard``, ``2,000 shards``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
