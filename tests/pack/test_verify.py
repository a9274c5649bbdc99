"""Whatever is wrong with a packed dataset is found, and named by shard and key; repair mends it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.errors import ConfigError, CorruptError, NotFoundError
from shardkit.format.manifest import Manifest, ShardTable, fingerprint
from shardkit.format.tar import checksum
from shardkit.index import open_index
from shardkit.pack import LocalExecutor, repair_shards, verify
from shardkit.pack.output import Output
from shardkit.pack.verify import VerifyReport
from shardkit.storage.store import open_store
from tests.pack.data import FILES, contents, make_files, pack_files
from tests.s3 import serve_s3

TAR, IDX, SIDECAR = "shard-000001.tar", "shard-000001.tar.idx", "shard-000001.parquet"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources and ``out``: three shards of six samples."""
    folder = tmp_path_factory.mktemp("packed")
    pack_files(make_files(folder / "src", 18), folder / "out")
    return folder


@pytest.fixture
def out(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed / "out", tmp_path / "out"))


def check(out: Path | str) -> VerifyReport:
    return verify(str(out), executor=LocalExecutor(1))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def place(out: Path, row: int, ext: str) -> tuple[int, int]:
    """Start and size of a member of the second shard."""
    found = pq.read_table(out / SIDECAR).column(ext)[row].as_py()
    return found["offset"], found["size"]


def forge(out: Path) -> None:
    """Make table and manifest agree with the files as they are now, as an adversary could."""
    table = ShardTable.decode((out / "shards.parquet").read_bytes())
    names = [table.name(shard) for shard in range(len(table))]
    stems = [name.removesuffix(".tar") for name in names]
    sums = {
        end: np.array(
            [checksum((out / f"{stem}{end}").read_bytes()) for stem in stems], dtype=np.uint64
        )
        for end in (".tar", ".tar.idx", ".parquet")
    }
    sizes = np.array([(out / name).stat().st_size for name in names])
    table = replace(
        table,
        num_bytes=sizes,
        tar_xxh3=sums[".tar"],
        idx_xxh3=sums[".tar.idx"],
        sidecar_xxh3=sums[".parquet"],
    )
    manifest = Manifest.decode((out / "manifest.json").read_bytes(), "")
    manifest = replace(
        manifest,
        num_bytes=int(sizes.sum()),
        fingerprint=fingerprint(table.tar_xxh3),
        shards_xxh3=checksum(table.encode()),
    )
    (out / "shards.parquet").write_bytes(table.encode())
    (out / "manifest.json").write_bytes(manifest.encode())


def test_what_was_packed_is_right(out: Path) -> None:
    report = check(out)
    assert report.ok
    assert (report.num_shards, report.num_samples, report.bad_shards) == (3, 18, [])


