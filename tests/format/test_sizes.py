"""Sizes as people write them."""

from __future__ import annotations

import pytest

from shardkit.errors import ConfigError
from shardkit.format.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("256mb", 256 << 20),
        ("10 GB", 10 << 30),
        ("1.5k", 1536),
        ("7", 7),
        (9, 9),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_powers_of_1024(text: str | int, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("size", ["", "x", "-1mb", "1 zb", True, 0, "0gb"])
def test_what_is_no_size_is_refused_by_name(size: object) -> None:
    with pytest.raises(ConfigError, match="shard_size="):
        parse_size(size, "shard_size")  # type: ignore[arg-type]


def test_sizes_are_shown_with_three_digits() -> None:
    assert [show_size(n) for n in (999, 1024, 10 << 20, 256 << 20, 3 << 40)] == [
        "999 B",
        "1.00 KB",
        "10.0 MB",
        "256 MB",
        "3.00 TB",
    ]
