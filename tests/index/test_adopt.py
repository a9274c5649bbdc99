"""Adopted tars are a dataset like any other, and not a byte of them is changed."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shardkit import ShardDataset, World
from shardkit.cli.main import main
from shardkit.errors import ConfigError, CorruptError, IndexDataError, StoreError
from shardkit.executors import LocalExecutor
from shardkit.index import AdoptOptions, AdoptSummary, MetadataChoice, adopt, open_index
from shardkit.pack import PackOptions, pack, verify
from tests.index.foreign import fields_of, make_tars, tree
from tests.index.tar_zoo import FOREIGN, member, write_tar
from tests.s3 import S3Endpoint, serve_s3

Sample = dict[str, Any]


def adopted(source: Path | str, out: Path | None = None, **options: Any) -> AdoptSummary:
    """Adopt with one process, as ``reading``, ``source=``, ``columns=`` say."""
    metadata = MetadataChoice(options.pop("metadata", None), options.pop("columns", None))
    return adopt(
        str(source),
        None if out is None else str(out),
        storage_options=options.pop("storage_options", None),
        executor=LocalExecutor(options.pop("workers", 1)),
        options=AdoptOptions(options.pop("reading", "auto"), metadata),
    )


def samples(url: Path | str, **options: Any) -> list[Sample]:
    dataset = ShardDataset(str(url), shuffle="none", decode=None, **options)
    return [{k: bytes_of(v) for k, v in s.items() if k != "__url__"} for s in dataset]


def bytes_of(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


# --- any tar


@pytest.mark.parametrize("reading", ["headers", "whole"])
@pytest.mark.parametrize("name", [name for name in FOREIGN if name not in ("empty", "gzipped")])
def test_any_tar_reads_as_it_did_before_it_was_adopted(
    name: str, reading: str, tmp_path: Path
) -> None:
    path = tmp_path / "tars" / "x.tar"
    path.parent.mkdir()
    FOREIGN[name](path)
    before, content = samples(path), path.read_bytes()
    plain = ShardDataset(str(path)).stream.source.fingerprint
    summary = adopted(path, tmp_path / "out", reading=reading)
    assert samples(tmp_path / "out") == before
    assert path.read_bytes() == content
    assert summary.fingerprint == plain
    assert summary.num_proved == (reading == "whole")
    report = verify(str(tmp_path / "out"), executor=LocalExecutor(1))
    assert report.ok
    assert report.num_unproved == (reading == "headers")


def test_a_tar_without_samples_is_a_shard_without_samples(tmp_path: Path) -> None:
    make_tars(tmp_path, 1)
    write_tar(tmp_path / "00001.tar", [])
    assert adopted(tmp_path).num_samples == 20
    assert len(samples(tmp_path)) == 20
    assert verify(str(tmp_path), executor=LocalExecutor(1)).ok


@pytest.mark.parametrize("reading", ["headers", "whole", "auto"])
def test_a_compressed_tar_is_refused_with_what_to_do(reading: str, tmp_path: Path) -> None:
    FOREIGN["gzipped"](tmp_path / "x.tar")
    with pytest.raises(IndexDataError, match=r"x\.tar is compressed \(gzip\).* unpack it"):
        adopted(tmp_path / "x.tar", reading=reading)


@pytest.mark.parametrize("reading", ["headers", "whole"])
def test_a_cut_tar_ends_the_adoption_and_nothing_looks_finished(
    reading: str, tmp_path: Path
) -> None:
    make_tars(tmp_path)
    path = tmp_path / "00001.tar"
    os.truncate(path, 5_000)
    with pytest.raises(CorruptError, match=r"00001\.tar.* fetch it again"):
        adopted(tmp_path, reading=reading)
    assert not (tmp_path / "manifest.json").exists()


def test_a_tar_that_may_have_been_cut_between_members_is_named(tmp_path: Path) -> None:
    FOREIGN["no end marker"](tmp_path / "x.tar")
    assert adopted(tmp_path / "x.tar").without_end == ("x.tar",)


def test_a_member_that_fails_the_checksum_in_its_own_header_is_named(tmp_path: Path) -> None:
    rows = [{"id": f"{i:03d}", "b": os.urandom(900)} for i in range(5)]
    pack(rows, str(tmp_path / "packed"), files=["b=bin"], executor=LocalExecutor(1))
    tar = tmp_path / "x.tar"
    data = bytearray((tmp_path / "packed" / "shard-000000.tar").read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptError, match=r"'000': the data of 'bin' fails the checksum in its"):
        adopted(tar, reading="whole")


# --- where it is written


def test_beside_the_tars_or_elsewhere_the_same_samples_by_every_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = make_tars(tmp_path / "tars")
    content = tree(tars)
    before = samples(tars / "{00000..00002}.tar")
    monkeypatch.chdir(tmp_path)
    for source in ("tars/{00000..00002}.tar", "tars/*.tar", "tars", "tars/"):
        out = tmp_path / f"out{len(source)}"
        adopted(source, out)
        assert samples(out) == before
    assert tree(tars) == content
    adopted("tars")
    assert samples(tars) == before
    assert {name: tree(tars)[name] for name in content} == content


def test_tars_of_several_folders_are_named_below_what_they_share(tmp_path: Path) -> None:
    make_tars(tmp_path / "a", 1)
    make_tars(tmp_path / "b", 2, rows=3)
    adopted(f"{tmp_path}/a/00000.tar::{tmp_path}/b/00001.tar", tmp_path / "out")
    assert (tmp_path / "out" / "b" / "00001.tar.idx").exists()
    assert len(samples(tmp_path / "out")) == 23
    with pytest.raises(ConfigError, match="named twice"):
        adopted(f"{tmp_path}/a/00000.tar::{tmp_path}/a/00000.tar", tmp_path / "other")


def test_what_others_wrote_beside_the_tars_is_left_alone(tmp_path: Path) -> None:
    tars = make_tars(tmp_path, beside=True)  # img2dataset's own tables
    (tars / "00000_stats.json").write_text("{}")
    before = tree(tars)
    adopted(tars / "{00000..00002}.tar")
    after = tree(tars)
    assert {name: after[name] for name in before} == before


def test_an_idx_that_says_the_same_stays_and_another_is_refused(tmp_path: Path) -> None:
    tars = make_tars(tmp_path / "tars", 1)
    adopted(tars, tmp_path / "out")
    idx = (tmp_path / "out" / "00000.tar.idx").read_bytes()
    (tars / "00000.tar.idx").write_bytes(idx)  # as energon prepare does
    adopted(tars / "*.tar")
    for name in ("manifest.json", "00000.tar.parquet"):
        (tars / name).unlink()
    (tars / "00000.tar.idx").write_bytes(idx[:-8])
    with pytest.raises(ConfigError, match=r"00000\.tar\.idx is there, and has other offsets"):
        adopted(tars / "*.tar")
    assert (tars / "00000.tar.idx").read_bytes() == idx[:-8]


def test_what_is_no_tars_or_a_packed_dataset_is_refused(tmp_path: Path) -> None:
    tars = make_tars(tmp_path / "tars", 1)
    pack(str(tars), str(tmp_path / "packed"), executor=LocalExecutor(1))
    with pytest.raises(ConfigError, match="is a packed dataset: it has all"):
        adopted(tmp_path / "packed")
    with pytest.raises(ConfigError, match="already holds a packed dataset"):
        adopted(tars, tmp_path / "packed")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is no tars, so there is nothing to adopt"):
        adopted(tmp_path / "a.jpg")


# --- everything works on it


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tars(tmp_path_factory.mktemp("laion"), 5, 21)
    adopted(folder, metadata="json")
    return folder


def test_it_has_a_length_and_samples_by_number_and_columns(laion: Path) -> None:
    dataset = ShardDataset(str(laion), shuffle="none", decode=None)
    assert (dataset.num_samples, len(dataset)) == (105, 105)
    sample = dataset[22]
    assert sample is not None
    wanted = fields_of(1, 1) | {"exif": '{"Make": "x"}'}
    assert {name: sample[name] for name in wanted} == wanted
    with pytest.raises(IndexError):
        dataset[105]


@pytest.mark.parametrize("shuffle", ["none", "shard", "buffer", "global"])
def test_every_sample_once_and_a_state_goes_on_with_other_ranks(laion: Path, shuffle: Any) -> None:
    def dataset(rank: int, size: int) -> ShardDataset:
        world = World(rank=rank, world_size=size)
        return ShardDataset(str(laion), shuffle=shuffle, decode=None, world=world, buffer_size=30)

    whole = dataset(0, 1)
    keys = [sample["__key__"] for sample in itertools.islice(whole, 40)]
    state = whole.state_dict()
    for rank in range(3):
        part = dataset(rank, 3)
        part.load_state_dict(state)
        keys += [sample["__key__"] for sample in part]
    assert Counter(keys) == Counter(f"{t:03d}{r:04d}" for t in range(5) for r in range(21))


def test_a_filter_on_the_jsons_fields_is_exact(laion: Path) -> None:
    where = "caption LIKE '%dog%' AND width < 110 AND similarity > 0.3"
    dataset = ShardDataset(str(laion), where=where, shuffle="none", decode=None)
    wanted = [f"{t:03d}{r:04d}" for t in range(5) for r in (3, 6, 9)]
    assert len(dataset) == 15
    assert [sample["__key__"] for sample in dataset] == wanted


def test_a_state_of_the_plain_tars_goes_on_when_they_are_adopted(tmp_path: Path) -> None:
    tars = make_tars(tmp_path / "tars")
    plain = ShardDataset(str(tars / "*.tar"), decode=None)
    before = [sample["__key__"] for sample in itertools.islice(plain, 17)]
    adopted(tars, tmp_path / "out")
    dataset = ShardDataset(str(tmp_path / "out"), decode=None)
    dataset.load_state_dict(plain.state_dict())
    after = [sample["__key__"] for sample in dataset]
    assert len(set(before + after)) == len(before + after) == 60


def test_it_packs_into_shards_with_the_same_members(laion: Path, tmp_path: Path) -> None:
    index = open_index(str(laion))
    assert [column.name for column in index.findings.files] == ["jpg", "json", "txt"]
    summary = pack(
        str(laion),
        str(tmp_path / "out"),
        metadata=["caption"],
        options=PackOptions(samples_per_shard=50),
        executor=LocalExecutor(1),
    )
    assert summary.num_samples == 105
    ours = samples(tmp_path / "out", members=["jpg", "txt"], metadata=[])
    assert ours == samples(laion, members=["jpg", "txt"], metadata=[])


def test_the_commands_speak_of_it(laion: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["index", str(laion), "--metadata-from", "json", "--quiet"]) == 0
    assert main(["info", str(laion)]) == 0
    assert main(["verify", str(laion), "--workers", "1", "--quiet"]) == 0
    assert main(["cat", str(laion), "0010002"]) == 0
    out = capsysbinary.readouterr().out.decode()
    assert "5 tars were done by an earlier run" in out
    assert "5 of them read whole (their members have checksums)" in out
    assert "every byte is right (105 samples in 5 shards" in out
    assert '"caption": "a photo of cat 2"' in out
    assert main(["cat", str(laion), "0010002", "txt"]) == 0
    assert capsysbinary.readouterr().out == b"a photo of cat 2"
    assert main(["index", str(laion), "--where", "width > 1"]) == 2
    assert main(["index", f"{laion}/*.tar", "--dry-run"]) == 0
    assert b"json: json" in capsysbinary.readouterr().out


# --- metadata


def test_the_tables_of_img2dataset_are_columns_too(tmp_path: Path) -> None:
    tars = make_tars(tmp_path, beside=True)
    adopted(tars / "*.tar", metadata="parquet", columns=("caption", "width", "exif"))
    found = samples(tars)
    assert [s["caption"] for s in found] == [
        fields_of(t, r)["caption"] for t in range(3) for r in range(20)
    ]
    assert found[1]["exif"] == '{"Make": "x"}'
    assert "url" not in found[0]
    assert ShardDataset(str(tars), where="width = 105").num_samples == 3


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, None, 2], [1, None, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([True, None], [True, None]),
        ([True, 1], ["true", "1"]),
        ([1, "007"], ["1", "007"]),
        ([2**60, 1], [2**60, 1]),
        ([2**60, 0.5], [str(2**60), "0.5"]),
        ([2**80, 1], [str(2**80), "1"]),
        ([[1, 2], None], ["[1, 2]", None]),
        (["2024-01-01", "x"], ["2024-01-01", "x"]),
        (["\ud800 half", "ü"], ["? half", "ü"]),
        ([None, None], [None, None]),
    ],
)
def test_types_are_those_of_all_tars_together_in_any_order(
    values: list[Any], wanted: list[Any], tmp_path: Path
) -> None:
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        for number, value in enumerate(values[::order]):
            data = json.dumps({"v": value}).encode()
            write_tar(folder / f"{number}.tar", [member(f"{number}.json", data)])
        adopted(folder, metadata="json")
        found = [sample["v"] for sample in samples(folder)][::order]
        assert found == wanted
        assert [type(v) for v in found] == [type(v) for v in wanted]
        first = tree(folder)
        adopted(folder, metadata="json")
        assert tree(folder) == first


def test_a_json_that_is_no_object_leaves_its_columns_empty_and_is_counted(tmp_path: Path) -> None:
    texts = [b'{"a": 1}', b"[1]", b"{oops", b"\xff\xfe", b"[" * 100_000, b'{"b": "x"}']
    entries = [member(f"{i}.json", text) for i, text in enumerate(texts)] + [member("6.txt")]
    write_tar(tmp_path / "x.tar", entries)
    assert adopted(tmp_path, metadata="json").num_without_metadata == 5
    found = samples(tmp_path)
    assert [(s["a"], s["b"]) for s in found] == [(1, None), *[(None, None)] * 4, (None, "x"),
                                                 (None, None)]  # fmt: skip


def test_a_field_that_would_hide_a_member_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    data = json.dumps({"txt": "x", "width": 5}).encode()
    write_tar(tmp_path / "x.tar", [member("a.json", data), member("a.txt")])
    with pytest.raises(ConfigError, match=r"'txt' would hide the member.*--meta"):
        adopted(tmp_path, metadata="json")
    adopted(tmp_path, metadata="json", columns=("width",))
    assert samples(tmp_path)[0]["width"] == 5


# --- keys


def test_a_key_that_repeats_is_told_with_both_places_and_does_not_hinder_reading(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [member(f"{name}0.jpg"), member("same.jpg")])
    summary = adopted(tmp_path)
    assert summary.repeated == (
        f"the key 'same' repeats: sample 1 of {tmp_path}/a.tar and sample 1 of {tmp_path}/b.tar"
    )
    assert [s["__key__"] for s in samples(tmp_path)] == ["a0", "same", "b0", "same"]
    assert verify(str(tmp_path), executor=LocalExecutor(1)).ok


# --- changes


@pytest.mark.parametrize("reading", ["headers", "whole"])
def test_a_tar_that_changed_is_noticed_and_only_it_is_adopted_again(
    reading: str, tmp_path: Path
) -> None:
    tars = make_tars(tmp_path / "tars")
    out = tmp_path / "out"
    adopted(tars, out, reading=reading)
    path = tars / "00001.tar"
    data = bytearray(path.read_bytes())
    data[512:522] = b"0123456789"  # of the first member, in place
    path.write_bytes(data)
    said = "has changed since it was adopted" if reading == "headers" else "fails its checksum"
    with pytest.raises(CorruptError, match=rf"00001\.tar.*{said}"):
        samples(out)
    (problem,) = verify(str(out), executor=LocalExecutor(1)).problems
    assert problem.shard == "00001.tar"
    assert problem.key == (None if reading == "headers" else "0010000")
    assert adopted(tars, out, reading=reading).num_resumed == 2
    assert samples(out)[20]["jpg"][:10] == b"0123456789"


def test_other_members_in_the_same_place_are_named_by_verify(tmp_path: Path) -> None:
    tars = make_tars(tmp_path / "tars")
    adopted(tars, tmp_path / "out", reading="whole")
    make_tars(tmp_path / "more", 3, 25)
    os.replace(tmp_path / "more" / "00002.tar", tars / "00002.tar")
    (problem,) = verify(str(tmp_path / "out"), executor=LocalExecutor(1)).problems
    assert (problem.shard, problem.key) == ("00002.tar", None)
    assert "it has 25 samples where there were 20" in problem.text
    with pytest.raises(CorruptError, match=r"00002\.tar has .* bytes instead of"):
        samples(tmp_path / "out")


def test_tars_that_came_and_went_are_seen_when_it_is_run_again(tmp_path: Path) -> None:
    tars = make_tars(tmp_path, 4)
    first = adopted(tars / "{00000..00002}.tar")
    second = adopted(tars)
    assert (second.num_resumed, second.num_shards) == (3, 4)
    assert second.fingerprint != first.fingerprint
    (tars / "00000.tar").unlink()
    assert adopted(tars).num_samples == 60
    assert len(samples(tars)) == 60


# --- far tars


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("s3")
    make_tars(root / "bucket" / "small", 3, 20)
    make_tars(root / "bucket" / "films", 2, 6, num_bytes=3 << 20)
    return root


@pytest.fixture(scope="module")
def s3(bucket: Path) -> Any:
    with serve_s3(bucket) as endpoint:
        yield endpoint


def bytes_asked(s3: S3Endpoint, since: int) -> int:
    """Bytes of the tars' ranges that were asked for; a whole object counts as a gigabyte."""
    total = 0
    for request in s3.requests[since:]:
        if request.method == "GET" and request.path.endswith(".tar"):
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or "")
            total += int(found[2]) - int(found[1]) + 1 if found else 1 << 30
    return total