@pytest.mark.parametrize("row", [0, 3, 5])
def test_a_flipped_byte_of_data_is_named_by_shard_and_key(out: Path, row: int) -> None:
    start, size = place(out, row, "bin")
    flip(out / TAR, start + size // 2)
    (problem,) = check(out).problems
    assert (problem.shard, problem.key) == (TAR, f"sample_{6 + row:05d}")
    assert "data of 'bin'" in problem.text


def test_a_flipped_byte_of_padding_is_named_by_shard_and_key(out: Path) -> None:
    start, size = place(out, 2, "json")
    flip(out / TAR, start + size)
    (problem,) = check(out).problems
    assert str(problem) == f"{TAR}: key 'sample_00008': the padding after 'json' is not zeros"


@pytest.mark.parametrize("at", [0, 100, 130, 148, 156, 260, 300, 340, 400])
def test_a_flipped_byte_of_a_header_is_named_by_shard_and_key(out: Path, at: int) -> None:
    start, _ = place(out, 2, "bin")
    flip(out / TAR, start - 512 + at)
    problems = check(out).problems
    assert {(problem.shard, problem.key) for problem in problems} == {(TAR, "sample_00008")}


def test_every_bad_sample_is_named_not_only_the_first(out: Path) -> None:
    for row in (1, 4):
        flip(out / TAR, place(out, row, "bin")[0])
    assert [p.key for p in check(out).problems] == ["sample_00007", "sample_00010"]


@pytest.mark.parametrize("keep_end", [False, True])
def test_a_tar_cut_on_a_member_boundary_is_found(out: Path, keep_end: bool) -> None:
    """With an end-of-tar put behind the cut, no tar reader would notice."""
    cut = place(out, 4, "bin")[0] - 512
    data = (out / TAR).read_bytes()
    (out / TAR).write_bytes(data[:cut] + bytes(1024 * keep_end))
    problems = check(out).problems
    assert {p.shard for p in problems} == {TAR}
    assert {p.key for p in problems} >= {"sample_00010", "sample_00011"}


@pytest.mark.parametrize("lost", [True, False], ids=["missing", "of another pack"])
def test_a_list_of_skipped_rows_that_is_not_the_right_one_is_found(
    lost: bool, tmp_path: Path
) -> None:
    index = make_files(tmp_path / "src", 18)
    for path in sorted((tmp_path / "src").rglob("*.bin"))[3:5]:
        path.unlink()
    pack_files(index, tmp_path / "out", on_error="skip")
    failed = tmp_path / "out" / "failed.parquet"
    assert check(tmp_path / "out").ok
    if lost:
        failed.unlink()
    else:
        pq.write_table(pq.read_table(failed).slice(1), failed)
    (problem,) = check(tmp_path / "out").problems
    what = "is missing, which lists the 2 rows" if lost else "does not list the 2 rows"
    assert str(problem) == f"failed.parquet {what} that were skipped"


def test_a_list_of_skipped_rows_where_none_was_is_found(out: Path) -> None:
    pq.write_table(
        pa.table({"key": ["a"], "url": ["b"], "kind": ["missing"]}), out / "failed.parquet"
    )
    (problem,) = check(out).problems
    assert str(problem) == "failed.parquet does not list the 0 rows that were skipped"


def test_a_manifest_that_counts_other_members_is_found(out: Path) -> None:
    manifest = Manifest.decode((out / "manifest.json").read_bytes(), "")
    members = {**manifest.members, "bin": 17}
    (out / "manifest.json").write_bytes(replace(manifest, members=members).encode())
    (problem,) = check(out).problems
    assert "the manifest counts members" in str(problem)
    assert "'bin': 17" in str(problem)


def test_a_sidecar_of_another_shard_is_found(out: Path) -> None:
    shutil.copy(out / "shard-000000.parquet", out / SIDECAR)
    (problem,) = check(out).problems
    assert f"{SIDECAR} is not what was packed" in str(problem)


@pytest.mark.parametrize("name", [TAR, IDX, SIDECAR])
def test_a_missing_file_is_named(out: Path, name: str) -> None:
    (out / name).unlink()
    (problem,) = check(out).problems
    assert problem.shard == TAR
    assert name in problem.text


def test_swapped_shards_are_found(out: Path) -> None:
    (out / "shard-000000.tar").rename(out / "x")
    (out / TAR).rename(out / "shard-000000.tar")
    (out / "x").rename(out / TAR)
    assert check(out).bad_shards == ["shard-000000.tar", TAR]


@pytest.mark.parametrize("name", [IDX, SIDECAR])
def test_a_flipped_byte_beside_a_tar_is_found(out: Path, name: str) -> None:
    flip(out / name, 30)
    assert check(out).bad_shards == [TAR]


def test_a_wrong_idx_is_found_even_with_right_checksums(out: Path) -> None:
    offsets = np.frombuffer((out / IDX).read_bytes(), dtype="<u8").copy()
    offsets[2] += 512
    (out / IDX).write_bytes(offsets.tobytes())
    forge(out)
    problems = check(out).problems
    assert {p.key for p in problems} == {"sample_00007", "sample_00008"}


def test_a_sidecar_of_another_shard_is_found_even_with_right_checksums(out: Path) -> None:
    shutil.copy(out / "shard-000000.parquet", out / SIDECAR)
    forge(out)
    assert check(out).bad_shards == [TAR]


def test_data_that_its_header_belies_is_found_even_with_right_checksums(out: Path) -> None:
    flip(out / TAR, place(out, 3, "bin")[0])
    forge(out)
    (problem,) = check(out).problems
    assert problem.key == "sample_00009"


def test_padding_is_checked_even_with_right_checksums(out: Path) -> None:
    start, size = place(out, 2, "json")
    flip(out / TAR, start + size)
    forge(out)
    assert [p.key for p in check(out).problems] == ["sample_00008"]


def test_equal_keys_in_two_shards_are_found(out: Path) -> None:
    """Every file and checksum is right: the same shard is there twice, under two names."""
    for end in (".tar", ".tar.idx", ".parquet"):
        shutil.copy(out / f"shard-000000{end}", out / f"shard-000001{end}")
    forge(out)
    (problem,) = check(out).problems
    assert problem.shard is None
    assert "'sample_00000' repeats" in problem.text


@pytest.mark.parametrize("name", ["manifest.json", "shards.parquet"])
def test_a_broken_manifest_or_table_is_an_error(out: Path, name: str) -> None:
    (out / name).write_bytes((out / name).read_bytes()[:-20])
    with pytest.raises(CorruptError, match=name):
        check(out)


def test_a_lost_shard_table_is_an_error_that_says_what_to_do(out: Path) -> None:
    (out / "shards.parquet").unlink()
    with pytest.raises(CorruptError, match=r"shards\.parquet is missing.*copy it again, or pack"):
        check(out)


def test_samples_of_lone_tars_are_counted_not_members(out: Path) -> None:
    assert check(out / "shard-000001.tar").num_samples == 6


def test_a_folder_without_a_manifest_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no packed dataset, or packing it has not ended"):
        check(tmp_path)


def test_lone_tars_are_proved_by_their_headers(out: Path) -> None:
    for path in out.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    braces = f"{out}/shard-{{000000..000002}}.tar"
    report = check(braces)
    assert report.ok
    assert report.num_shards == 3


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[:-1024], "no end-of-tar after its last member"),
        (lambda data: data[:5000], "the tar is cut"),
        (lambda data: data[:700] + b"\xff" + data[701:], "fails its checksum"),
        (lambda data: b"", "no end-of-tar"),
        (lambda data: b"not a tar, and never was one" * 100, "no tar header"),
    ],
)
def test_damage_of_a_lone_tar_is_found(
    out: Path, damage: Callable[[bytes], bytes], text: str
) -> None:
    (out / TAR).write_bytes(damage((out / TAR).read_bytes()))
    problems = check(out / TAR).problems
    assert any(text in str(problem) for problem in problems)


