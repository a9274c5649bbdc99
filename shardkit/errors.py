"""Every error that shardkit raises, by what the caller does about it.

Each leaf also is the builtin that people already catch, so ``except FileNotFoundError`` works
on a missing object of a bucket just as on a missing file.
"""

from __future__ import annotations

__all__ = [
    "CacheError",
    "ConfigError",
    "CorruptError",
    "DecodeError",
    "IndexDataError",
    "MissingDependencyError",
    "NotFoundError",
    "ShardkitError",
    "StateError",
    "StoreError",
    "TransientError",
]


class ShardkitError(Exception):
    """Base of all errors that shardkit raises on purpose."""


class ConfigError(ShardkitError, ValueError):
    """An argument or option is wrong: change the call."""


class IndexDataError(ShardkitError, ValueError):
    """An index holds something that can't be packed or streamed: mend the index."""


class StoreError(ShardkitError, OSError):
    """Bytes could not be read or written, for good: look at the URL, the rights, the disk."""


class NotFoundError(StoreError, FileNotFoundError):
    """There is no such object: never retried."""


class TransientError(StoreError, ConnectionError):
    """The network or the far end failed past all retries: try again later. Never skipped."""


class CorruptError(ShardkitError, ValueError):
    """Bytes are not what their checksum or offsets say: verify, then repair or fetch again."""


class CacheError(StoreError):
    """The cache cannot do what was asked (limit too small, disk full, network filesystem)."""


class DecodeError(ShardkitError, ValueError):
    """A member's bytes cannot be decoded; the message names dataset, shard, key and ext."""


class StateError(ShardkitError, ValueError):
    """A saved state cannot be honoured by this dataset or these options."""


class MissingDependencyError(ShardkitError, ImportError):
    """An optional library is not installed; the message says which extra has it."""