def test_of_large_members_far_away_only_headers_are_read(bucket: Path, s3: S3Endpoint) -> None:
    since = len(s3.requests)
    url, options = "s3://bucket/films/{00000..00001}.tar", s3.storage_options
    summary = adopted(url, storage_options=options, metadata="json")
    assert (summary.num_samples, summary.num_proved) == (12, 0)
    size = sum(path.stat().st_size for path in (bucket / "bucket" / "films").glob("*.tar"))
    assert bytes_asked(s3, since) < size / 20
    dataset = ShardDataset(
        "s3://bucket/films/",
        where="width >= 104",
        shuffle="none",
        decode=None,
        storage_options=options,
        cache_dir=str(bucket / "cache"),
    )
    assert [s["__key__"] for s in dataset] == ["0000004", "0000005", "0010004", "0010005"]
    assert verify("s3://bucket/films/", executor=LocalExecutor(1), storage_options=options).ok


def test_of_small_members_far_away_the_tars_are_read_whole_and_proved(
    bucket: Path, s3: S3Endpoint, tmp_path: Path
) -> None:
    url, options = "s3://bucket/small/{00000..00002}.tar", s3.storage_options
    summary = adopted(url, tmp_path / "out", storage_options=options)
    assert summary.num_proved == 3
    read = {"storage_options": options, "cache_dir": str(tmp_path / "cache")}
    found = samples(tmp_path / "out", **read)
    assert found == samples(bucket / "bucket" / "small" / "{00000..00002}.tar")
    assert verify(str(tmp_path / "out"), executor=LocalExecutor(1), storage_options=options).ok


