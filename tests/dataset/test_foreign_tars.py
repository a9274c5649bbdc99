"""``ShardDataset`` over tars that others wrote gives what webdataset gives, byte for byte."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from shardkit import ShardDataset
from tests.index.tar_zoo import FOREIGN


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "empty"])
def test_a_foreign_tar_reads_as_webdataset_reads_it(name: str, tmp_path: Path) -> None:
    make: Callable[[Path], None] = FOREIGN[name]
    path = tmp_path / "foreign.tar"
    make(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset's own, of names it skips
        theirs = [
            dict(sample)
            for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        ]
    for sample in theirs:
        for extra in ("__url__", "__local_path__", ""):  # "": a member without an ext
            sample.pop(extra, None)
    ours = list(ShardDataset(str(path), shuffle="none", decode=None))
    assert [{k: v for k, v in sample.items() if k != "__url__"} for sample in ours] == theirs
