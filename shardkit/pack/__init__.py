"""Rows → shards: plan, write, publish; and the proof that what was written is right.

``pack``      any source of an index into WebDataset shards, continuing where a run was stopped
``verify``    every byte of a packed dataset, or of lone tars
The rest are the pieces that the command line puts together.
"""

from shardkit.executors import Executor, LocalExecutor, RayExecutor
from shardkit.pack.api import open_for_pack, pack, verify
from shardkit.pack.plan import PackOptions
from shardkit.pack.run import PackSummary, pack_index
from shardkit.pack.verify import VerifyReport, repair_shards

__all__ = [
    "Executor",
    "LocalExecutor",
    "PackOptions",
    "PackSummary",
    "RayExecutor",
    "VerifyReport",
    "open_for_pack",
    "pack",
    "pack_index",
    "repair_shards",
    "verify",
]
