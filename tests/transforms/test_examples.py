from __future__ import annotations

import glob
import os
import subprocess
import sys

import pytest

FOLDER = os.path.join(os.path.dirname(__file__), "..", "..", "examples")
EXAMPLES = sorted(
    set(glob.glob(os.path.join(FOLDER, "*.py"))) - {os.path.join(FOLDER, "multi_node.py")}
)
"""That of several machines needs a bucket and torchrun: tests/loader/test_multi_node.py."""


@pytest.mark.parametrize("path", EXAMPLES, ids=os.path.basename)
def test_every_example_runs_and_is_short(path: str, tmp_path) -> None:
    with open(path) as file:
        assert len(file.readlines()) <= 80
    done = subprocess.run(
        [sys.executable, path, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
