"""Files go in, plain tars come out: what is in them, how they are cut, what is said of them."""

from __future__ import annotations

import glob
import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import webdataset

from shardkit.cli.demo_data import make_demo_data
from shardkit.errors import ConfigError, IndexDataError
from shardkit.format.keys import fit_key
from shardkit.format.manifest import Manifest, ShardTable
from shardkit.format.sidecar import KEY
from shardkit.pack import LocalExecutor, PackOptions, pack, verify
from tests.pack.data import contents, make_files, pack_files, tar_samples


def manifest_of(out: Path) -> Manifest:
    return Manifest.decode((out / "manifest.json").read_bytes(), str(out))


def shards_of(out: Path) -> ShardTable:
    return ShardTable.decode((out / "shards.parquet").read_bytes())


def test_photos_sounds_and_videos_come_out_byte_for_byte(tmp_path: Path) -> None:
    index = make_demo_data(str(tmp_path / "src"), 8, 4, 2)
    summary = pack(
        index,
        str(tmp_path / "out"),
        inline=["caption=txt"],
        options=PackOptions(samples_per_shard=3),
        executor=LocalExecutor(1),
    )
    samples = tar_samples(tmp_path / "out")
    rows = pq.read_table(index).to_pylist()
    assert list(samples) == [row["id"] for row in rows]
    for row in rows:
        sample = samples[row["id"]]
        for column in ("image", "audio", "video"):
            if row[column] is not None:
                path = tmp_path / "src" / row[column]
                assert sample.pop(path.suffix[1:]) == path.read_bytes()
        assert sample.pop("txt").decode() == row["caption"]
        assert json.loads(sample.pop("json"))["label"] == row["label"]
        assert not sample
    assert (summary.num_samples, summary.num_shards, summary.num_failed) == (8, 3, 0)
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok


