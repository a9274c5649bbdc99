"""Live figures, and the commands that show speed and states."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from shardkit import DataLoader, Mix
from shardkit.cli.main import main
from tests.dataset.photos import Packed
from tests.loader.numbers import batches_of, numbers


def nap(sample: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.02)
    return sample


def slow_decode(data: bytes) -> int:
    time.sleep(0.003)
    return int(data)


def slow_collate(samples: Any) -> int:
    time.sleep(0.02)
    return len(samples)


class TestStats:
    @pytest.mark.parametrize("kind", [("threads", 0), ("threads", 2), ("processes", 1)])
    def test_counts_are_exact_and_times_add_up(self, kind: tuple[Any, int]) -> None:
        dataset = numbers(transforms=[nap])
        with DataLoader(dataset, 8, workers=kind[0], num_workers=kind[1]) as loader:
            batches_of(loader)
            stats = loader.stats()
        assert stats["batches"] == 13
        assert stats["samples"] == 104
        assert float(stats["bytes"]) >= 101 * 1
        assert float(stats["transform_s"]) > 0.3
        assert float(stats["start_s"]) > 0.1  # eight naps
        assert stats["bottleneck"] == "transform"
        assert "workers" in str(stats["advice"])
        assert json.dumps(stats)

    @pytest.mark.parametrize(
        ("options", "loader_options", "bottleneck"),
        [
            ({"decode": {"bin": slow_decode}}, {}, "decode"),
            ({}, {"collate_fn": slow_collate}, "collate"),
            ({"transforms": [nap]}, {}, "transform"),
        ],
    )
    def test_the_slowest_stage_is_named(
        self, options: Any, loader_options: Any, bottleneck: str
    ) -> None:
        with DataLoader(numbers(**options), 8, num_workers=2, **loader_options) as loader:
            for _ in loader:
                pass
            assert loader.stats()["bottleneck"] == bottleneck

    def test_a_slow_training_step_is_the_bottleneck_itself(self) -> None:
        with DataLoader(numbers(), 8, num_workers=1) as loader:
            for _ in loader:
                time.sleep(0.02)
            stats = loader.stats()
        assert stats["bottleneck"] == "consumer"
        assert "keeps up" in str(stats["advice"])

    def test_before_the_first_batch_all_is_zero(self) -> None:
        stats = DataLoader(numbers(), 8).stats()
        assert stats["samples_per_s"] == stats["batches"] == stats["wait_s"] == 0


class TestStateCommand:
    def state(self) -> dict[str, Any]:
        loader = DataLoader(numbers(), 10, num_workers=0)
        running = iter(loader)
        for _ in range(3):
            next(running)
        return loader.state_dict()

    def test_json_is_explained_in_words(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "state.json"
        path.write_text(json.dumps(self.state()))
        assert main(["state", "show", str(path)]) == 0
        said = capsys.readouterr().out
        assert "epoch 0, position 30 of 101 (29.70 %)" in said
        assert "saved on 1 ranks in global batches of 10" in said

    def test_a_checkpoint_of_torch_is_searched(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "checkpoint.pt"
        mix = Mix({"a": (numbers(), 0.6), "b": (numbers(50), 0.4)}).state_dict()
        states = {"train": self.state(), "more": {"mix": mix}}
        torch.save({"model": torch.ones(3), "loaders": states}, path)
        assert main(["state", "show", str(path)]) == 0
        said = capsys.readouterr().out
        assert "loaders.train:\nepoch 0, position 30" in said
        assert "loaders.more.mix:\na mixture by sample" in said
        assert "stream 'b': 40.00%" in said

    @pytest.mark.parametrize("is_zip", [True, False])
    def test_states_of_several_ranks_in_a_list_are_found(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_zip: bool
    ) -> None:
        path = tmp_path / "checkpoint.pt"
        states = {"ranks": [self.state(), self.state()]}
        torch.save(states, path, _use_new_zipfile_serialization=is_zip)
        assert main(["state", "show", str(path)]) == 0
        assert "ranks.1:\nepoch 0, position 30" in capsys.readouterr().out

    def test_a_folder_is_an_error_that_says_what_to_give(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["state", "show", str(tmp_path)]) == 2
        assert "is a folder: give a file" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [b"{}", b"[1, 2]", b'{"model": 1}'])
    def test_a_file_without_a_state_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
    ) -> None:
        path = tmp_path / "other.json"
        path.write_bytes(content)
        assert main(["state", "show", str(path)]) == 2
        assert "holds no state of shardkit" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [b"\x00\x01garbage", b"PK", b""])
    def test_what_can_not_be_read_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
    ) -> None:
        path = tmp_path / "other.bin"
        path.write_bytes(content)
        assert main(["state", "show", str(path)]) == 2
        assert "neither JSON nor a file of torch.save" in capsys.readouterr().err
        assert main(["state", "show", str(tmp_path / "nowhere")]) == 2

    def test_a_damaged_state_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "state.json"
        path.write_text(json.dumps({**self.state(), "position": -1}))
        assert main(["state", "show", str(path)]) == 2
        assert "position=-1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--no-decode", "--shuffle", "global"]])
def test_bench_tells_speeds_bottleneck_and_quality(
    packed: Packed, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["bench", packed.url, "--seconds", "0.2", "--batch-size", "8", *arguments]) == 0
    said = capsys.readouterr().out
    assert "samples a second" in said
    assert "bottleneck: " in said
    assert "101 samples are too few to measure" in said
