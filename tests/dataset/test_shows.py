"""What the public objects say of themselves where they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardkit import DataLoader, Mix, ShardDataset, Stream, StreamingDataset
from shardkit.errors import ShardkitError
from tests.pack.data import make_files, pack_files


def test_data_sets_loaders_and_mixtures_show_what_they_are(tmp_path: Path) -> None:
    index = make_files(tmp_path / "src", 14)
    pack_files(index, tmp_path / "out")
    packed = ShardDataset(tmp_path / "out", seed=7)
    assert repr(packed) == (
        f"<ShardDataset of 14 samples in {tmp_path}/out, shuffle='buffer', seed=7>"
    )
    raw = StreamingDataset(index, shuffle="none", decode=None, columns_to_load=["data"])
    assert repr(raw) == (f"<StreamingDataset of 14 samples in {index}, shuffle='none', seed=0>")
    loader = DataLoader(packed, batch_size=4, num_workers=1)
    assert repr(loader) == (
        f"<DataLoader of {packed!r}, batch_size=4, num_workers=1, workers='threads'>"
    )
    mix = Mix({"a": Stream(packed, 0.6), "b": Stream(packed, 0.4)})
    assert repr(mix) == "<Mix of {'a': 0.6, 'b': 0.4}, by='sample', seed=0>"


def test_a_failure_is_named_once_and_the_list_of_all_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = make_files(tmp_path / "src", 4)
    (tmp_path / "src/files/00002.bin").unlink()
    dataset = StreamingDataset(
        index, columns_to_load=["data"], decode=None, on_error="skip", max_failures=0
    )
    with pytest.raises(ShardkitError, match=r"more than max_failures=0.*failures\.listed"):
        list(dataset)
    assert repr(dataset.failures) == "<Failures: 1, max_failures=0>"
    (line,) = caplog.messages
    assert line.count("sample_00002") == 1
    assert line.startswith(f"left out: row 2 of {index} (key 'sample_00002'): ")


def test_a_member_that_is_empty_in_its_shard_is_empty_when_it_is_streamed(tmp_path: Path) -> None:
    pack_files(make_files(tmp_path / "src", 6), tmp_path / "out")
    dataset = StreamingDataset(tmp_path / "out", shuffle="none", decode=None)
    assert dataset[2]["txt"] == b""
