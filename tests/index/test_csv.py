"""CSV: types that keep the text."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import IndexDataError
from shardkit.index import open_index
from tests.index.build import all_keys


def read(path: Path, text: str | bytes, **options: Any) -> pa.Table:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_index(path, scratch=str(path.parent / "s"), files=[], **options).read(0).metadata


def column(path: Path, cells: list[str]) -> list[Any]:
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["id", "x"], *enumerate(cells)])
    index = open_index(path, scratch=str(path.parent / "s"), files=[], key="id")
    return list(index.read(0).metadata.column("x").to_pylist())


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["0001", "0002"], ["0001", "0002"]),
        (["1", "22", "-3"], [1, 22, -3]),
        (["1", "+2"], ["1", "+2"]),
        (["9007199254740993", "-9223372036854775808"], [2**53 + 1, -(2**63)]),
        (["1", "9223372036854775808"], ["1", "9223372036854775808"]),
        (["1.5", "9007199254740993"], ["1.5", "9007199254740993"]),
        (["1.5", "999999999999999", "1e20"], [1.5, 999999999999999.0, 1e20]),
        (["1.5", "2", "1e-3"], [1.5, 2.0, 0.001]),
        (["1.5", "01.5"], ["1.5", "01.5"]),
        (["true", "False"], [True, False]),
        (["2024-01-01", "2024-01-02 10:00"], ["2024-01-01", "2024-01-02 10:00"]),
        (["NA", "null", "None"], ["NA", "null", "None"]),
        (["", "x"], ["", "x"]),
        (["line\nbreak", 'quo"te, comma'], ["line\nbreak", 'quo"te, comma']),
        (["1_000", "0x10"], ["1_000", "0x10"]),
    ],
)
def test_a_column_is_numbers_only_if_they_print_alike(
    cells: list[str], expected: list[Any], tmp_path: Path
) -> None:
    assert column(tmp_path / "i.csv", cells) == expected


def test_keys_with_leading_zeros_stay_strings(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("key,url\n0001,s3://b/1.jpg\n0002,s3://b/2.jpg\n")
    assert all_keys(open_index(tmp_path / "i.csv", scratch=str(tmp_path))) == ["0001", "0002"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("01239.-+eE naN,\"'\n;é"), max_size=6), min_size=1, max_size=8)
)
def test_whole_numbers_and_text_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    found = column(tmp_path_factory.mktemp("csv") / "i.csv", cells)
    if all(isinstance(value, int) for value in found):
        found = [str(value) for value in found]
    if not any(isinstance(value, float) for value in found):
        assert found == [cell.replace("\r\n", "\n") for cell in cells]
    else:
        assert [str(float(c)) for c in cells if c] == [str(v) for v in found if v is not None]


def test_an_empty_cell_is_null_and_a_quoted_one_is_empty(tmp_path: Path) -> None:
    table = read(tmp_path / "i.csv", 'a,b,n\nx,,1\ny,"",\n')
    assert table.to_pydict() == {"a": ["x", "y"], "b": [None, ""], "n": [1, None]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str, tmp_path: Path) -> None:
    text = f"id{delimiter}text\n1{delimiter}a b\n2{delimiter}c\n"
    assert read(tmp_path / "i.csv", text).to_pydict() == {"id": [1, 2], "text": ["a b", "c"]}


def test_byte_order_marks_and_windows_line_ends_are_no_part_of_the_data(tmp_path: Path) -> None:
    table = read(tmp_path / "i.csv", b"\xef\xbb\xbfid,t\r\n1,a\r\n2,b\r\n")
    assert table.to_pydict() == {"id": [1, 2], "t": ["a", "b"]}


def test_a_type_holds_for_the_whole_file(tmp_path: Path) -> None:
    """A word on the last of many lines makes the column text."""
    rows = "".join(f"{i},{i:04d}\n" for i in range(1000, 400_000))
    table = read(tmp_path / "i.csv", f"id,n\n{rows}400000,end\n")
    assert table.schema.field("n").type == pa.string()
    assert table.column("n")[0].as_py() == "1000"


def test_broken_files_are_refused_with_the_line_or_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(IndexDataError, match=r"(?s)i\.csv: .*Expected 2 columns, got 3.*header"):
        read(tmp_path / "i.csv", "a,b\n1,2\n1,2,3\n")
    with pytest.raises(IndexDataError, match=r"UTF-?8.*iconv"):
        read(tmp_path / "i.csv", b"a,b\n1,\xe9t\xe9\n")
    with pytest.raises(IndexDataError, match="two columns 'a'"):
        read(tmp_path / "i.csv", "a,a\n1,2\n")
    with pytest.raises(IndexDataError, match="is empty"):
        read(tmp_path / "i.csv", "")


def test_a_reader_that_stops_early_leaves_no_thread_that_aborts_the_process(
    tmp_path: Path,
) -> None:
    """The rest of the stream still comes while the error is raised and the process ends."""
    script = f"""
import io, time
from shardkit.index.csvs import csv_tables
from shardkit.index.spool import Spool
from shardkit.index.streams import ChunkReader

def chunks():
    yield b"a,b\\n1,2,3\\n"
    for _ in range(3):
        for _ in range(16):
            yield b"1,2\\n" * (1 << 18)
        time.sleep(0.2)

with Spool({str(tmp_path / "spool")!r}) as spool:
    try:
        csv_tables(io.BufferedReader(ChunkReader(chunks())), "x.csv", spool)
    except ValueError:
        print("refused")
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "refused\n", "")
    assert list(tmp_path.iterdir()) == []


def test_quotes_that_are_never_closed_are_an_error_and_swallow_no_rows(tmp_path: Path) -> None:
    with pytest.raises(IndexDataError, match=r"quotes before 'a cat\\n2,b\\n' are never closed"):
        read(tmp_path / "i.csv", 'id,t\n1,"a cat\n2,b\n')
    table = read(tmp_path / "j.csv", 'id,t\n1,"a cat\non two lines"\n')
    assert table.column("t").to_pylist() == ["a cat\non two lines"]


def test_utf_16_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(IndexDataError, match="is UTF-16; save it as UTF-8"):
        read(tmp_path / "i.csv", "a,b\n1,2\n".encode("utf-16"))
