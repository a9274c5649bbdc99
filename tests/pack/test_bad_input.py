"""What can't be packed is a clear error, or skipped and counted; nothing half-done looks done."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.errors import (
    ConfigError,
    CorruptError,
    IndexDataError,
    NotFoundError,
    ShardkitError,
    StoreError,
)
from shardkit.format.manifest import Manifest
from shardkit.format.tar import MAX_MEMBER_BYTES
from shardkit.pack import LocalExecutor, pack, verify
from tests.pack.data import contents, make_files, pack_files, tar_samples


def looks_finished(out: Path) -> bool:
    return (out / "manifest.json").exists()


def break_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Break three files; what failed.parquet must say of their rows: key → file, kind."""
    files = folder / "files"
    (files / "00003.bin").unlink()
    (files / "00007.bin").write_bytes(b"")
    (files / "00011.bin").unlink()
    (files / "00011.bin").mkdir()
    (files / "00013.bin").unlink()
    os.mkfifo(files / "00013.bin")
    return {
        "sample_00003": ("00003.bin", "missing"),
        "sample_00007": ("00007.bin", "empty"),
        "sample_00011": ("00011.bin", "missing"),
        "sample_00013": ("00013.bin", "unreadable"),
    }


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (
            3,
            NotFoundError,
            r"00003.bin does not exist \(key 'sample_00003'\); mend .*--on-error skip",
        ),
        (7, StoreError, r"00007.bin is empty: zero bytes \(key 'sample_00007'\)"),
        (11, NotFoundError, r"00011.bin does not exist"),
        (13, StoreError, r"00013.bin can't be read \(key 'sample_00013'\): .* a device or a pipe"),
    ],
)
def test_a_bad_file_is_named_with_its_key_and_the_remedy(
    tmp_path: Path, row: int, error: type[Exception], message: str
) -> None:
    index = make_files(tmp_path / "src", 20)
    break_files(tmp_path / "src")
    table = pq.read_table(index).slice(row, 1)
    pq.write_table(table, index)
    with pytest.raises(error, match=message):
        pack_files(index, tmp_path / "out")
    assert not looks_finished(tmp_path / "out")
    assert not [name for name in contents(tmp_path / "out") if name.startswith("shard-")]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_skipped_counted_and_listed(tmp_path: Path, workers: int) -> None:
    index = make_files(tmp_path / "src", 20)
    broken = break_files(tmp_path / "src")
    summary = pack_files(index, tmp_path / "out", on_error="skip", workers=workers)
    failed = pq.read_table(tmp_path / "out/failed.parquet").to_pylist()
    assert {row["key"]: (os.path.basename(row["url"]), row["kind"]) for row in failed} == broken
    assert [row["key"] for row in failed] == sorted(broken)
    assert (summary.num_samples, summary.num_failed) == (16, 4)
    samples = tar_samples(tmp_path / "out")
    assert list(samples) == [
        f"sample_{n:05d}" for n in range(20) if f"sample_{n:05d}" not in broken
    ]
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok
    manifest = Manifest.decode((tmp_path / "out/manifest.json").read_bytes(), "")
    assert (manifest.num_samples, manifest.num_failed) == (16, 4)


def test_boundaries_do_not_move_for_a_skipped_row(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 20)
    pack_files(index, tmp_path / "whole")
    break_files(tmp_path / "src")
    pack_files(index, tmp_path / "out", on_error="skip")
    whole, out = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert out["shard-000003.tar"] == whole["shard-000003.tar"]
    assert out["shard-000002.tar"] != whole["shard-000002.tar"]


