from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from shardkit.storage import asides
from shardkit.storage.asides import Asides, aside_files, remove_asides
from shardkit.storage.cache import Cache


def _made(own: Asides) -> str:
    file, path = own.make()
    os.close(file)
    return path


def test_every_few_files_come_a_new_folder_and_the_old_one_goes_when_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asides, "_MOST", 3)
    own = Asides(str(tmp_path), "a")
    paths = [_made(own) for _ in range(3)]
    assert len({os.path.dirname(path) for path in paths}) == 1
    paths += [_made(own) for _ in range(3)]
    assert len(set(paths)) == 6
    assert sorted(os.listdir(tmp_path)) == ["a-0", "a-1"]
    for path in paths:
        os.unlink(path)
    last = _made(own)
    assert os.listdir(tmp_path) == ["a-2"]
    os.unlink(last)
    own.remove_empty()
    assert os.listdir(tmp_path) == []


def test_what_the_dead_left_goes_and_what_the_living_write_stays(tmp_path: Path) -> None:
    for lease in ("dead", "living"):
        _made(Asides(str(tmp_path), lease))
    os.unlink(_made(Asides(str(tmp_path), "empty")))
    remove_asides(str(tmp_path), {"dead", "empty"})
    assert os.listdir(tmp_path) == ["living-0"]
    assert [lease for lease, _ in aside_files(str(tmp_path))] == ["living"]


def test_a_closed_cache_leaves_no_folder_of_temporaries(tmp_path: Path) -> None:
    with Cache(str(tmp_path)) as cache:
        for i in range(600):
            cache.get(str(i), lambda: b"x")
    assert os.listdir(tmp_path / "shardkit-cache-2" / "asides") == []


def test_no_folder_goes_before_its_files_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asides, "_MOST", 1)  # each file ends the folder of the one before
    errors: list[BaseException] = []

    def fetch(thread: int) -> None:
        try:
            for i in range(200):
                cache.open(f"{thread}-{i}", lambda sink: sink.write(b"x"), size=1).close()
        except OSError as error:
            errors.append(error)

    with Cache(str(tmp_path)) as cache:
        threads = [threading.Thread(target=fetch, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
