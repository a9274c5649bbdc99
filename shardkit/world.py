"""What this process is: rank, node and worker.

The one reader of torch.distributed, of torchrun's environment and of torch's worker info. It never
initialises anything, and it works without torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from shardkit.errors import ConfigError

__all__ = ["World"]


@dataclass(frozen=True, slots=True)
class World:
    """The place of a process among all processes that share a data set.

    Pass one to a data set to override what was detected: for model-parallel groups that must see
    the same batch (give all of a group the same ``rank``, and the number of groups as
    ``world_size``), in tests, or without torch.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: processes that share each epoch.
        node: machine of this process, 0 to num_nodes - 1.
        num_nodes: machines; ranks should be numbered node by node.
        worker: loader process within the rank, 0 to num_workers - 1.
        num_workers: loader processes of the rank; 1 where the rank loads by itself.
    """

    rank: int = 0
    world_size: int = 1
    node: int = 0
    num_nodes: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Check that each number is in its range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{field.name}={value!r} must be an integer")
        pairs = (("rank", "world_size"), ("node", "num_nodes"), ("worker", "num_workers"))
        for name, total in pairs:
            number, size = getattr(self, name), getattr(self, total)
            if size < 1 or not 0 <= number < size:
                raise ConfigError(
                    f"{name}={number} must be from 0 to {total}-1, and {total}={size} at least 1: "
                    "all count from 0"
                )
        if self.num_nodes > self.world_size:
            raise ConfigError(
                f"num_nodes={self.num_nodes} is more than world_size={self.world_size}: every "
                "node has a rank"
            )

    @classmethod
    def detect(cls) -> World:
        """Read what this process is; a world of one where nothing says otherwise.

        Ranks come from torch.distributed where it is initialised, else from torchrun's RANK and
        WORLD_SIZE. Nodes come from LOCAL_WORLD_SIZE and GROUP_RANK where they are set; one node
        otherwise. Workers come from torch's worker info. torch is only looked at where something
        has imported it already.

        Raises:
            ConfigError: the environment contradicts itself.
        """
        rank, world_size = _process_group() or _environment_ranks(os.environ)
        node, num_nodes = _environment_nodes(os.environ, rank, world_size)
        return cls(rank, world_size, node, num_nodes).in_worker()

    def check(self) -> None:
        """Refuse to go on as what this process was before its process group was made.

        Raises:
            ConfigError: torch.distributed says otherwise: ranks would repeat each other's samples.
        """
        group = _process_group()
        if group is not None and group != (self.rank, self.world_size):
            raise ConfigError(
                f"the data set was made when this process was rank {self.rank} of "
                f"{self.world_size}, now it is rank {group[0]} of {group[1]}: make the data set "
                "after torch.distributed.init_process_group, or give it World(rank=…, world_size=…)"
            )

    def in_worker(self) -> World:
        """Return this world as the present loader worker sees it.

        A spawned worker knows nothing of its rank, so a data set keeps the world that it was made
        in and asks here for ``worker`` and ``num_workers`` when it is iterated.
        """
        info = _worker_info()
        if info is None:
            return self
        return replace(self, worker=int(info.id), num_workers=int(info.num_workers))


def _process_group() -> tuple[int, int] | None:
    """Return rank and world size of torch.distributed's default group, if there is one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def _worker_info() -> Any:
    data = sys.modules.get("torch.utils.data")
    return None if data is None else data.get_worker_info()


def _environment_ranks(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return RANK and WORLD_SIZE as torchrun sets them, (0, 1) where it did not."""
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return 0, 1
    return _integer(environment, "RANK"), _integer(environment, "WORLD_SIZE")


def _environment_nodes(
    environment: Mapping[str, str], rank: int, world_size: int
) -> tuple[int, int]:
    """Return node and number of nodes, from the ranks per node that torchrun tells."""
    if "LOCAL_WORLD_SIZE" not in environment:
        return 0, 1
    local = _integer(environment, "LOCAL_WORLD_SIZE")
    if local < 1 or world_size % local:
        return 0, 1  # nodes of unequal size, or another launcher's variable: lanes can't follow
    num_nodes = world_size // local
    if "GROUP_RANK" in environment:
        node = _integer(environment, "GROUP_RANK")
        if node < num_nodes:
            return node, num_nodes
    return rank // local, num_nodes


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(
            f"the environment has {name}={environment[name]!r}, not an integer: unset it, or pass "
            "World(rank=…, world_size=…)"
        ) from None
