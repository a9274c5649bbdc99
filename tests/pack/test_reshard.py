"""A reshard has the samples of its source, those that were chosen, whole and proved."""

from __future__ import annotations

import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import ShardDataset
from shardkit.cli.main import main
from shardkit.errors import ConfigError, CorruptError, IndexDataError, NotFoundError
from shardkit.executors import LocalExecutor
from shardkit.format.keys import fit_key
from shardkit.index import AdoptOptions, adopt
from shardkit.pack import PackOptions, pack, reshard, spill, verify
from shardkit.storage.store import open_store
from tests.pack.data import FILES, contents, make_files, pack_files, tar_samples
from tests.pack.reshards import WAYS, keys_of, make_source, reshard_files, sidecar_rows


def verified(folder: Path | str) -> bool:
    return verify(str(folder), executor=LocalExecutor(1)).ok


def plain(folder: Path | str) -> dict[str, dict[str, object]]:
    """Sidecar rows by key, but for where members lie."""
    return {
        row["__key__"]: {
            name: {k: v for k, v in value.items() if k != "offset"}
            if isinstance(value, dict)
            else value
            for name, value in row.items()
        }
        for row in sidecar_rows(folder)
    }


@pytest.mark.parametrize("way", WAYS)
def test_every_sample_goes_over_with_members_metadata_and_checksums(
    tmp_path: Path, way: str
) -> None:
    source = make_source(tmp_path)
    summary = reshard_files(source, tmp_path / "out", way=way)
    assert (summary.num_samples, summary.num_shards, summary.way) == (60, 7, way)
    assert tar_samples(tmp_path / "out").items() == tar_samples(source).items()
    assert plain(tmp_path / "out") == plain(source)
    assert keys_of(tmp_path / "out") != keys_of(source)
    assert verified(tmp_path / "out")
    before, after = (
        json.loads((f / "manifest.json").read_text()) for f in (source, tmp_path / "out")
    )
    same = ("members", "metadata", "metadata_ext", "num_samples")
    assert {name: before[name] for name in same} == {name: after[name] for name in same}


def test_path_objects_do_as_their_texts_do(tmp_path: Path) -> None:
    index, one = make_files(tmp_path / "files"), LocalExecutor(1)
    pack(index, tmp_path / "packed", executor=one)
    reshard(tmp_path / "packed", tmp_path / "mixed", executor=one)
    adopted = adopt(tmp_path / "mixed" / "shard-*.tar", tmp_path / "adopted", executor=one)
    assert verify(tmp_path / "mixed", executor=one).num_samples == adopted.num_samples