def test_a_tar_of_others_can_not_be_proved_and_says_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(__file__, "a.py")
    (problem,) = check(tmp_path / "a.tar").problems
    assert "1 of 1 members carry no checksum" in problem.text


def test_verification_works_in_a_bucket_by_several_workers(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed / "out", tmp_path / "root/bucket/out")
    with serve_s3(tmp_path / "root") as s3:
        there = {"storage_options": s3.storage_options, "executor": LocalExecutor(2)}
        assert verify("s3://bucket/out", **there).ok
        flip(folder / TAR, place(folder, 1, "bin")[0])
        (problem,) = verify("s3://bucket/out", **there).problems
        assert (problem.shard, problem.key) == (TAR, "sample_00007")
        (problem,) = verify(f"s3://bucket/out/{TAR}", **there).problems
        assert problem.key == "sample_00007"


def repair(packed: Path, out: Path) -> list[str]:
    index = open_index(str(packed / "src/index.parquet"), files=FILES, inline=["caption=txt"])
    output = Output(str(out), open_store())
    return repair_shards(index, output, check(out).bad_shards, LocalExecutor(1))


def test_repair_makes_the_exact_bytes_again(packed: Path, out: Path) -> None:
    flip(out / TAR, 900)
    (out / "shard-000002.parquet").unlink()
    (out / "shard-000002.tar").write_bytes(b"")
    assert repair(packed, out) == [TAR, "shard-000002.tar"]
    assert contents(out) == contents(packed / "out")


def test_repair_from_changed_files_leaves_the_shard_as_it_is(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    pack_files(folder / "src/index.parquet", folder / "new")
    flip(folder / "new" / TAR, 900)
    before = contents(folder / "new")
    (folder / "src/files/00008.bin").write_bytes(b"other")
    with pytest.raises(CorruptError, match=r"came out with other bytes .* left as it is"):
        repair(folder, folder / "new")
    assert contents(folder / "new") == before


def test_repair_from_another_index_is_refused(packed: Path, out: Path, tmp_path: Path) -> None:
    flip(out / TAR, 900)
    make_files(tmp_path / "src", 18, seed=5, score=[0.5] * 18)
    with pytest.raises(ConfigError, match="packed from another index"):
        repair(tmp_path, out)
