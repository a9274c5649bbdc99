"""Real process groups (gloo): every sample once, equal counts, no hang, kills, other worlds."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dataset.photos import NUM_SAMPLES, Packed
from tests.loader.ranks import GLOBAL_BATCH_SIZE, train, train_too_early

THREADS = {"workers": "threads", "num_workers": 1}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def start(packed: Packed, out: Path, world_size: int, options: Any, limit: int = -1) -> list[Any]:
    """Start ranks that train."""
    return start_ranks(world_size, train, packed.url, options, limit, str(out))


def start_ranks(world_size: int, target: Any, *arguments: Any) -> list[Any]:
    """Start ranks, from a fork server that has torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "shardkit.loader.serve", "tests.loader.ranks"])
    port = free_port()
    found = []
    for rank in range(world_size):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        found.append(context.Process(target=target, args=(environment, *arguments)))
        found[-1].start()
    return found


def end(processes: list[Any], expected: tuple[int, ...] = (0,)) -> None:
    for process in processes:
        process.join(60)
        assert process.exitcode in expected
        process.close()


def batches_of(out: Path, world_size: int) -> list[list[str]]:
    """Global batches of a leg, whatever rank had which part."""
    parts = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(world_size)]
    return [sorted(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    ("world_size", "options"),
    [(1, {"num_workers": 2}), (4, THREADS), (3, {"workers": "processes", "num_workers": 1})],
)
def test_every_sample_once_with_equal_counts_and_no_hang(
    packed: Packed, tmp_path: Path, world_size: int, options: Any
) -> None:
    end(start(packed, tmp_path, world_size, options))
    batches = batches_of(tmp_path, world_size)
    assert len(batches) == -(-NUM_SAMPLES // GLOBAL_BATCH_SIZE)
    assert Counter(itertools.chain(*batches)) == Counter(packed.keys)


def test_no_rank_waits_for_another_whose_whole_batches_are_lost(
    packed: Packed, tmp_path: Path
) -> None:
    folder, lost = tmp_path / "photos", range(21, 84)
    shutil.copytree(packed.url, folder)
    for shard in range(3, 12):
        (folder / f"shard-{shard:06d}.tar").unlink()
    end(start_ranks(3, train, str(folder), THREADS, -1, str(tmp_path), "replace"))
    batches = batches_of(tmp_path, 3)
    assert len(batches) == -(-NUM_SAMPLES // GLOBAL_BATCH_SIZE)
    good = [key for number, key in enumerate(packed.keys) if number not in lost]
    assert Counter(itertools.chain(*batches)) == Counter(good)


def test_a_data_set_of_before_the_process_group_is_refused(packed: Packed) -> None:
    end(start_ranks(2, train_too_early, packed.url))


def test_four_ranks_then_two_then_three_give_the_uninterrupted_sets(
    packed: Packed, tmp_path: Path
) -> None:
    whole, legs = tmp_path / "whole", tmp_path / "legs"
    whole.mkdir()
    legs.mkdir()
    end(start(packed, whole, 1, {"num_workers": 0}))
    found: list[list[str]] = []
    for world_size, limit in [(4, 3), (2, 2), (3, -1)]:
        end(start(packed, legs, world_size, THREADS, limit))
        found += batches_of(legs, world_size)
    assert found == batches_of(whole, 1)


def test_a_killed_rank_ends_the_others_and_a_resume_loses_nothing(
    packed: Packed, tmp_path: Path
) -> None:
    processes = start(packed, tmp_path, 2, THREADS)
    state = tmp_path / "state.pt"
    deadline = time.monotonic() + 60
    while not state.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(processes[1].pid, signal.SIGKILL)
    end(processes, (0, 1, -signal.SIGKILL))  # gloo tells rank 0; nothing of ours keeps it
    num_batches = -(-torch.load(state, weights_only=True)["position"] // GLOBAL_BATCH_SIZE)
    counted: Counter[str] = Counter()
    for rank in range(2):
        part = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        counted.update(itertools.chain(*part[:num_batches]))
    if num_batches < -(-NUM_SAMPLES // GLOBAL_BATCH_SIZE):
        end(start(packed, tmp_path, 3, THREADS))
        counted.update(itertools.chain(*batches_of(tmp_path, 3)))
    assert counted == Counter(packed.keys)