def test_the_brace_url_of_the_summary_works_in_webdataset(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 20)
    summary = pack_files(index, tmp_path / "out")
    found = list(webdataset.WebDataset(summary.brace_url, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"sample_{n:05d}" for n in range(20)]
    assert found[1]["bin"] == (tmp_path / "src/files/00001.bin").read_bytes()


def test_nothing_is_there_but_what_the_specification_lists(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 13)
    pack_files(index, tmp_path / "out")
    stems = [f"shard-{n:06d}" for n in range(3)]
    names = {"manifest.json", "shards.parquet"}
    names |= {f"{stem}{end}" for stem in stems for end in (".tar", ".tar.idx", ".parquet")}
    assert set(contents(tmp_path / "out")) == names


def test_members_may_differ_from_sample_to_sample(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 12)
    pack_files(index, tmp_path / "out")
    samples = list(tar_samples(tmp_path / "out").values())
    assert "note" in samples[0]
    assert "note" not in samples[1]
    assert manifest_of(tmp_path / "out").members == {"bin": 12, "note": 4, "txt": 10, "json": 12}


def test_keys_that_no_tar_holds_are_rewritten_and_kept_in_the_metadata(tmp_path: Path) -> None:
    keys = ["cat/0.1", "hund im schnee", "猫", "k" * 90, "__x", "fine"]
    index = make_files(tmp_path / "src", 6, id=keys)
    pack_files(index, tmp_path / "out")
    assert list(tar_samples(tmp_path / "out")) == [fit_key(key) for key in keys]
    table = pq.read_table(tmp_path / "out/shard-000000.parquet")
    assert table.column("id").to_pylist() == keys
    assert table.column(KEY).to_pylist() == [fit_key(key) for key in keys]
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok


def test_two_columns_of_one_ext_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    others = [f"files/{(row + 1) % 6:05d}.bin" for row in range(6)]
    index = make_files(tmp_path / "src", 6, other=others)
    pack_files(index, tmp_path / "out", files=["data", "other"])
    sample = tar_samples(tmp_path / "out")["sample_00002"]
    assert sample["data.bin"] == (tmp_path / "src/files/00002.bin").read_bytes()
    assert sample["other.bin"] == (tmp_path / "src/files/00003.bin").read_bytes()


def test_metadata_goes_beside_a_json_of_the_samples_own(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    pack_files(index, tmp_path / "out", inline=["tags=json"])
    sample = tar_samples(tmp_path / "out")["sample_00002"]
    assert json.loads(sample["json"]) == ["t2", "x"]
    assert json.loads(sample["meta.json"])["big"] == str(2**60 + 2)
    assert manifest_of(tmp_path / "out").metadata_ext == "meta.json"


def test_a_json_that_the_first_rows_did_not_show_is_not_overwritten(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    with pytest.raises(ConfigError, match="--metadata-member"):
        pack_files(index, tmp_path / "out", files=["data=json"], metadata_member="json")


def test_the_metadata_member_can_be_left_out(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6)
    pack_files(index, tmp_path / "out", metadata_member="none")
    assert set(tar_samples(tmp_path / "out")["sample_00001"]) == {"bin", "txt"}
    assert (
        pq.read_table(tmp_path / "out/shard-000000.parquet").column("big")[1].as_py() == 2**60 + 1
    )


def test_bytes_in_the_index_are_packed_and_their_ext_found(tmp_path: Path) -> None:
    jpeg, png = b"\xff\xd8\xff\xe0" + b"x" * 40, b"\x89PNG\r\n\x1a\n" + b"y" * 40
    table = pa.table({"key": ["a", "b"], "image": [jpeg, png]})
    pack(table, str(tmp_path / "out"), executor=LocalExecutor(1))
    assert tar_samples(tmp_path / "out") == {"a": {"jpg": jpeg}, "b": {"png": png}}


def test_an_ext_that_no_name_tells_is_found_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff\xe0" + b"x" * 40)
    table = pa.table({"key": ["a"], "file": [str(tmp_path / "photo")]})
    pack(table, str(tmp_path / "out"), files=["file"], executor=LocalExecutor(1))
    assert set(tar_samples(tmp_path / "out")["a"]) == {"jpg"}


def test_csv_keys_and_a_filter_go_through(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 6, id=[f"{n:04d}" for n in range(6)])
    table = pq.read_table(index, columns=["id", "data", "big"])
    pa_csv.write_csv(table, tmp_path / "src/index.csv")
    pack_files(
        tmp_path / "src/index.csv",
        tmp_path / "out",
        files=["data"],
        inline=None,
        where="id > '0003'",
    )
    assert list(tar_samples(tmp_path / "out")) == ["0004", "0005"]


def test_a_packed_dataset_can_be_packed_again(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 15)
    pack_files(index, tmp_path / "one", samples_per_shard=4)
    pack_files(tmp_path / "one", tmp_path / "two", files=None, inline=None, samples_per_shard=7)
    assert tar_samples(tmp_path / "one") == tar_samples(tmp_path / "two")


def test_shard_size_is_never_passed_where_sizes_are_known(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    make_files(folder, 60)
    pack_files(folder / "files", tmp_path / "out", files=None, inline=None, shard_size=20_000)
    sizes = shards_of(tmp_path / "out").num_bytes
    assert sizes.max() <= 20_000
    largest_sample = 1024 + 3 * 512 + 3_000
    assert sizes[:-1].min() > 20_000 - largest_sample - 1024
    assert sum(shards_of(tmp_path / "out").samples) == 60


def test_a_sample_larger_than_the_shard_size_has_a_shard_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    make_files(folder, 9)
    (folder / "files/00004.bin").write_bytes(bytes(60_000))
    pack_files(folder / "files", tmp_path / "out", files=None, inline=None, shard_size=20_000)
    table = shards_of(tmp_path / "out")
    assert [n for n, size in zip(table.samples, table.num_bytes, strict=True) if size > 20_000] == [
        1
    ]


def test_shard_size_is_met_on_average_where_sizes_are_sampled(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 300)
    pack_files(index, tmp_path / "out", shard_size=100_000)
    sizes = shards_of(tmp_path / "out").num_bytes
    assert 0.7 < np.median(sizes) / 100_000 < 1.3


def test_samples_per_shard_wins(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 20)
    pack_files(index, tmp_path / "out", samples_per_shard=8)
    assert shards_of(tmp_path / "out").samples.tolist() == [8, 8, 4]


def test_shuffling_is_a_bijection_that_the_seed_decides(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 60)
    pack_files(index, tmp_path / "plain")
    orders = {}
    for seed in (1, 2):
        pack_files(index, tmp_path / f"s{seed}", shuffle="global", seed=seed)
        samples = tar_samples(tmp_path / f"s{seed}")
        assert samples == tar_samples(tmp_path / "plain")
        orders[seed] = list(samples)
    assert len({*map(tuple, [*orders.values(), sorted(orders[1])])}) == 3
    assert verify(str(tmp_path / "s1"), executor=LocalExecutor(1)).ok


def test_shuffled_rows_keep_their_members_and_metadata_together(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 60)
    pack_files(index, tmp_path / "out", shuffle="global", seed=3)
    for path in glob.glob(str(tmp_path / "out/shard-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row["big"] == 2**60 + int(row["id"][-5:])
            assert (row["note"] is not None) == (int(row["id"][-5:]) % 3 == 0)


def test_a_second_run_finds_nothing_to_do_and_changes_nothing(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 13)
    first = pack_files(index, tmp_path / "out")
    before = contents(tmp_path / "out")
    second = pack_files(index, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert (second.fingerprint, second.num_resumed) == (first.fingerprint, first.num_shards)


def test_progress_reports_every_sample_and_byte(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 20)
    seen: list[tuple[int, int]] = []
    pack_files(index, tmp_path / "out", report=lambda *done: seen.append(done))
    num_shards = len(shards_of(tmp_path / "out"))
    assert sum(samples for samples, _ in seen) == 20
    total = shards_of(tmp_path / "out").num_bytes.sum() - 1024 * num_shards
    assert sum(num_bytes for _, num_bytes in seen) == total


def test_a_metadata_column_named_like_a_member_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    index = make_files(tmp_path / "src", 6, bin=["x"] * 6)
    with pytest.raises(ConfigError, match="'bin' would hide the member"):
        pack_files(index, tmp_path / "out")
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard=0 must be at least 1"),
        ({"shard_size": "x"}, "shard_size='x' is no size"),
        ({"shuffle": "shard"}, "shuffle='shard' is not one of"),
        ({"on_error": "ignore"}, "on_error='ignore' is not one of"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackOptions(**options)  # type: ignore[arg-type]


def test_an_empty_index_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"key": pa.array([], pa.string()), "file": pa.array([], pa.string())})
    with pytest.raises(IndexDataError, match="no rows"):
        pack(table, str(tmp_path / "out"))
    index = make_files(tmp_path / "src", 6)
    with pytest.raises(IndexDataError, match=r"no rows.*filter"):
        pack_files(index, tmp_path / "out", where="big < 0")
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize("keys", [["cat/000", "dog/000", "egg"], ["a", "b"]])
def test_keys_of_foreign_tars_that_are_rewritten_stay_in_the_metadata(
    keys: list[str], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in keys:
            info = tarfile.TarInfo(f"{key}.txt")
            info.size = len(key)
            tar.addfile(info, BytesIO(key.encode()))
    pack(str(tmp_path / "a.tar"), str(tmp_path / "out"), executor=LocalExecutor(1))
    table = pq.read_table(tmp_path / "out" / "shard-000000.parquet")
    assert table.column(KEY).to_pylist() == [fit_key(key) for key in keys]
    if "a" in keys:
        assert table.column_names == [KEY, "txt"]
    else:
        assert table.column("key").to_pylist() == keys
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1)).ok