def test_a_far_tar_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    make_tars(tmp_path / "bucket" / "x")
    with serve_s3(tmp_path) as s3:
        read = {"storage_options": s3.storage_options}
        out = tmp_path / "out"
        adopted("s3://bucket/x/*.tar", out, reading="headers", **read)
        path = tmp_path / "bucket" / "x" / "00000.tar"
        data = bytearray(path.read_bytes())
        data[512] ^= 1
        path.write_bytes(data)
        time.sleep(0.05)
        with pytest.raises(CorruptError, match="has changed since it was adopted"):
            samples(out, cache_dir=str(tmp_path / "cache"), **read)


def test_a_folder_that_can_not_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    make_tars(tmp_path / "tars", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreError, ConfigError), match="file"):
        adopted(tmp_path / "tars", tmp_path / "file")


# --- determinism, kills


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    tars = make_tars(tmp_path / "tars", 9)
    for workers in (1, 3):
        adopted(tars, tmp_path / str(workers), workers=workers, metadata="json")
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def test_killed_and_run_again_it_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    make_tars(tmp_path / "bucket" / "x", 40, 5)
    out, whole = tmp_path / "out", tmp_path / "whole"
    with serve_s3(tmp_path, latency_s=0.05) as s3:
        options = json.dumps(s3.storage_options)
        url = "s3://bucket/x/{00000..00039}.tar"
        command = [sys.executable, "-m", "shardkit.cli.main", "index", url, str(out), "--quiet",
                   "--workers", "2", "--storage-options", options]  # fmt: skip
        kills = 0
        for enough in (3, 18):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while len(list(out.glob("*.tar.parquet"))) < enough and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (out / "manifest.json").exists() or not kills
        assert kills
        summary = adopted(url, out, storage_options=s3.storage_options)
        assert 0 < summary.num_resumed < 40
        adopted(url, whole, storage_options=s3.storage_options)
    left = {name: data for name, data in tree(out).items() if ".shardkit-aside-" not in name}
    assert left == tree(whole)


