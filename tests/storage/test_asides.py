from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardkit.storage import asides
from shardkit.storage.asides import Asides, aside_files, remove_asides
from shardkit.storage.cache import Cache


def test_every_few_files_come_a_new_folder_and_the_old_one_goes_when_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asides, "_MOST", 3)
    own = Asides(str(tmp_path), "a")
    paths = [own.new_path() for _ in range(3)]
    for path in paths:
        Path(path).touch()
    assert len({os.path.dirname(path) for path in paths}) == 1
    paths += [own.new_path() for _ in range(3)]
    assert len(set(paths)) == 6
    assert len(os.listdir(tmp_path)) == 2
    for path in paths[:3]:
        os.unlink(path)
    own.new_path()
    assert len(os.listdir(tmp_path)) == 1  # the second had nothing in it either
    own.remove_empty()
    assert os.listdir(tmp_path) == []


def test_what_the_dead_left_goes_and_what_the_living_write_stays(tmp_path: Path) -> None:
    for lease in ("dead", "living"):
        Path(Asides(str(tmp_path), lease).new_path()).touch()
    Asides(str(tmp_path), "empty").new_path()
    remove_asides(str(tmp_path), {"dead", "empty"})
    assert os.listdir(tmp_path) == ["living-0"]
    assert [lease for lease, _ in aside_files(str(tmp_path))] == ["living"]


def test_a_closed_cache_leaves_no_folder_of_temporaries(tmp_path: Path) -> None:
    with Cache(str(tmp_path)) as cache:
        for i in range(600):
            cache.get(str(i), lambda: b"x")
    assert os.listdir(tmp_path / "shardkit-cache-1" / "asides") == []
