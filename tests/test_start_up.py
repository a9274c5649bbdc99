"""What must not be imported before it is needed: that, and not a clock, keeps the start quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


def test_packing_loads_neither_pandas_nor_duckdb(tmp_path: Path) -> None:
    """Each takes as long to import as thousands of files take to pack."""
    rows = range(20)
    for row in rows:
        (tmp_path / f"{row}.jpg").write_bytes(b"x" * (row + 1))
    index = {"id": rows, "label": [f"class {row}" for row in rows], "n": [None, *rows[1:]]}
    images = [str(tmp_path / f"{row}.jpg") for row in rows]
    pq.write_table(pa.table({**index, "image": images}), tmp_path / "i.parquet")
    code = (
        "from shardkit.pack import LocalExecutor, pack\n"
        f"pack({str(tmp_path / 'i.parquet')!r}, {str(tmp_path / 'out')!r}, "
        "executor=LocalExecutor(1))"
    )
    assert not imported_by(code) & {"pandas", "duckdb", "torch", "fsspec", "obstore"}
    assert (tmp_path / "out" / "manifest.json").exists()


def test_every_public_name_is_there() -> None:
    for name in shardkit.__all__:
        assert getattr(shardkit, name) is not None
    assert set(shardkit.__all__) <= set(dir(shardkit))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shard_dataset'"):
        _ = shardkit.shard_dataset