def test_equal_failures_make_equal_bytes(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 20)
    break_files(tmp_path / "src")
    for out in ("one", "two"):
        pack_files(index, tmp_path / out, on_error="skip", workers=1 if out == "one" else 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_shard_of_skipped_rows_alone_is_an_empty_tar(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 12)
    for row in range(6, 12):
        (tmp_path / f"src/files/{row:05d}.bin").unlink()
    assert pack_files(index, tmp_path / "out", on_error="skip").num_samples == 6
    assert (tmp_path / "out/shard-000001.tar").read_bytes() == bytes(1024)
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok


def test_a_failing_second_member_takes_the_whole_sample_back(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 12, mean_bytes=1_500_000)
    (tmp_path / "src/files/00003.note").unlink()
    pack_files(index, tmp_path / "out", on_error="skip")
    samples = tar_samples(tmp_path / "out")
    assert "sample_00003" not in samples
    assert samples["sample_00004"]["bin"] == (tmp_path / "src/files/00004.bin").read_bytes()
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok


def test_a_row_that_names_no_file_is_named(tmp_path: Path) -> None:
    rows = [None if row == 4 else f"files/{row:05d}.bin" for row in range(6)]
    index = make_files(tmp_path / "src", 6, data=rows)
    with pytest.raises(IndexDataError, match="key 'sample_00004' names no file at all"):
        pack_files(index, tmp_path / "out", inline=None)


def test_a_duplicate_key_is_named_with_its_rows_wherever_it_is(tmp_path: Path) -> None:
    keys = [f"k{n}" for n in range(24)]
    keys[21] = "k2"
    index = make_files(tmp_path / "src", 24, id=keys)
    with pytest.raises(IndexDataError, match=r"'k2' repeats: row 2 of .* and row 21 of"):
        pack_files(index, tmp_path / "out", key="id")
    assert not contents(tmp_path / "out")


def test_two_members_that_turn_out_to_be_of_one_kind_are_refused(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6, other=[f"files/{row:05d}" for row in range(6)])
    for row in range(6):
        (tmp_path / f"src/files/{row:05d}").write_bytes(b"\xff\xd8\xff\xe0 jpeg")
    with pytest.raises(ConfigError, match=r"sample_00000' has two members named 'jpg'; .*--files"):
        pack_files(index, tmp_path / "out", files=["data=jpg", "other"])


def test_a_file_of_8_gib_is_refused_or_skipped_at_once(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    with open(tmp_path / "src/files/00002.bin", "wb") as file:
        file.truncate(MAX_MEMBER_BYTES)
    with pytest.raises(
        ConfigError, match=r"8,589,934,592 bytes; .*\(8 GiB\) \(key 'sample_00002'\)"
    ):
        pack_files(index, tmp_path / "out")
    pack_files(index, tmp_path / "skipped", on_error="skip")
    (failed,) = pq.read_table(tmp_path / "skipped/failed.parquet").to_pylist()
    assert (failed["key"], failed["kind"]) == ("sample_00002", "too_large")


def test_a_damaged_source_shard_is_found_when_it_is_packed_again(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    pack_files(index, tmp_path / "one")
    tar = bytearray((tmp_path / "one/shard-000000.tar").read_bytes())
    tar[700] ^= 1
    (tmp_path / "one/shard-000000.tar").write_bytes(tar)
    with pytest.raises(CorruptError, match=r"is damaged .key 'sample_00000'.*xxh3"):
        pack_files(tmp_path / "one", tmp_path / "two", files=None, inline=None)
    pack_files(tmp_path / "one", tmp_path / "two-s", files=None, inline=None, on_error="skip")
    (failed,) = pq.read_table(tmp_path / "two-s/failed.parquet").to_pylist()
    assert (failed["key"], failed["kind"]) == ("sample_00000", "corrupt")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, out: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"not empty \(it holds 'thesis.tex'.*name a new folder"):
        pack_files(index, out)
    assert contents(out) == {"thesis.tex": b"x"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, out: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    out.write_text("x")
    for target in (out, out / "below"):
        with pytest.raises(ConfigError, match="is a file, not a folder"):
            pack_files(index, target)


def test_a_folder_without_permission_is_refused(tmp_path: Path, out: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    out.mkdir(mode=0o500)
    target = str(out / "below")
    if os.access(out, os.W_OK):  # root may write anywhere but into /proc and such
        target = "/proc/self/fdinfo/out"
    with pytest.raises(StoreError, match=r"no permission|not permitted|cannot write"):
        pack_files(index, target)


def test_another_index_in_a_finished_folder_is_refused(tmp_path: Path, out: Path) -> None:
    pack_files(make_files(tmp_path / "src", 6), out)
    other = make_files(tmp_path / "other", 7)
    before = contents(out)
    with pytest.raises(ConfigError, match="already holds a packed dataset of another index"):
        pack_files(other, out)
    assert contents(out) == before


def test_other_options_in_a_finished_folder_are_named(tmp_path: Path, out: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    pack_files(index, out)
    with pytest.raises(ConfigError, match=r"samples_per_shard was 6 and is 5 now"):
        pack_files(index, out, samples_per_shard=5)


@pytest.fixture
def begun(tmp_path: Path, out: Path) -> Iterator[Path]:
    """An index whose pack was stopped by a missing file in its second shard."""
    index = make_files(tmp_path / "src", 18)
    lost = tmp_path / "src/files/00008.bin"
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(NotFoundError):
        pack_files(index, out)
    yield index
    lost.write_bytes(data)


def test_an_unfinished_folder_takes_no_other_index_or_options(begun: Path, out: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unfinished pack with other options .shuffle was 'none'"
    ):
        pack_files(begun, out, shuffle="global")
    with pytest.raises(ConfigError, match="unfinished pack of another index"):
        pack_files(begun, out, where="big > 0")


def test_a_pack_that_a_bad_row_ended_goes_on_with_on_error_skip(
    tmp_path: Path, begun: Path, out: Path
) -> None:
    """As its error advises; and ends in the bytes of one that skipped from the start."""
    first = (out / "shard-000000.tar").stat().st_mtime_ns
    summary = pack_files(begun, out, on_error="skip")
    assert (summary.num_resumed, summary.num_samples, summary.num_failed) == (1, 17, 1)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == first
    pack_files(begun, tmp_path / "straight", on_error="skip")
    for path in (tmp_path / "straight").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(ConfigError, match=r"other options .on_error was 'skip'"):
        pack_files(begun, out)


def test_a_pack_that_skips_nothing_is_the_one_that_raises(tmp_path: Path, out: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    pack_files(index, out)
    assert pack_files(index, out, on_error="skip").num_resumed == 1


def test_an_index_without_a_column_of_files_says_how_to_name_one(tmp_path: Path, out: Path) -> None:
    table = pa.table({"word": ["a", "b"], "number": [1, 2]})
    with pytest.raises(IndexDataError, match=r"no column of .* holds files.*--files.*--inline"):
        pack(table, str(out), executor=LocalExecutor(1))
    assert not out.exists()


def test_what_was_finished_is_kept_when_the_pack_goes_on(
    tmp_path: Path, begun: Path, out: Path
) -> None:
    first = (out / "shard-000000.tar").stat().st_mtime_ns
    (tmp_path / "src/files/00008.bin").write_bytes(b"back again")
    summary = pack_files(begun, out)
    assert (summary.num_resumed, summary.num_samples) == (1, 18)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == first
    assert tar_samples(out)["sample_00008"]["bin"] == b"back again"
    assert verify(str(out), executor=LocalExecutor(1)).ok
    assert not (out / ".pack").exists()


def test_sources_that_changed_between_runs_still_end_in_a_right_dataset(
    tmp_path: Path, begun: Path, out: Path
) -> None:
    """Finished shards keep the bytes of their time; the rest has those of now; all is proved."""
    for row in (2, 8, 12):
        (tmp_path / f"src/files/{row:05d}.bin").write_bytes(b"changed" * row)
    pack_files(begun, out)
    samples = tar_samples(out)
    assert samples["sample_00012"]["bin"] == b"changed" * 12
    assert samples["sample_00002"]["bin"] != b"changed" * 2
    assert verify(str(out), executor=LocalExecutor(1)).ok


def test_a_shard_damaged_between_runs_is_made_again(tmp_path: Path, begun: Path, out: Path) -> None:
    for name in ("shard-000000.tar", "shard-000000.parquet"):
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[:-600])
    (tmp_path / "src/files/00008.bin").write_bytes(b"back again")
    assert pack_files(begun, out).num_resumed == 0
    assert verify(str(out), executor=LocalExecutor(1)).ok


def test_a_plan_that_cant_be_read_is_refused(begun: Path, out: Path) -> None:
    (out / ".pack/plan.json").write_text("{")
    with pytest.raises(CorruptError, match="no plan that this shardkit can continue"):
        pack_files(begun, out)


def test_two_packs_of_the_same_at_once_end_alike(tmp_path: Path, out: Path) -> None:
    index = make_files(tmp_path / "src", 60)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            pack_files(index, out)
        except ShardkitError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    pack_files(index, tmp_path / "alone")
    assert contents(out) == contents(tmp_path / "alone")


def test_an_index_without_any_file_that_exists_says_where_it_looked(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "path": ["no/a.jpg", "no/b.jpg"]})
    with pytest.raises(IndexDataError, match=r"none of 2 sampled rows has a file.*no/a.jpg"):
        pack(table, str(tmp_path / "out"), executor=LocalExecutor(1))
