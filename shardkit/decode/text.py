"""Text and numbers: bytes to str, int and JSON values."""

from __future__ import annotations

import json
from typing import Any

from shardkit.decode.source import Data

__all__ = ["decode_int", "decode_json", "decode_jsonl", "decode_text"]


def decode_text(data: Data) -> str:
    """Decode UTF-8, with or without a byte order mark. Newlines stay as they are."""
    return str(data, "utf-8-sig")


def decode_int(data: Data) -> int:
    """Decode a class or id: one decimal integer, blanks around it allowed."""
    return int(str(data, "ascii"))


def decode_json(data: Data) -> Any:
    """Decode one JSON value in UTF-8 (or UTF-16/32, as RFC 4627 had it)."""
    return json.loads(bytes(data))


def decode_jsonl(data: Data) -> list[Any]:
    """Decode one JSON value a line; blank lines are skipped.

    Raises:
        ValueError: a line is not JSON; the message has its number.
    """
    values = []
    for number, line in enumerate(decode_text(data).split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
    return values
