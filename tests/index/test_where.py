"""Filters by SQL: one meaning however the index is read."""

from __future__ import annotations

import pickle
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit.errors import ConfigError, CorruptError, IndexDataError
from shardkit.index import open_index
from tests.index.build import all_keys, same_rows, summary

COUNT = 20_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "id": [f"{i:06d}" for i in range(COUNT)],
            "url": [f"s3://b/{i}.jpg" for i in range(COUNT)],
            "label": pa.array(rng.choice(["cat", "dog", None], COUNT).tolist(), pa.string()),
            "aspect": rng.random(COUNT) * 3,
            "nested": [{"x": int(x)} for x in rng.integers(0, 9, COUNT)],
            "Two Words": rng.integers(0, 100, COUNT),
        }
    )


@pytest.fixture(scope="module")
def path(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of many small row groups."""
    folder = tmp_path_factory.mktemp("where")
    for k in range(3):
        part = table.slice(k * 7_000, 7_000)
        pq.write_table(part, folder / f"{k}.parquet", row_group_size=1_000)
    return folder / "*.parquet"


CONDITIONS = [
    "aspect > 1.5 AND label = 'cat'",
    "label IS NULL OR nested.x = 3",
    '"Two Words" BETWEEN 10 AND 20',
    "aspect > (SELECT avg(aspect) FROM dataframe)",
    "id IN (SELECT max(id) FROM dataframe GROUP BY label)",
    "label LIKE 'd%' -- dogs",
    "id = '000007'",
    "true",
]


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_leaves_the_rows_that_duckdb_says(
    where: str, table: pa.Table, path: Path, tmp_path: Path
) -> None:
    """For files read in place and for a table in memory."""
    dataframe = table  # noqa: F841 - DuckDB finds it by its name
    rows = duckdb.sql(f"SELECT id FROM dataframe WHERE ({where}\n) ORDER BY id").fetchall()
    expected = [row[0] for row in rows]
    scratch = str(tmp_path)
    lazy = open_index(path, where=where, scratch=scratch)
    eager = open_index(table, where=where, scratch=scratch)
    for index in (lazy, eager, pickle.loads(pickle.dumps(lazy))):
        assert len(index) == index.num_rows == index.counts.sum() == len(expected)
        assert [k for rows in index.batches(3_000) for k in rows.keys] == expected


def test_filtered_rows_are_whole_rows(table: pa.Table, path: Path, tmp_path: Path) -> None:
    index = open_index(path, where="label = 'cat' AND aspect < 0.1", scratch=str(tmp_path))
    assert index.num_rows > 50
    for row in summary(index):
        number = int(row["key"])
        assert row["members"]["jpg"][0] == f"s3://b/{number}.jpg"
        assert row["metadata"]["aspect"] == table.column("aspect")[number].as_py()
    group = int(np.flatnonzero(index.counts > 2)[0])
    read = index.read(group)
    assert index.take(group, np.array([2, 0])).keys == [read.keys[2], read.keys[0]]


def test_a_whole_select_makes_a_new_table(path: Path, tmp_path: Path) -> None:
    index = open_index(
        path,
        where="SELECT id, url, aspect * 2 AS wide FROM dataframe WHERE label = 'dog' "
        "ORDER BY aspect DESC LIMIT 1000",
        scratch=str(tmp_path),
    )
    assert index.num_rows == 1000
    assert index.metadata_columns == ("id", "wide")
    wide = np.concatenate([rows.metadata.column("wide").to_numpy() for rows in index.batches()])
    assert (np.diff(wide) <= 0).all()
    assert summary(index)[0]["members"]["jpg"][0].startswith("s3://b/")


def test_a_select_gives_the_same_rows_in_the_same_order_every_time(
    path: Path, tmp_path: Path
) -> None:
    """Ranks filter on their own: grouping, sampling and random numbers must agree."""
    sample = "USING SAMPLE reservoir(500 ROWS) REPEATABLE (3)"
    query = f"SELECT * FROM dataframe WHERE random() < 0.5 {sample}"
    group = "SELECT any_value(id) AS id, any_value(url) AS url, label FROM dataframe GROUP BY label"
    for sql in (query, group):
        one = open_index(path, where=sql, scratch=str(tmp_path / "a"))
        two = open_index(path, where=sql, scratch=str(tmp_path / "b"))
        assert one.fingerprint == two.fingerprint
        assert same_rows(one, two)


def test_relative_paths_keep_their_folder_under_a_filter(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.jpg").write_bytes(b"a")
    pq.write_table(pa.table({"id": [1, 2], "p": ["img/a.jpg"] * 2}), tmp_path / "i.parquet")
    for where in ("id > 1", "SELECT * FROM dataframe WHERE id > 1", "FROM dataframe WHERE id > 1"):
        index = open_index(tmp_path / "i.parquet", where=where, scratch=str(tmp_path / "s"))
        assert summary(index)[0]["members"]["jpg"][0] == str(tmp_path / "img" / "a.jpg")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nonsense = 1", r"nonsense = 1.*can't be evaluated.*columns are id, url"),
        ("aspect >", r"can't be evaluated.*[Ss]yntax"),
        ("nested > 'x'", r"can't be evaluated"),
        ("SELECT * FROM elsewhere", "does not name the table 'dataframe'"),
        ("SELECT nope FROM dataframe", "can't be evaluated"),
        ("1); DROP TABLE x; SELECT (1", "can't be evaluated"),
        ("  ", "where is empty"),
    ],
)
def test_a_bad_query_raises(where: str, message: str, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        open_index(path, where=where, scratch=str(tmp_path))


def test_a_filter_that_leaves_nothing_says_so(path: Path, tmp_path: Path) -> None:
    for where in ("aspect > 99", "SELECT * FROM dataframe WHERE aspect > 99"):
        with pytest.raises(IndexDataError, match=r"has no rows.*aspect > 99"):
            open_index(path, where=where, scratch=str(tmp_path))


def test_a_filter_is_evaluated_once_and_kept(path: Path, tmp_path: Path) -> None:
    open_index(path, where="aspect > 1", scratch=str(tmp_path))
    before = {entry.name: entry.stat().st_mtime_ns for entry in tmp_path.iterdir()}
    open_index(path, where="aspect > 1", scratch=str(tmp_path))
    assert {entry.name: entry.stat().st_mtime_ns for entry in tmp_path.iterdir()} == before
    bitmaps = [entry.stat().st_size for entry in tmp_path.iterdir() if entry.suffix == ".bits"]
    assert sum(bitmaps) <= COUNT / 8 + 100


def test_a_filter_is_part_of_the_fingerprint(path: Path, tmp_path: Path) -> None:
    scratch = str(tmp_path)
    plain = open_index(path, scratch=scratch).fingerprint
    one = open_index(path, where="aspect > 1", scratch=scratch).fingerprint
    same = open_index(path, where="aspect>1.0", scratch=scratch).fingerprint
    other = open_index(path, where="aspect > 2", scratch=scratch).fingerprint
    assert len({plain, one, other}) == 3
    assert one == same


def test_a_filter_may_name_another_file_and_sees_when_it_changes(
    path: Path, tmp_path: Path
) -> None:
    chosen = tmp_path / "chosen.parquet"
    where = f"id IN (SELECT id FROM '{chosen}')"
    pq.write_table(pa.table({"id": ["000003", "000005"]}), chosen)
    assert all_keys(open_index(path, where=where, scratch=str(tmp_path / "s"))) == [
        "000003",
        "000005",
    ]
    pq.write_table(pa.table({"id": ["000004", "000001", "x"]}), chosen)
    assert all_keys(open_index(path, where=where, scratch=str(tmp_path / "s"))) == [
        "000001",
        "000004",
    ]


def test_an_error_of_the_source_is_raised_as_it_is_and_not_as_a_bad_query(
    table: pa.Table, tmp_path: Path
) -> None:
    path = tmp_path / "i.parquet"
    pq.write_table(table, path, row_group_size=1_000)
    data = bytearray(path.read_bytes())
    data[1000:9000] = bytes(8000)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match=r"i\.parquet can't be read as Parquet"):
        open_index(path, key="id", files=[], metadata=["aspect"], where="aspect > 1 OR id = '1'")
