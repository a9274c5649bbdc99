"""The commands as people type them: what they print, and their exit status."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from shardkit import __version__
from shardkit.cli.main import COMMANDS, main
from tests.pack.data import FILES, contents, make_files, pack_files, tar_samples
from tests.s3 import serve_http, serve_s3

ROOT = Path(__file__).parents[2]
COLUMNS = ["--files", *FILES, "--inline", "caption=txt"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit status, stdout, stderr."""

    def run_command(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([str(word) for word in words])
        return status, *capfd.readouterr()

    return run_command


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_files(tmp_path / "src", 14)


@pytest.fixture
def out(tmp_path: Path, index: Path) -> Path:
    pack_files(index, tmp_path / "out")
    return tmp_path / "out"


def test_pack_says_what_it_found_and_what_it_did(run: Run, tmp_path: Path, index: Path) -> None:
    status, stdout, stderr = run(
        "pack", index, tmp_path / "out", *COLUMNS, "--samples-per-shard", 6, "--workers", 1
    )
    assert (status, stderr) == (0, "")
    assert re.search(r"14 rows in .*index.parquet\n", stdout)
    assert re.search(r"key +id", stdout)
    assert re.search(r"14 samples in 3 shards, .* in .* s \(.* samples/s, .*/s\)", stdout)
    assert f"webdataset   {tmp_path}/out/shard-{{000000..000002}}.tar" in stdout
    assert re.search(r"fingerprint +[0-9a-f]{32}\n", stdout)
    pack_files(index, tmp_path / "same")
    assert contents(tmp_path / "out") == contents(tmp_path / "same")


def test_pack_needs_no_flag_at_all(run: Run, tmp_path: Path, index: Path) -> None:
    status, stdout, _ = run("pack", index, tmp_path / "out")
    assert status == 0
    assert "file      data: bin" in stdout
    assert len(tar_samples(tmp_path / "out")) == 14


def test_a_dry_run_stops_after_the_findings(run: Run, tmp_path: Path, index: Path) -> None:
    status, stdout, _ = run("pack", index, tmp_path / "out", "--dry-run")
    assert status == 0
    assert "14 rows" in stdout
    assert not (tmp_path / "out").exists()


def test_a_second_pack_says_that_all_was_there(run: Run, index: Path, out: Path) -> None:
    status, stdout, _ = run("pack", index, out, *COLUMNS, "--samples-per-shard", 6)
    assert status == 0
    assert "3 shards were there from an earlier run" in stdout


def test_skipped_rows_are_counted_and_pointed_at(run: Run, tmp_path: Path, index: Path) -> None:
    (tmp_path / "src/files/00002.bin").unlink()
    words = ["pack", index, tmp_path / "out", *COLUMNS, "--workers", 1]
    status, _, stderr = run(*words)
    assert status == 2
    assert re.fullmatch(r"error: .*00002.bin does not exist \(key 'sample_00002'\); .*\n", stderr)
    status, stdout, _ = run(*words[:2], tmp_path / "out2", *words[3:], "--on-error", "skip")
    assert status == 0
    assert f"1 rows were skipped: see {tmp_path}/out2/failed.parquet" in stdout


def test_a_folder_is_packed_with_its_folders_as_classes(run: Run, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for name in ("000", "001"):
            (tmp_path / "photos" / label / f"{name}.jpg").write_bytes(
                b"\xff\xd8\xff" + label.encode()
            )
    status, _, _ = run("pack", tmp_path / "photos", tmp_path / "out", "--folder-as", "label")
    assert status == 0
    found = [
        json.loads(sample["json"])["label"] for sample in tar_samples(tmp_path / "out").values()
    ]
    assert found == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pack", "{src}/nothing.parquet", "{out}x"], r"nothing\.parquet"),
        (["pack", "{index}", "{index}"], r"is a file, not a folder; name another"),
        (["pack", "{index}", "{src}"], r"is not empty .*name a new folder"),
        (["pack", "{index}", "{out}x", "--files", "nope"], r"nope"),
        (["pack", "{index}", "{out}x", "--key", "score"], r"score|key"),
        (["pack", "{index}", "{out}x", "--where", "nope > 1"], r"nope"),
        (["pack", "{index}", "{out}x", "--shard-size", "big"], r"shard_size='big' is no size"),
        (["pack", "{index}", "{out}x", "--workers", "0"], r"workers=0 must be at least 1"),
        (["pack", "{index}", "{out}", "--seed", "1"], r"already holds a packed dataset"),
        (["pack", "{index}", "{out}x", "--storage-options", "{{"], r"no JSON"),
        (["pack", "{index}", "{out}x", "--storage-options", "[]"], r"must be a JSON object"),
        (["pack", "{index}", ""], r"an empty path was given"),
        (["pack", "{index}", "http://127.0.0.1:1/out"], r"http is for reading"),
        (["pack", "", "{out}x"], r"an empty path was given"),
        (["unpack", "{index}", ""], r"an empty path was given"),
        (["unpack", "{index}", "{index}"], r"cannot make the folder .*File exists"),
        (["unpack", "{index}", "s3://bucket/out"], r"name a folder of this machine"),
        (["cat", "", "sample_00001"], r"an empty path was given"),
        (["verify", ""], r"an empty path was given"),
        (["info", "{src}/nothing"], r"nothing"),
        (["cat", "{out}", "sample_99999"], r"no sample with key 'sample_99999'"),
        (
            ["cat", "{out}", "sample_00001", "wav"],
            r"no member 'wav'; it has \['bin', 'json', 'txt'\]",
        ),
        (["cat", "{src}", "sample_00001"], r"no manifest.json"),
        (["bench", "{out}", "--seconds", "nan"], r"--seconds nan must be more than 0"),
        (["bench", "{out}", "--seconds", "0"], r"--seconds 0.0 must be more than 0"),
        (["verify", "{src}"], r"no manifest.json: it is no packed dataset"),
    ],
    ids=lambda value: " ".join(value[:1] + value[3:5]) if isinstance(value, list) else None,
)
def test_what_can_not_be_done_is_one_line_and_status_2(
    run: Run, index: Path, out: Path, words: list[str], message: str
) -> None:
    names = {"index": str(index), "src": str(index.parent), "out": str(out)}
    status, _, stderr = run(*[word.format(**names) for word in words])
    assert status == 2
    assert re.match(rf"error: .*(?s:{message})", stderr)
    assert "Traceback" not in stderr


