"""Rows → shards: plan, write, publish; and the proof that what was written is right.

``pack``      any source of an index into WebDataset shards, continuing where a run was stopped
``reshard``   shards anywhere into new ones: another order, other sizes, a selection, parts
``verify``    every byte of a packed dataset, or of lone tars
The rest are the pieces that the command line puts together.
"""

from shardkit.executors import Executor, LocalExecutor, RayExecutor
from shardkit.pack.api import open_for_pack, pack, verify
from shardkit.pack.plan import PackOptions
from shardkit.pack.reshard_api import open_reshard, reshard
from shardkit.pack.reshard_run import Reshard, ReshardSummary
from shardkit.pack.run import PackSummary, pack_index
from shardkit.pack.verify import VerifyReport, repair_shards

__all__ = [
    "Executor",
    "LocalExecutor",
    "PackOptions",
    "PackSummary",
    "RayExecutor",
    "Reshard",
    "ReshardSummary",
    "VerifyReport",
    "open_for_pack",
    "open_reshard",
    "pack",
    "pack_index",
    "repair_shards",
    "reshard",
    "verify",
]
