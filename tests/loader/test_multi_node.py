"""The example of several machines: torchrun's own agents, gloo, a cache a node, a real S3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardkit.cli.demo_data import make_demo_data
from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, pack
from tests.s3 import KEY, SECRET, S3Endpoint, serve_s3

ROOT = Path(__file__).parents[2]
NUM_SHARDS, PER_SHARD = 20, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``s3://bucket/out/``: 20 shards of 6 photos."""
    folder = tmp_path_factory.mktemp("nodes")
    index = make_demo_data(
        str(folder / "raw"), NUM_SHARDS * PER_SHARD, num_audio=0, num_videos=0,
        image_formats=("jpg",),
    )  # fmt: skip
    pack(
        index,
        str(folder / "s3" / "bucket" / "out"),
        files=["image"],
        options=PackOptions(samples_per_shard=PER_SHARD),
        executor=LocalExecutor(1),
    )
    return folder / "s3"


def train(
    endpoints: Sequence[S3Endpoint], ranks_per_node: int, run: Path, *arguments: str
) -> list[str]:
    """Run an agent of torchrun per endpoint, each a node that knows only its own endpoint."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    agents = []
    for node, s3 in enumerate(endpoints):
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(len(endpoints)), "--node-rank", str(node)),
            *("--nproc-per-node", str(ranks_per_node)),
            *("--master-addr", "127.0.0.1", "--master-port", str(port)),
            *(str(ROOT / "examples" / "multi_node.py"), "s3://bucket/out/", str(run)),
            *("--cache", str(run / "cache"), "--endpoint", s3.url, *arguments),
        ]
        agents.append(
            subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    try:
        texts = [agent.communicate(timeout=100) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * len(agents), texts
    return [line for out, _ in texts for line in out.splitlines() if line.startswith("rank")]


def keys_in(run: Path) -> Counter[str]:
    return Counter(key for path in run.glob("keys-*.txt") for key in path.read_text().split())


def tars_fetched(s3: S3Endpoint) -> set[str]:
    """Shards of which bytes were asked for; each of them once and whole, in this mode."""
    asked = [r.path for r in s3.requests if r.method == "GET" and r.path.endswith(".tar")]
    assert len(asked) == len(set(asked))
    return set(asked)


def test_two_nodes_fetch_half_of_the_data_each_and_every_sample_comes_once(
    root: Path, tmp_path: Path
) -> None:
    with serve_s3(root) as first, serve_s3(root) as second:
        lines = train([first, second], 2, tmp_path)
        assert sorted(lines) == [f"rank {r} on node {r // 2} of 2: 30 samples" for r in range(4)]
        fetched = [tars_fetched(s3) for s3 in (first, second)]
    keys = keys_in(tmp_path)
    assert len(keys) == keys.total() == NUM_SHARDS * PER_SHARD
    for node, shards in enumerate(fetched):
        assert len(shards) <= NUM_SHARDS / 2 + 1  # its half, and the shard that is cut
        on_disk = sum(f.stat().st_size for f in (tmp_path / "cache" / f"node-{node}").rglob("*"))
        sizes = [(root / "bucket" / "out" / Path(s).name).stat().st_size for s in shards]
        assert on_disk >= sum(sizes)
    assert len(fetched[0] | fetched[1]) == NUM_SHARDS


def test_a_run_goes_on_with_one_node_and_then_with_three(root: Path, tmp_path: Path) -> None:
    with serve_s3(root) as s3:
        train([s3] * 2, 1, tmp_path, "--steps", "3")
        assert keys_in(tmp_path).total() == 36
        train([s3], 1, tmp_path, "--steps", "2")
        assert keys_in(tmp_path).total() == 60
        train([s3] * 3, 1, tmp_path)
    keys = keys_in(tmp_path)
    assert len(keys) == keys.total() == NUM_SHARDS * PER_SHARD
