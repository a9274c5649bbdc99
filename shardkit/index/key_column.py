"""Which column is the key: named like one, never null, never repeating in the first rows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import ConfigError
from shardkit.index.columns import is_text_type

__all__ = ["find_key"]

_KEY_NAMES = [
    "__key__",
    "key",
    "id",
    "data_id",
    "sample_id",
    "uid",
    "uuid",
    "guid",
    "index",
    "idx",
    "image_id",
    "video_id",
    "audio_id",
    "clip_id",
    "file_id",
    "media_id",
    "photo_id",
    "item_id",
    "asset_id",
    "doc_id",
    "hash",
    "sha256",
    "md5",
    "name",
    "image_name",
    "video_name",
]
_NO_KEYS = frozenset(
    [
        "class",
        "label",
        "category",
        "user",
        "author",
        "owner",
        "group",
        "parent",
        "type",
        "lang",
        "language",
        "speaker",
        "cluster",
        "split",
        "source",
        "dataset",
        "shard",
    ]
)


def find_key(
    chosen: str | None, head: pa.Table, taken: set[str], schema: pa.Schema, notes: list[str]
) -> str | None:
    """The column chosen, else the best candidate; None: keys are made from the row number."""
    if chosen is not None:
        if chosen not in schema.names:
            raise ConfigError(
                f"key: the index has no column {chosen!r}; it has {', '.join(schema.names)}"
            )
        return chosen
    for name in _key_candidates(schema.names):
        column = head.column(name)
        if name in taken or not _can_be_key(column.type):
            continue
        if column.null_count:
            notes.append(f"{name} is not the key: it is null in some rows")
        elif pc.count_distinct(column).as_py() < len(column):
            notes.append(f"{name} is not the key: it repeats")
        else:
            return name
    return None


def _key_candidates(names: Sequence[str]) -> list[str]:
    lower = {name.lower(): name for name in reversed(names)}
    known = [lower[name] for name in _KEY_NAMES if name in lower]
    others = [
        name
        for name in names
        if name.lower().endswith(("_id", "_key", "_uid", "_uuid"))
        and name.lower().rpartition("_")[0] not in _NO_KEYS
        and name not in known
    ]
    return known + others


def _can_be_key(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype)) or is_text_type(dtype)
