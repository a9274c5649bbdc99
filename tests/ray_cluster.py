"""A Ray cluster of several nodes on this machine, for tests; nothing of it outlives the block.

with ray_cluster(num_nodes=2) as cluster:      # two nodes that work, beside the head, which doesn't
    RayExecutor(cluster.address) ...
    cluster.remove_node(cluster.add_node(num_cpus=1), allow_graceful=False)     # SIGKILL
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psutil

__all__ = ["ray_cluster", "ray_processes", "wait_until"]

_WORDS = ("raylet", "gcs_server", "ray::", "ray/_private", "ray/dashboard", "ray/util")


def ray_processes(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """What Ray has started below a process, this one by default."""
    found = []
    for process in (parent or psutil.Process()).children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # it has just ended
            continue
        if any(word in command for word in _WORDS) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(what: Any, timeout_s: float = 30.0) -> None:
    """Return when ``what()`` is true."""
    give_up = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


@contextmanager
def ray_cluster(num_nodes: int) -> Iterator[Any]:
    """Start a head without CPUs and ``num_nodes`` nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: names of sockets are limited
    settings = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
    with patch.dict(os.environ, settings):
        cluster = Cluster()
        try:
            cluster.add_node(
                num_cpus=0,
                object_store_memory=80 << 20,
                include_dashboard=False,
                _system_config={
                    "health_check_initial_delay_ms": 0,  # a lost node is missed in a second or two
                    "health_check_period_ms": 500,
                    "health_check_failure_threshold": 4,
                },
            )
            for _ in range(num_nodes):
                cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            left = ray_processes()
            _, alive = psutil.wait_procs(left, timeout=10)
            for process in alive:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)
    assert not alive, f"left running: {alive}"
