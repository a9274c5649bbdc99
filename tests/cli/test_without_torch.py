"""Everything but training works where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pack.data import make_files, pack_files

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchaudio", "torchvision", "av", "PIL", "simplejpeg"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
from shardkit.cli.main import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules
assert "pyarrow.dataset" not in sys.modules  # its threads may abort a process that ends
sys.exit(status)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pack_files(make_files(folder / "src", 8), folder / "out")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["pack", "--help"],
        ["pack", "src/index.parquet", "again", "--samples-per-shard", "3", "--workers", "2"],
        ["verify", "out", "--workers", "1"],
        ["info", "out"],
        ["cat", "out", "sample_00003"],
        ["index", "out"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_the_command_line_needs_no_torch(folder: Path, words: list[str]) -> None:
    command = [sys.executable, "-c", BLOCKER, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_reading_shards_needs_no_torch(folder: Path) -> None:
    script = BLOCKER.split("from shardkit.cli", maxsplit=1)[0] + (
        "import shardkit\n"
        "dataset = shardkit.ShardDataset('out', decode=None, shuffle='none')\n"
        "assert [s['__key__'] for s in dataset] == [f'sample_{n:05d}' for n in range(8)]\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
