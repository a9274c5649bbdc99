"""What a process is, from torch.distributed, torchrun's environment and torch's workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from shardkit.errors import ConfigError
from shardkit.world import World

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(environment: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        environment.setenv(name, str(value))


def run(code: str, **values: object) -> Any:
    """Run code in a fresh process; return what it prints, as JSON."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    clean |= {name: str(value) for name, value in values.items()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_alone_a_process_is_a_world_of_one(environment: pytest.MonkeyPatch) -> None:
    assert World.detect() == World() == World(0, 1, 0, 1, 0, 1)


def test_torchruns_environment_is_read(environment: pytest.MonkeyPatch) -> None:
    set_all(environment, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, GROUP_RANK=1)
    assert World.detect() == World(rank=5, world_size=8, node=1, num_nodes=2)


def test_nodes_are_counted_from_ranks_where_torchrun_does_not_number_them(
    environment: pytest.MonkeyPatch,
) -> None:
    set_all(environment, RANK=6, WORLD_SIZE=8, LOCAL_WORLD_SIZE=2)
    assert World.detect() == World(rank=6, world_size=8, node=3, num_nodes=4)


@pytest.mark.parametrize("local", [3, 0, 16])
def test_ranks_per_node_that_do_not_fit_mean_one_node(
    environment: pytest.MonkeyPatch, local: int
) -> None:
    set_all(environment, RANK=6, WORLD_SIZE=8, LOCAL_WORLD_SIZE=local)
    assert World.detect() == World(rank=6, world_size=8)


def test_a_rank_without_a_world_size_is_ignored(environment: pytest.MonkeyPatch) -> None:
    set_all(environment, RANK=6)
    assert World.detect() == World()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "first", "WORLD_SIZE": 2}, "RANK='first', not an integer: unset it, or pass"),
        ({"RANK": 2, "WORLD_SIZE": 2}, "rank=2 must be from 0 to world_size-1"),
    ],
)
def test_a_wrong_environment_is_named(
    environment: pytest.MonkeyPatch, values: dict[str, object], message: str
) -> None:
    set_all(environment, **values)
    with pytest.raises(ConfigError, match=message):
        World.detect()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 3, "world_size": 3}, "rank=3 must be from 0 to world_size-1"),
        ({"rank": -1}, "rank=-1"),
        ({"world_size": 0}, "world_size=0 at least 1"),
        ({"worker": 2, "num_workers": 2}, "worker=2"),
        ({"node": 1}, "node=1"),
        ({"num_nodes": 2}, "num_nodes=2 is more than world_size=1"),
        ({"rank": True, "world_size": 2}, "rank=True must be an integer"),
        ({"rank": "0"}, "rank='0' must be an integer"),
    ],
)
def test_numbers_that_can_not_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        World(**values)


def test_torch_is_not_imported_to_look_at_it() -> None:
    code = (
        "import sys, json; from shardkit.world import World; World.detect(); "
        "print(json.dumps('torch' in sys.modules))"
    )
    assert run(code, RANK=1, WORLD_SIZE=2) is False


def test_an_initialised_process_group_goes_before_the_environment() -> None:
    code = """
import json, dataclasses, torch.distributed as dist
from shardkit.world import World
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print(json.dumps(dataclasses.asdict(World.detect())))
dist.destroy_process_group()
"""
    found = run(code, RANK=3, WORLD_SIZE=4, LOCAL_WORLD_SIZE=2)
    assert (found["rank"], found["world_size"], found["num_nodes"]) == (0, 1, 1)


def test_a_process_group_is_never_initialised() -> None:
    code = """
import json, torch.distributed as dist
from shardkit.world import World
World.detect()
print(json.dumps(dist.is_initialized()))
"""
    assert run(code, RANK=1, WORLD_SIZE=2) is False


def test_a_spawned_worker_keeps_its_rank_and_learns_its_number() -> None:
    import torch.utils.data as torch_data

    loader = torch_data.DataLoader(
        InWorker(World(rank=2, world_size=4)),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
    )
    seen = sorted(tuple(world) for world in loader)
    assert seen == [(2, 4, 0, 2), (2, 4, 1, 2)]


class InWorker:
    """A data set whose only sample is the world that its worker sees."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[int]:
        world = self.world.in_worker()
        return [world.rank, world.world_size, world.worker, world.num_workers]
