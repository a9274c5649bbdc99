"""What must not be imported before it is needed: that, and not a clock, keeps the start quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shardkit


def imported_by(code: str) -> set[str]:
    """Names of the top-level packages that a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_shardkit_loads_no_library() -> None:
    heavy = {"numpy", "pyarrow", "pandas", "torch", "fsspec", "obstore", "duckdb", "webdataset"}
    assert not imported_by("import shardkit") & heavy


def test_help_loads_no_library() -> None:
    code = "from shardkit.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not imported_by(code) & {"numpy", "pyarrow", "pandas", "torch", "duckdb"}


@pytest.mark.parametrize("module", ["shardkit.pack", "shardkit.index", "shardkit.storage.store"])
def test_rooms_without_tensors_load_no_torch(module: str) -> None:
    assert not imported_by(f"import {module}") & {"torch", "obstore", "fsspec", "ray", "PIL", "av"}


def test_every_public_name_is_there() -> None:
    for name in shardkit.__all__:
        assert getattr(shardkit, name) is not None
    assert set(shardkit.__all__) <= set(dir(shardkit))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shard_dataset'"):
        _ = shardkit.shard_dataset