def test_a_tilde_is_the_home_of_the_user(
    run: Run, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(index.parent)
    assert run("pack", "~/src/index.parquet", "~/out", "--workers", 1)[0] == 0
    assert run("cat", "~/out", "sample_00001")[0] == run("verify", "~/out", "--workers", 1)[0] == 0
    (tmp_path / "list.csv").write_text("id,file\n1,~/src/files/00001.bin\n")
    assert run("unpack", tmp_path / "list.csv", "~/files")[0] == 0
    assert (tmp_path / "files/1.bin").exists()
    assert run("index", "~/list.csv", "~/list.parquet", "--scratch", "~/scratch")[0] == 0
    assert run("index", "~/out/*.tar", "~/adopted", "--workers", 1)[0] == 0
    assert (tmp_path / "list.parquet").exists()
    assert (tmp_path / "scratch").exists()
    assert (tmp_path / "adopted/manifest.json").exists()
    assert run("reshard", "~/out", "~/again", "--way", "spill", "--workers", 1)[0] == 0
    assert (tmp_path / "again/manifest.json").exists()
    assert not (index.parent / "~").exists()


def test_an_output_that_can_not_be_written_is_an_error(out: Path) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "shardkit.cli.main", "info", str(out)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr == "error: cannot write to standard output: No space left on device\n"


def test_ctrl_c_while_a_command_is_being_imported_is_no_traceback() -> None:
    script = """
import signal, sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "shardkit.cli.info":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from shardkit.cli.main import main
sys.exit(main(["info", "nothing"]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (130, "interrupted\n")


def test_a_packed_dataset_behind_a_web_server_is_read_like_any_other(
    run: Run, index: Path, out: Path, tmp_path: Path
) -> None:
    with serve_http(out.parent, proxied=False) as http:
        url = f"{http.url}/out"
        assert "14 samples in 3 shards" in run("info", url)[1]
        assert "every byte is right" in run("verify", url, "--workers", 1)[1]
        assert run("unpack", url, tmp_path / "files")[0] == 0


def test_verbose_shows_where_it_happened(index: Path, out: Path) -> None:
    with pytest.raises(ValueError, match="already holds"):
        main(["--verbose", "pack", str(index), str(out), "--seed", "1"])


def test_verify_tells_right_from_wrong_by_its_status(run: Run, index: Path, out: Path) -> None:
    status, stdout, _ = run("verify", out, "--workers", 1)
    assert status == 0
    assert re.search(r"every byte is right \(14 samples in 3 shards", stdout)
    before = contents(out)
    data = bytearray((out / "shard-000001.tar").read_bytes())
    data[700] ^= 1
    (out / "shard-000001.tar").write_bytes(data)
    status, _, stderr = run("verify", out, "--workers", 1)
    assert status == 1
    assert stderr.startswith("shard-000001.tar: key 'sample_00006': the data of 'bin'")
    status, stdout, _ = run("verify", out, "--repair", index, *COLUMNS, "--workers", 1)
    assert status == 0
    assert "made again, with the bytes that were packed first: shard-000001.tar" in stdout
    assert contents(out) == before


def test_verify_of_tars_takes_braces_and_can_not_repair(run: Run, index: Path, out: Path) -> None:
    tars = f"{out}/shard-{{000000..000002}}.tar"
    assert run("verify", tars)[0] == 0
    (out / "shard-000002.tar").unlink()
    status, _, stderr = run("verify", tars, "--repair", index)
    assert status == 2
    assert "shard-000002.tar" in stderr
    assert "no shard of a packed dataset to repair" in stderr


def test_the_script_is_the_same_as_the_command(out: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/verify_shards.py"), str(out), "--workers", "1"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    (out / "shard-000000.tar.idx").unlink()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "shard-000000.tar.idx" in done.stderr
    (out / "manifest.json").unlink()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2


def test_info_tells_counts_sizes_and_schema(run: Run, out: Path) -> None:
    status, stdout, _ = run("info", out)
    assert status == 0
    assert "14 samples in 3 shards" in stdout
    assert re.search(r"bin +14 +size 0 5 50 95 100 %: ", stdout)
    assert re.search(r"note +5 ", stdout)
    assert re.search(r"json +14 = metadata", stdout)
    assert re.search(r"score +double", stdout)


def test_info_of_an_index_tells_its_findings(run: Run, index: Path) -> None:
    status, stdout, _ = run("info", index)
    assert status == 0
    assert "14 rows" in stdout


def test_cat_shows_a_sample_and_gives_a_members_bytes(
    out: Path, index: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["cat", str(out), "sample_00009"]) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert shown.startswith(f"sample_00009 in {out}/shard-000001.tar\n")
    assert re.search(r"note +6 B at [\d,]+ +xxh3 [0-9a-f]{16}", shown)
    assert f'"big": "{2**60 + 9}"' in shown
    assert main(["cat", str(out), "sample_00009", "bin"]) == 0
    assert capfdbinary.readouterr().out == (index.parent / "files/00009.bin").read_bytes()


def test_cat_finds_a_sample_by_the_users_own_key(run: Run, tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 4, id=["a/0", "a/1", "b/0", "b/1"])
    pack_files(index, tmp_path / "out", samples_per_shard=1)
    status, stdout, _ = run("cat", tmp_path / "out", "b/0")
    assert status == 0
    assert "shard-000002.tar" in stdout


def test_cat_never_gives_damaged_bytes(run: Run, out: Path) -> None:
    data = bytearray((out / "shard-000000.tar").read_bytes())
    data[700] ^= 1
    (out / "shard-000000.tar").write_bytes(data)
    status, stdout, stderr = run("cat", out, "sample_00000", "bin")
    assert (status, stdout) == (1, "")
    assert "fails its checksum" in stderr


def test_every_command_works_in_a_bucket(run: Run, tmp_path: Path) -> None:
    make_files(tmp_path / "root/bucket/src", 8)
    with serve_s3(tmp_path / "root") as s3:
        there = ["--storage-options", json.dumps(s3.storage_options)]
        source = "s3://bucket/src/index.parquet"
        assert run("pack", source, "s3://bucket/out", *there, "--workers", 1)[0] == 0
        assert run("verify", "s3://bucket/out", *there, "--workers", 1)[0] == 0
        assert "8 samples" in run("info", "s3://bucket/out", *there)[1]
        assert "note" in run("cat", "s3://bucket/out", "sample_00003", *there)[1]


def test_the_version_and_every_command_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
    stdout = capsys.readouterr().out
    assert f"shardkit {__version__}" in stdout
    assert all(re.search(rf"^ +{name} ", stdout, re.MULTILINE) for name in COMMANDS)


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(tmp_path: Path, index: Path) -> None:
    command = [sys.executable, "-m", "shardkit.cli.main", "pack", str(index)]
    piped = subprocess.run([*command, str(tmp_path / "a")], check=True, capture_output=True)
    assert piped.stderr == b""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    with subprocess.Popen([*command, str(tmp_path / "b")], stderr=theirs, stdout=subprocess.PIPE):
        os.close(theirs)
        drawn = b""
        while True:
            try:
                drawn += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert b"packing" in drawn
    assert b"samples/s" in drawn
