"""The example of a folder of pairs in a bucket runs against a real bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from examples.pairs_on_s3 import make_pairs
from tests.s3 import serve_s3

ROOT = Path(__file__).parents[2]


def test_a_folder_of_pairs_on_s3_is_streamed_with_equal_crops(tmp_path: Path) -> None:
    make_pairs(str(tmp_path / "s3" / "bucket" / "pairs"), 6)
    with serve_s3(tmp_path / "s3") as s3:
        options = s3.storage_options
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": options["key"],
            "AWS_SECRET_ACCESS_KEY": options["secret"],
            "PYTHONPATH": str(ROOT),
        }
        script = str(ROOT / "examples" / "pairs_on_s3.py")
        command = [sys.executable, script, str(tmp_path), "s3://bucket/pairs/", s3.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert s3.count("GET", "*.jpg") == 6
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("(4, 3, 64, 64)")
