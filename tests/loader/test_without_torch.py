"""Where torch is not installed: the same loader over numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import sys


class Blocked:
    """Torch as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")


sys.meta_path.insert(0, Blocked())

import numpy as np

from shardkit import DataLoader, Mix, ShardDataset
from tests.loader.numbers import batches_of, numbers


def main(url, kind, num_workers):
    dataset = ShardDataset(url, seed=3)
    # A fork server would import torch after all, before this file can block it.
    options = dict(num_workers=num_workers, workers=kind, multiprocessing_context="spawn")
    with DataLoader(dataset, 8, **options) as loader:
        epochs = [[key for batch in loader for key in batch["__key__"]] for _ in range(2)]
        assert len(set(epochs[0])) == len(set(epochs[1])) == 101
        assert epochs[0] != epochs[1]
        running = iter(loader)
        first = next(running)
        assert type(first["jpg"]) is np.ndarray and first["jpg"].shape == (8, 48, 64, 3)
        assert first["cls"].dtype == np.int64
        state = loader.state_dict()
        rest = [batch["__key__"] for batch in running]
        loader.load_state_dict(state)
        assert [batch["__key__"] for batch in loader] == rest
    mix = Mix([numbers(), numbers(50, name="other")])
    with DataLoader(mix, 4, **options) as loader:
        assert len(batches_of(loader)) == len(loader)
    assert "torch" not in sys.modules
    assert sum(1 for _ in dataset) == 101


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
'''


@pytest.mark.parametrize(("kind", "num_workers"), [("threads", 2), ("processes", 1)])
def test_the_loader_gives_numpy_batches(
    packed: object, tmp_path: Path, kind: str, num_workers: int
) -> None:
    script = tmp_path / "no_torch.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), packed.url, kind, str(num_workers)]  # type: ignore[attr-defined]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