@pytest.mark.parametrize("parts", [None, {"train": 0.7, "val": 0.3}])
def test_ways_and_workers_make_the_same_bytes(
    tmp_path: Path, parts: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_BATCH_BYTES", 50_000)  # four spill files
    source = make_source(tmp_path)
    reshard_files(source, tmp_path / "one", way="ranges", parts=parts)
    first = contents(tmp_path / "one")
    for way, workers in (("ranges", 2), ("spill", 1), ("spill", 2)):
        out = tmp_path / f"{way}-{workers}"
        reshard_files(source, out, way=way, workers=workers, parts=parts)
        assert contents(out) == first


@pytest.mark.parametrize("way", WAYS)
def test_unshuffled_it_keeps_the_order_and_fills_shards(tmp_path: Path, way: str) -> None:
    source = make_source(tmp_path)
    reshard_files(source, tmp_path / "out", way=way, shuffle="none", shard_size="60kb")
    assert keys_of(tmp_path / "out") == keys_of(source)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(sizes) > 2
    assert max(sizes) <= 60 << 10
    assert verified(tmp_path / "out")


def test_seeds_give_different_orders_and_one_seed_gives_one(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        reshard_files(source, tmp_path / f"{number}", seed=seed)
        orders.append(keys_of(tmp_path / f"{number}"))
    assert orders[0] == orders[1] != orders[2]


WHERES = [
    "score > 3 AND txt IS NOT NULL",
    "__key__ LIKE '%7'",
    "note IS NOT NULL",
    "list_contains(tags, 't1')",
    "score > (SELECT avg(score) FROM dataframe)",
    "score IS NULL OR big % 2 = 0",
]


@pytest.mark.parametrize("where", WHERES)
def test_where_selects_what_a_dataset_selects_to_the_sample(tmp_path: Path, where: str) -> None:
    source = make_source(tmp_path)
    dataset = ShardDataset(str(source), where=where, shuffle="none", decode=None)
    expected = [sample["__key__"] for sample in dataset]
    assert 0 < len(expected) < 60
    reshard_files(source, tmp_path / "out", where=where, shuffle="none")
    assert keys_of(tmp_path / "out") == expected
    reshard_files(source, tmp_path / "mixed", where=where)
    assert sorted(keys_of(tmp_path / "mixed")) == expected


def test_excluded_keys_are_left_out_as_a_dataset_leaves_them_out(tmp_path: Path) -> None:
    source = make_source(tmp_path, id=[f"dir/{row}" for row in range(60)])
    exclude = ["dir/3", keys_of(source)[5], "no such key"]
    dataset = ShardDataset(str(source), exclude=exclude, shuffle="none", decode=None)
    reshard_files(source, tmp_path / "out", exclude=exclude, shuffle="none", where="score > 1")
    expected = {s["__key__"] for s in dataset if (s["score"] or 0) > 1}
    assert set(keys_of(tmp_path / "out")) == expected
    assert {"dir/3", "dir/5"}.isdisjoint(row["id"] for row in sidecar_rows(tmp_path / "out"))


def test_a_subset_has_its_size_and_its_seed(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    found = []
    for number, seed in enumerate((1, 1, 2)):
        reshard_files(
            source, tmp_path / f"{number}", seed=seed, max_samples=10, where="score IS NOT NULL"
        )
        found.append(set(keys_of(tmp_path / f"{number}")))
    assert [len(keys) for keys in found] == [10, 10, 10]
    assert found[0] == found[1] != found[2]
    assert all(row["score"] is not None for row in sidecar_rows(tmp_path / "0"))
    assert reshard_files(source, tmp_path / "all", max_samples=1_000).num_samples == 60


@pytest.mark.parametrize("way", WAYS)
def test_only_the_members_that_are_kept_go_over(tmp_path: Path, way: str) -> None:
    source = make_source(tmp_path)
    reshard_files(source, tmp_path / "out", way=way, members=["TXT", "bin"])
    for key, members in tar_samples(tmp_path / "out").items():
        kept = {"bin", "txt", "json"} & set(tar_samples(source)[key])
        assert members == {ext: tar_samples(source)[key][ext] for ext in kept}
    assert verified(tmp_path / "out")


def test_a_sample_with_none_of_the_kept_members_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    with pytest.raises(IndexDataError, match=r"'sample_00001' has none of the members note; "):
        reshard_files(source, tmp_path / "out", members=["note"])
    out = tmp_path / "out"
    summary = reshard_files(source, out, members=["note"], where='"note" IS NOT NULL')
    assert summary.num_samples == 20


def test_parts_by_key_do_not_depend_on_what_else_is_there(tmp_path: Path) -> None:
    parts = {"train": 0.75, "val": 0.25}
    small = make_source(tmp_path / "small", 200, mean_bytes=50, samples_per_shard=50)
    large = make_source(
        tmp_path / "large", 400, mean_bytes=50, samples_per_shard=30, shuffle="global"
    )
    reshard_files(small, tmp_path / "a", parts=parts, samples_per_shard=40)
    reshard_files(large, tmp_path / "b", parts=parts, samples_per_shard=40, seed=5)
    of_small = {key: name for name in parts for key in keys_of(tmp_path / "a" / name)}
    of_large = {key: name for name in parts for key in keys_of(tmp_path / "b" / name)}
    assert (len(of_small), len(of_large)) == (200, 400)
    assert of_small.items() <= of_large.items()
    assert 250 < list(of_large.values()).count("train") < 350
    assert verified(tmp_path / "b/train")
    assert verified(tmp_path / "b/val")


def test_parts_by_count_are_exact_and_by_column_are_its_values(tmp_path: Path) -> None:
    splits = [["train", "val", "test_2"][row % 3] for row in range(60)]
    source = make_source(tmp_path, split=splits)
    summary = reshard_files(
        source, tmp_path / "a", parts={"x": 0.55, "y": 0.4, "z": 0.05}, parts_by="count"
    )
    assert {name: d.num_samples for name, d in summary.datasets.items()} == {
        "x": 33,
        "y": 24,
        "z": 3,
    }
    summary = reshard_files(source, tmp_path / "b", part_column="split", where="score IS NOT NULL")
    assert {name: d.num_samples for name, d in summary.datasets.items()} == {
        "test_2": 16,
        "train": 16,
        "val": 16,
    }
    for name in ("train", "val", "test_2"):
        assert {row["split"] for row in sidecar_rows(tmp_path / "b" / name)} == {name}


def test_run_again_it_finds_nothing_to_do(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    reshard_files(source, tmp_path / "out", parts={"a": 0.5, "b": 0.5})
    before = contents(tmp_path / "out")
    summary = reshard_files(source, tmp_path / "out", parts={"a": 0.5, "b": 0.5})
    assert summary.way is None
    assert summary.num_resumed == summary.num_shards
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, r"already holds a packed dataset with other options \(seed was 1 and is 2"),
        ({"where": "score > 2"}, r"already holds a packed dataset of another index"),
        ({"members": ["bin"]}, r"already holds a packed dataset of another index"),
        ({"parts": {"a": 0.5, "b": 0.5}}, r"holds 'manifest.json', which is none of the parts"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    source = make_source(tmp_path)
    reshard_files(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        reshard_files(source, tmp_path / "out", **changes)
    assert contents(tmp_path / "out") == before


def test_another_source_or_other_parts_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    other = make_source(tmp_path / "other", 61)
    reshard_files(source, tmp_path / "out", parts={"a": 0.5, "b": 0.5})
    for changes in ({"parts": {"a": 0.6, "b": 0.4}}, {"parts": {"a": 0.5, "c": 0.5}}, {}):
        with pytest.raises(ConfigError, match=r"of another index|none of the parts|is not empty"):
            reshard_files(source, tmp_path / "out", **changes)
    with pytest.raises(ConfigError, match="of another index"):
        reshard_files(other, tmp_path / "out", parts={"a": 0.5, "b": 0.5})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds 'notes.txt'"):
        reshard_files(source, tmp_path / "full")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"members": ["jpg"]}, ConfigError, r"has no member 'jpg'; it has bin, json, note, txt"),
        ({"where": "scoer > 1"}, ConfigError, r"where='scoer > 1' can't be evaluated: .*scoer"),
        ({"where": " "}, ConfigError, "where is empty"),
        ({"where": "score > 1000"}, IndexDataError, r"no sample is left of the 60 in .*score > 1"),
        ({"max_samples": 0}, ConfigError, "max_samples=0 must be at least 1"),
        ({"parts": {"a": 0.5, "b": 0.4}}, ConfigError, r"fractions of a, b sum to 0.9, not to 1"),
        ({"parts": {"a": 1.5, "b": -0.5}}, ConfigError, "a=1.5 is not between 0 and 1"),
        ({"parts": {"../a": 1.0}}, ConfigError, "'../a' can't name a part: it becomes a folder"),
        ({"parts": {"a": 0.9999, "b": 0.0001}}, IndexDataError, "'b' gets none of 60 samples"),
        ({"parts": {"a": 1.0}, "part_column": "id"}, ConfigError, "parts or part_column, not both"),
        ({"parts": {"a": 1.0}, "parts_by": "size"}, ConfigError, "parts_by='size' is not one of"),
        ({"part_column": "spilt"}, ConfigError, "'spilt' is no column; there are __key__, "),
        ({"part_column": "score"}, ConfigError, "'score' holds double, which can't name parts"),
        ({"part_column": "caption"}, IndexDataError, "null for the key 'sample_00004'"),
        ({"way": "fast"}, ConfigError, "way='fast' is not one of 'auto', 'ranges', 'spill'"),
        ({"on_error": "skip"}, ConfigError, "a reshard loses no sample unasked"),
        ({"scratch": "s3://b/x"}, ConfigError, "scratch='s3://b/x' must be a local folder"),
        ({"way": "spill", "part": (0, 2)}, ConfigError, "can't share a spill"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    source = make_source(tmp_path)
    if changes.get("part_column") == "caption":  # captions are members, unless kept as metadata
        shutil.rmtree(source)
        pack_files(tmp_path / "src/index.parquet", source, inline=None)
    with pytest.raises(error, match=message):
        reshard_files(source, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 3)
    with pytest.raises(ConfigError, match="is no packed dataset and no tars; pack it first"):
        reshard_files(index, tmp_path / "out")
    with pytest.raises(NotFoundError):
        reshard_files(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        reshard_files(make_source(tmp_path), tmp_path / "file")


def flip(path: Path, key: str, ext: str) -> None:
    """Turn a bit in the middle of a member."""
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{key}.{ext}")
        at = member.offset_data + member.size // 2
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("way", WAYS)
def test_a_flipped_byte_is_an_error_that_names_shard_and_key_and_is_never_copied(
    tmp_path: Path, way: str
) -> None:
    source = make_source(tmp_path)
    whole = (source / "shard-000003.tar").read_bytes()
    flip(source / "shard-000003.tar", "sample_00023", "bin")
    with pytest.raises(CorruptError, match=r"shard-000003.tar is damaged \(key 'sample_00023'\)"):
        reshard_files(source, tmp_path / "out", way=way)
    assert not (tmp_path / "out/manifest.json").exists()
    assert "sample_00023" not in tar_samples(tmp_path / "out")
    (source / "shard-000003.tar").write_bytes(whole)
    reshard_files(source, tmp_path / "out", way=way)
    reshard_files(source, tmp_path / "again", way=way)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


@pytest.mark.parametrize("way", WAYS)
def test_a_cut_or_a_lost_tar_is_an_error(tmp_path: Path, way: str) -> None:
    source = make_source(tmp_path)
    tar = source / "shard-000002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match=r"shard-000002.tar"):
        reshard_files(source, tmp_path / "out", way=way)
    tar.unlink()
    with pytest.raises(NotFoundError, match=r"shard-000002.tar"):
        reshard_files(source, tmp_path / "out", way=way)
    assert not (tmp_path / "out/manifest.json").exists()


def foreign_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, members in samples.items():
            for ext, data in members.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def make_foreign(folder: Path) -> dict[str, dict[str, bytes]]:
    folder.mkdir(parents=True)
    everything = {
        f"./dir {row % 2}/{row:04d}": {
            "seg.png": bytes([row]) * (300 + row),
            **({"cls": str(row).encode()} if row % 4 else {}),
            "json": json.dumps({"n": row}).encode(),
        }
        for row in range(40)
    }
    keys = list(everything)
    for number in range(4):
        some = {key: everything[key] for key in keys[10 * number : 10 * number + 10]}
        foreign_tar(folder / f"part-{number}.tar", some)
    return everything


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("adopted", [False, True])
def test_tars_that_others_made_go_over_and_keep_their_keys(
    tmp_path: Path, way: str, adopted: bool
) -> None:
    samples = make_foreign(tmp_path / "tars")
    source = str(tmp_path / "tars/part-{0..3}.tar")
    if adopted:
        adopt(source, str(tmp_path / "adopted"), store=open_store(), executor=LocalExecutor(1))
        source = str(tmp_path / "adopted")
    reshard_files(source, tmp_path / "out", way=way)
    expected = {fit_key(s["__key__"]): s for s in ShardDataset(source, shuffle="none", decode=None)}
    found = {s["__key__"]: s for s in ShardDataset(str(tmp_path / "out"), decode=None)}
    assert len(found) == 40
    for key, sample in expected.items():
        names = [name for name in sample if name in ("seg.png", "cls", "json")]
        assert {name: found[key][name] for name in names} == {n: sample[n] for n in names}
    kept = {row["key"].removeprefix("./") for row in sidecar_rows(tmp_path / "out")}
    assert kept == {key.removeprefix("./") for key in samples}
    assert verified(tmp_path / "out")


@pytest.mark.parametrize("way", WAYS)
def test_an_adopted_tar_that_was_changed_since_is_an_error(tmp_path: Path, way: str) -> None:
    """By its headers alone nothing proves its bytes, and a copy of the index is older than it."""
    make_foreign(tmp_path / "tars")
    adopted = str(tmp_path / "adopted")
    options = AdoptOptions(reading="headers")
    adopt(
        str(tmp_path / "tars/part-{0..3}.tar"),
        adopted,
        store=open_store(),
        executor=LocalExecutor(1),
        options=options,
    )
    reshard_files(adopted, tmp_path / "before", way=way)
    tar = tmp_path / "tars/part-2.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptError, match=r"part-2.tar has changed since it was adopted"):
        reshard_files(adopted, tmp_path / "after", way=way)


def test_a_reshard_is_repaired_from_its_source(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    out = tmp_path / "out"
    reshard_files(source, out, where="score > 2")
    whole = contents(out)
    (out / "shard-000001.tar").write_bytes(b"broken")
    arguments = ["verify", str(out), "--repair", str(source), "--where", "score > 2", "--quiet"]
    assert main(arguments) == 0
    assert contents(out) == whole


def test_parts_of_an_array_job_make_the_dataset_together(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    parts = {"train": 0.7, "val": 0.3}
    reshard_files(source, tmp_path / "whole", parts=parts)
    for number in (2, 0, 1):
        summary = reshard_files(source, tmp_path / "out", parts=parts, part=(number, 3))
        assert (summary.num_missing == 0) == (number == 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_shuffled_pack_of_a_packed_dataset_is_what_a_reshard_is(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    options = PackOptions(samples_per_shard=9, shuffle="global", seed=1)
    pack(str(source), str(tmp_path / "a"), options=options, executor=LocalExecutor(1))
    reshard_files(source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_dictionary_columns_of_an_index_are_shuffled_too(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 30)
    table = pq.read_table(index)
    labels = pa.array([f"label {row}" for row in range(30)]).dictionary_encode()
    pq.write_table(table.append_column("label", labels), index, row_group_size=10)
    pack_files(index, tmp_path / "packed", shuffle="global", files=FILES)
    found = {row["__key__"]: row["label"] for row in sidecar_rows(tmp_path / "packed")}
    assert found == {f"sample_{row:05d}": f"label {row}" for row in range(30)}


def test_the_command_plans_does_and_sums_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_source(tmp_path), tmp_path / "out"
    (tmp_path / "gone.txt").write_text("sample_00001\n\nsample_00002\n")
    arguments = ["reshard", str(source), str(out), "--samples-per-shard", "9", "--workers", "1"]
    arguments += ["--exclude", str(tmp_path / "gone.txt"), "--members", "bin,txt", "--quiet"]
    arguments += ["--parts", "train=0.8,val=0.2", "--parts-by", "count"]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "58 of 60 samples" in said
    assert f"{out}/train: 46 samples in 6 shards" in said
    assert "→ ranges" in said
    assert "  spill" in said
    assert "about" in said
    assert not out.exists()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "58 samples in 8 shards" in said
    assert "moved by ranges" in said
    assert f"ShardDataset('{out}/val')" in said
    for wrong in ("train", "train=x", "train=0.5,train=0.5"):
        assert main([*arguments[:3], "--parts", wrong]) == 2
        assert "write each part once, as in train=0.9,val=0.1" in capsys.readouterr().err