def test_parts_at_once_write_the_bytes_of_one_run_and_the_last_publishes(tmp_path: Path) -> None:
    tars, out = make_tars(tmp_path / "tars", 9), tmp_path / "out"
    adopted(tars, tmp_path / "whole", metadata="json")
    command = [sys.executable, "-m", "shardkit.cli.main", "index", str(tars), str(out), "--quiet",
               "--workers", "1", "--metadata-from", "json", "--part"]  # fmt: skip
    processes = [
        subprocess.Popen([*command, f"{part}/3"], stdout=subprocess.PIPE) for part in range(3)
    ]
    said = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert any("ShardDataset(" in text for text in said)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_part_that_was_lost_is_done_by_a_run_of_all(tmp_path: Path) -> None:
    tars, out = make_tars(tmp_path / "tars", 5), tmp_path / "out"
    adopted(tars, tmp_path / "whole")
    one = LocalExecutor(1)
    parts = [adopt(str(tars), str(out), executor=one, part=(i, 3)) for i in (0, 2)]
    assert [part.num_missing for part in parts] == [3, 2]
    assert [part.num_shards for part in parts] == [2, 1]
    assert not (out / "manifest.json").exists()
    summary = adopt(str(tars), str(out), executor=one)
    assert (summary.num_resumed, summary.num_missing) == (3, 0)
    assert tree(out) == tree(tmp_path / "whole")


def test_parts_are_of_tars_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "i.csv").write_text("id,x\n1,2\n")
    assert (
        main(["index", str(tmp_path / "i.csv"), str(tmp_path / "o.parquet"), "--part", "0/2"]) == 2
    )
    assert "--part is for tars that are adopted" in capsys.readouterr().err


def test_the_sidecar_says_what_was_read(tmp_path: Path) -> None:
    tars = make_tars(tmp_path, 1)
    adopted(tars, tmp_path / "out", reading="headers")
    table = pq.read_table(tmp_path / "out" / "00000.tar.parquet")
    assert table.column("jpg").combine_chunks().field(2).null_count == 20
