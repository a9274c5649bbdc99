"""Which entries to evict first: a policy is a list of SQL queries over the ledger, coldest first.

A query gives names in the order in which to let them go; the next one is asked when the first has
no more. ``due`` is set only by consumers that know their order (see ``Request.next_use``) and is
forgotten when the consumer ends, so that nobody's past plans hold space.
"""

from __future__ import annotations

from typing import Literal, get_args

from shardkit.errors import ConfigError

__all__ = ["POLICIES", "Policy", "check_policy"]

Policy = Literal["next-use", "lru"]

_ENTRIES = "SELECT name, size, segment IS NOT NULL FROM entries"
_UNPLANNED = f"{_ENTRIES} WHERE due IS NULL ORDER BY last_used"
_PLANNED = f"{_ENTRIES} WHERE due IS NOT NULL ORDER BY due DESC"
_BY_USE = f"{_ENTRIES} ORDER BY last_used"

POLICIES: dict[str, tuple[str, ...]] = {
    # what nobody plans to use goes first, then what is needed latest (Belady's rule)
    "next-use": (_UNPLANNED, _PLANNED),
    "lru": (_BY_USE,),
}


def check_policy(policy: str) -> None:
    """Raise ``ConfigError`` for a policy that is not in the table."""
    if policy not in get_args(Policy):
        raise ConfigError(f"policy={policy!r}: must be one of {', '.join(sorted(POLICIES))}")
