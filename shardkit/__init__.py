"""shardkit: training data from files to GPUs.

Pack the samples of any index into plain WebDataset shards, stream shards or raw files into
training, shuffled, exactly once, resumable on any number of ranks. Public names are imported on
first use, so that ``import shardkit`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardkit.dataset import ShardDataset
    from shardkit.loader import DataLoader, Mix, Stream
    from shardkit.pack import reshard
    from shardkit.streaming import StreamingDataset
    from shardkit.world import World

__version__ = "0.1.0"

_HOMES = {
    "DataLoader": "shardkit.loader",
    "Mix": "shardkit.loader",
    "ShardDataset": "shardkit.dataset",
    "StreamingDataset": "shardkit.streaming",
    "Stream": "shardkit.loader",
    "World": "shardkit.world",
    "reshard": "shardkit.pack",
}

__all__ = [
    "DataLoader",
    "Mix",
    "ShardDataset",
    "Stream",
    "StreamingDataset",
    "World",
    "__version__",
    "reshard",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'shardkit' has no attribute {name!r}") from None
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
