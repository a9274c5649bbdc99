"""Sizes as people write them: ``"256mb"``, ``"10gb"``, ``4096``."""

from __future__ import annotations

import re

from shardkit.errors import ConfigError

__all__ = ["parse_size", "show_size"]

_UNITS = ("b", "kb", "mb", "gb", "tb", "pb")
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?\s*", re.IGNORECASE)


def parse_size(size: int | str, what: str = "size") -> int:
    """Bytes of a size; units are powers of 1024, as in the loaders that people come from.

    Raises:
        ConfigError: the text is no size, or the size is not positive; ``what`` names the argument.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        num_bytes = size
    else:
        match = _PATTERN.fullmatch(str(size))
        if match is None:
            raise ConfigError(f"{what}={size!r} is no size; write it like '256mb' or '10gb'")
        unit = _UNITS.index(f"{match[2].lower()}b") if match[2] else 0
        num_bytes = int(float(match[1]) * 1024**unit)
    if num_bytes <= 0:
        raise ConfigError(f"{what}={size!r} must be more than zero bytes")
    return num_bytes


def show_size(num_bytes: float) -> str:
    """A size for people: three digits and a unit."""
    power = 0
    while abs(num_bytes) >= 1000 and power < len(_UNITS) - 1:
        num_bytes /= 1024
        power += 1
    digits = 0 if power == 0 or num_bytes >= 100 else 1 if num_bytes >= 10 else 2
    return f"{num_bytes:.{digits}f} {_UNITS[power].upper()}"
