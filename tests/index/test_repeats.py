"""Numbers that repeat are found among any number of them, in memory and in parts on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardkit.index import repeats


@pytest.mark.parametrize("in_memory", [1 << 23, 1_000, 1])
def test_numbers_that_repeat_are_found_in_order(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_IN_MEMORY", in_memory)
    numbers = np.random.default_rng(0).integers(0, 2**64, 50_000, dtype=np.uint64)
    again = np.concatenate([numbers[[7, 7, 40_000, 3]], np.array([0, 0], np.uint64)])
    batches = [*np.array_split(numbers, 13), np.zeros(0, np.uint64), again]
    wanted = np.unique(np.append(numbers[[7, 40_000, 3]], np.uint64(0)))
    assert repeats.repeated(batches, str(tmp_path), 100).tolist() == wanted.tolist()
    assert repeats.repeated(batches, str(tmp_path), 2).tolist() == wanted[:2].tolist()
    assert repeats.repeated(batches[:13], str(tmp_path), 2).tolist() == []
    assert repeats.repeated([], str(tmp_path), 2).tolist() == []
