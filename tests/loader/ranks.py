"""What one rank of a distributed test does; a module of its own, so that it starts quickly."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shardkit import DataLoader, Mix, ShardDataset
from shardkit.errors import ConfigError
from shardkit.world import World

GLOBAL_BATCH_SIZE = 12


def train_too_early(environment: dict[str, str], url: str) -> None:
    """Make data sets before the process group, as scripts do that start ranks by themselves."""
    early, told = ShardDataset(url), ShardDataset(url, world=World())
    os.environ.update(environment)
    dist.init_process_group("gloo")
    for data in early, DataLoader(early, 4), DataLoader(Mix([early]), 4):
        with pytest.raises(ConfigError, match=r"of 1, now it is rank \d of 2: make the data"):
            next(iter(data))
    next(iter(told))
    next(iter(ShardDataset(url)))
    dist.destroy_process_group()


def train(
    environment: dict[str, str],
    url: str,
    options: Any,
    limit: int,
    out: str,
    on_error: Any = "raise",
) -> None:
    """Train up to ``limit`` batches from the state in ``out``; write there what came, and where."""
    os.environ.update(environment)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset = ShardDataset(url, decode=None, members=["cls"], on_error=on_error)
    assert (dataset.world.rank, dataset.world.world_size) == (rank, world_size)
    state = f"{out}/state.pt"
    batches: list[list[str]] = []
    with DataLoader(dataset, global_batch_size=GLOBAL_BATCH_SIZE, **options) as loader:
        if os.path.exists(state):
            loader.load_state_dict(torch.load(state, weights_only=True))
        for number, batch in enumerate(loader):
            total = torch.ones(1)
            dist.all_reduce(total)  # hangs if ranks differ in their number of batches
            assert int(total) == world_size
            none = [False] * len(batch["__key__"])
            marks = (batch.get("__pad__", none), batch.get("__replaced__", none))
            keys = zip(batch["__key__"], *marks, strict=True)
            batches.append([key for key, *marked in keys if not any(marked)])
            with open(f"{out}/rank-{rank}.json.part", "w", encoding="ascii") as file:
                json.dump(batches, file)
            os.replace(f"{out}/rank-{rank}.json.part", f"{out}/rank-{rank}.json")
            dist.barrier()
            if rank == 0:
                torch.save(loader.state_dict(), f"{state}.part")
                os.replace(f"{state}.part", state)
            dist.barrier()
            if number + 1 == limit:
                break
    dist.barrier()
    dist.destroy_process_group()
