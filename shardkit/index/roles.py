"""What a written index says of its own columns, in the metadata of their Parquet fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from shardkit.errors import CorruptError

__all__ = ["roles_of", "with_role"]

_ROLE = b"shardkit.role"


def with_role(field: pa.Field, role: Mapping[str, Any]) -> pa.Field:
    """Return ``field`` with a role: plain JSON values, ``"role"`` among them."""
    return field.with_metadata({_ROLE: json.dumps(role, sort_keys=True).encode()})


def roles_of(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return role by column; empty for any table that we did not write.

    Raises:
        CorruptError: a role is no JSON object.
    """
    found = {}
    for field in schema:
        raw = (field.metadata or {}).get(_ROLE)
        if raw is None:
            continue
        try:
            found[field.name] = dict(json.loads(raw))
        except (ValueError, TypeError) as error:
            raise CorruptError(
                f"the role of the column {field.name!r} is damaged ({raw[:60]!r}); write the "
                "index again"
            ) from error
    return found
