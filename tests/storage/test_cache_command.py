from __future__ import annotations

from pathlib import Path

import pytest

from shardkit.cli.main import main
from shardkit.storage.cache import Cache
from tests.storage.disk import damage


@pytest.fixture
def folder(tmp_path: Path) -> str:
    with Cache(str(tmp_path)) as cache:
        cache.get("s3://bucket/a.jpg\nv1", lambda: b"x" * 2048)
        cache.get("s3://bucket/b.jpg\nv1", lambda: b"x" * 1024, as_file=True)
    return str(tmp_path)


def test_ls_shows_entries_and_their_sum(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "ls", folder]) == 0
    out = capsys.readouterr().out
    assert "s3://bucket/a.jpg v1" in out
    assert "2 entries, 3.00 KB" in out


@pytest.mark.parametrize("key", ["s3://bucket/a.jpg\nv1", "s3://bucket/b.jpg\nv1"])
def test_check_exits_one_on_damage_and_repair_mends_it(
    folder: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "check", folder]) == 0
    assert "sound" in capsys.readouterr().out
    with Cache(folder) as cache:
        (entry,) = [entry for entry in cache.entries() if entry.key == key]
        damage(entry.path, entry.start, entry.size, "flip")
    assert main(["cache", "check", folder]) == 1
    assert "was changed" in capsys.readouterr().out
    assert main(["cache", "check", folder, "--repair"]) == 0
    assert main(["cache", "check", folder]) == 0


def test_clear_deletes_what_nobody_has_open(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cache(folder) as cache, cache.open("s3://bucket/b.jpg\nv1", lambda _: None):
        assert main(["cache", "clear", folder]) == 0
        assert "2.00 KB deleted" in capsys.readouterr().out
        assert len(cache.entries()) == 1


def test_a_folder_that_is_no_cache_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "clear", str(tmp_path)]) == 2
    assert "holds no cache" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
