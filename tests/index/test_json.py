"""JSON in any shape that lists records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import IndexDataError
from shardkit.index import jsons as jsons_module
from shardkit.index import open_index
from tests.index.build import all_keys

RECORDS = [
    {"id": "a", "n": 1, "when": "2024-01-01", "nested": {"x": [1, 2], "y": None}, "big": 2**60 + 1},
    {"id": "b", "n": 2.5, "when": "2024-01-02T03:04:05", "nested": {"x": [], "y": "z"}, "big": 7},
    {"id": "c", "n": None, "when": "x", "extra": True, "big": None},
]


def read(path: Path, text: str, **options: Any) -> list[dict[str, Any]]:
    path.write_text(text)
    index = open_index(path, scratch=str(path.parent / "s"), files=[], **options)
    return [row for rows in index.batches() for row in rows.metadata.to_pylist()]


def shapes() -> dict[str, str]:
    lines = [json.dumps(record) for record in RECORDS]
    filled = [{"nested": None, "extra": None, **record} for record in RECORDS]
    columns = {name: [record[name] for record in filled] for name in filled[0]}
    return {
        "array": json.dumps(RECORDS),
        "indented array": json.dumps(RECORDS, indent=2),
        "lines": "\n".join(lines),
        "lines with blanks between": "\n\n".join(lines) + "\n\n",
        "objects one after another": " ".join(json.dumps(r, indent=1) for r in RECORDS),
        "columns": json.dumps(columns),
        "columns as pandas has them": json.dumps(
            {name: {str(i): v for i, v in enumerate(values)} for name, values in columns.items()}
        ),
        "split as pandas has it": json.dumps(
            {
                "columns": list(columns),
                "index": [0, 1, 2],
                "data": [list(row) for row in zip(*columns.values(), strict=True)],
            }
        ),
        "under a name": json.dumps({"version": 1, "data": RECORDS}),
    }


@pytest.mark.parametrize("ext", ["json", "jsonl"])
@pytest.mark.parametrize("shape", shapes())
def test_every_shape_gives_the_same_records(shape: str, ext: str, tmp_path: Path) -> None:
    found = read(tmp_path / f"i.{ext}", shapes()[shape])
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == [
        {k: v for k, v in record.items() if v is not None} for record in RECORDS
    ]


@pytest.mark.parametrize(
    "shape",
    [
        "array",
        "indented array",
        "objects one after another",
        "columns",
        "columns as pandas has them",
        "under a name",
    ],
)
def test_files_too_big_to_hold_are_streamed(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same records with chunks of 50 bytes, so that every value is cut somewhere."""
    expected = read(tmp_path / "i.json", shapes()[shape])
    monkeypatch.setattr(jsons_module, "_CHUNK", 50)
    monkeypatch.setattr(jsons_module, "_ROWS", 2)
    found = read(tmp_path / "j.json", shapes()[shape])
    assert found == expected


def test_a_mapping_by_key_gives_the_key_as_a_column(tmp_path: Path) -> None:
    text = json.dumps({"cat1": {"url": "s3://b/1.jpg"}, "cat2": {"url": "s3://b/2.jpg"}})
    (tmp_path / "i.json").write_text(text)
    assert all_keys(open_index(tmp_path / "i.json", scratch=str(tmp_path))) == ["cat1", "cat2"]


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["x", "y"], "n": [1, 2], "t": ["a", None]})
    expected = [{"id": "x", "n": 1, "t": "a"}, {"id": "y", "n": 2, "t": None}]
    for orient in ("records", "columns", "split", "table"):
        found = read(tmp_path / f"{orient}.json", str(frame.to_json(orient=orient)))
        assert [{k: row[k] for k in ("id", "n", "t")} for row in found] == expected, orient


def test_text_that_looks_like_a_time_or_a_number_stays_text(tmp_path: Path) -> None:
    for text in (json.dumps(RECORDS), "\n".join(map(json.dumps, RECORDS))):
        found = read(tmp_path / "i.json", text)
        assert [row["when"] for row in found] == [record["when"] for record in RECORDS]
    found = read(tmp_path / "k.jsonl", '{"id": "0001"}\n{"id": "0002"}\n')
    assert [row["id"] for row in found] == ["0001", "0002"]


def test_whole_numbers_beyond_what_doubles_hold_are_kept(tmp_path: Path) -> None:
    numbers = [2**53 + 1, 2**63 - 1, -(2**63)]
    found = read(tmp_path / "i.jsonl", "\n".join(json.dumps({"n": n}) for n in numbers))
    assert [row["n"] for row in found] == numbers
    found = read(tmp_path / "j.jsonl", '{"n": 18446744073709551615}\n{"n": 1}\n')
    assert [int(row["n"]) for row in found] == [2**64 - 1, 1]


def test_columns_of_several_types_become_text_that_says_what_stood_there(tmp_path: Path) -> None:
    records = [{"id": 1, "v": "x"}, {"id": "b2", "v": [1]}, {"id": 3, "v": {"y": True}}]
    for text in (json.dumps(records), "\n".join(map(json.dumps, records))):
        found = read(tmp_path / "i.json", text)
        assert [row["id"] for row in found] == ["1", "b2", "3"]
        assert [row["v"] for row in found] == ["x", "[1]", '{"y": true}']


def test_types_that_change_late_in_a_file_are_widened(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "v": i}) for i in range(300_000)] + ['{"id": 300000, "v": "end"}']
    found = read(tmp_path / "i.jsonl", "\n".join(lines))
    assert found[5] == {"id": 5, "v": "5"}
    assert found[-1] == {"id": 300_000, "v": "end"}


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-9, 9) | st.text(max_size=8), min_size=1, max_size=6))
def test_lines_and_arrays_agree(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("json")
    records = [{"i": i, "v": value} for i, value in enumerate(values)]
    lines = read(folder / "a.jsonl", "\n".join(map(json.dumps, records)))
    array = read(folder / "b.json", json.dumps(records))
    assert [row["v"] for row in lines] == [row["v"] for row in array]


def test_broken_json_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(IndexDataError, match=r"i\.jsonl, line 3: not valid JSON"):
        read(tmp_path / "i.jsonl", '{"a": 1}\n{"a": 2}\n{"a": \n')
    with pytest.raises(IndexDataError, match=r"i\.json is not valid JSON"):
        read(tmp_path / "i.json", '[{"a": 1}, {"a": ')
    with pytest.raises(IndexDataError, match="not an object"):
        read(tmp_path / "i.json", "[1, 2]")
    with pytest.raises(IndexDataError, match="lists of different lengths"):
        read(tmp_path / "i.json", '{"images": [{"a": 1}], "labels": [1, 2]}')
    with pytest.raises(IndexDataError, match="holds no objects"):
        read(tmp_path / "i.json", '"text"')
