"""What ``ShardDataset`` yields, in which order, and to whom."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from shardkit import ShardDataset
from shardkit.errors import (
    ConfigError,
    CorruptError,
    DecodeError,
    NotFoundError,
    ShardkitError,
    StateError,
)
from shardkit.world import World
from tests.dataset.photos import NUM_SAMPLES, Packed

MODES = ("none", "shard", "buffer", "global")
EXTS = ("cls", "jpg", "json", "npy", "txt")


def keys_of(dataset: Any) -> list[str]:
    return [sample["__key__"] for sample in dataset]


def key_only(sample: dict[str, Any]) -> dict[str, Any]:
    return {"key": sample["__key__"]}


def copy_of(packed: Packed, folder: Path) -> Path:
    return Path(shutil.copytree(packed.url, folder / "copy"))


class TestSamples:
    def test_bytes_of_every_member_are_those_of_the_source_files(self, packed: Packed) -> None:
        for sample in ShardDataset(packed.url, shuffle="none", decode=None):
            members = {ext: sample[ext] for ext in EXTS}
            assert members == packed.files[sample["__key__"]]

    def test_metadata_columns_are_entries_with_their_own_types(self, packed: Packed) -> None:
        sample = ShardDataset(packed.url, shuffle="none", decode=None)[7]
        assert (sample["id"], sample["aspect"], sample["label"]) == ("0007", 7 / 50, "cat")
        assert sample["__url__"].endswith("shard-000001.tar")

    @pytest.mark.parametrize("num_members", range(len(EXTS) + 1))
    @pytest.mark.parametrize("num_columns", range(4))
    def test_a_sample_of_any_width_holds_what_was_asked_for(
        self, packed: Packed, num_members: int, num_columns: int
    ) -> None:
        exts, names = EXTS[:num_members], ["id", "aspect", "label"][:num_columns]
        dataset = ShardDataset(
            packed.url, shuffle="shard", decode=None, members=exts, metadata=names
        )
        for sample in dataset:
            number = int(sample["id"]) if names else 0
            assert list(sample) == ["__key__", "__url__", *exts, *names]
            assert all(sample[ext] == packed.files[sample["__key__"]][ext] for ext in exts)
            assert sample.get("aspect", number / 50) == number / 50

    def test_the_tars_own_copy_of_the_metadata_is_given_only_when_named(
        self, packed: Packed
    ) -> None:
        assert "meta.json" not in ShardDataset(packed.url)[0]
        sample = ShardDataset(packed.url, members=["meta.json"])[0]
        assert sample["meta.json"]["label"] == "dog"
        assert "jpg" not in sample

    def test_members_and_metadata_can_be_chosen(self, packed: Packed) -> None:
        sample = ShardDataset(packed.url, members=["JPG", ".txt"], metadata=["label"])[0]
        assert set(sample) == {"__key__", "__url__", "jpg", "txt", "label"}

    @pytest.mark.parametrize("choice", [{"members": ["png"]}, {"metadata": ["nothing"]}])
    def test_unknown_members_and_columns_are_refused_with_those_there_are(
        self, packed: Packed, choice: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError, match=r"has no .*it has \["):
            ShardDataset(packed.url, **choice)

    def test_decode_auto_gives_objects_by_ext(self, packed: Packed) -> None:
        sample = ShardDataset(packed.url, shuffle="none")[4]
        assert np.asarray(sample["jpg"]).shape == (48, 64, 3)
        assert sample["cls"] == 4
        assert sample["json"] == {"number": 4}
        assert sample["txt"] == "a photo of 4"
        assert np.array_equal(sample["npy"], np.arange(5, dtype=np.float32))

    def test_a_mapping_overrides_decoding_by_ext(self, packed: Packed) -> None:
        sample = ShardDataset(packed.url, decode={"txt": len, "jpg": None})[0]
        assert isinstance(sample["jpg"], bytes)
        assert sample["txt"] == len(b"a photo of 0")

    def test_by_number_is_natural_order_whatever_the_shuffle(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url, shuffle="global", decode=None)
        assert [dataset[i]["__key__"] for i in (0, 50, -1)] == ["0000", "0050", "0100"]

    @pytest.mark.parametrize("number", [NUM_SAMPLES, 10**9, -NUM_SAMPLES - 1])
    def test_a_number_outside_is_an_index_error(self, packed: Packed, number: int) -> None:
        with pytest.raises(IndexError, match="of 101 in"):
            ShardDataset(packed.url)[number]

    def test_many_threads_read_at_random_beside_a_running_iterator(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url, decode=None)
        running = iter(dataset)
        with ThreadPoolExecutor(8) as pool:
            numbers = [i * 37 % NUM_SAMPLES for i in range(400)]
            found = list(pool.map(lambda i: dataset[i]["__key__"], numbers))
        assert found == [f"{i:04d}" for i in numbers]
        assert len(list(running)) == NUM_SAMPLES


class TestPlainTars:
    @pytest.mark.parametrize("name", ["shard-{000000..000014}.tar", "*.tar"])
    def test_tars_by_name_give_what_webdataset_gives(self, packed: Packed, name: str) -> None:
        ours = list(ShardDataset(f"{packed.url}/{name}", shuffle="none", decode=None))
        tars = sorted(str(path) for path in Path(packed.url).glob("*.tar"))
        theirs = list(webdataset.WebDataset(tars, shardshuffle=False))
        for sample in theirs:
            sample.pop("__local_path__", None)
        assert ours == theirs

    def test_a_folder_of_other_things_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"x")
        with pytest.raises(ConfigError, match=r"no tars; pack it first"):
            ShardDataset(str(tmp_path))

    def test_a_path_object_does_as_its_text_does(self, packed: Packed) -> None:
        assert (
            ShardDataset(Path(packed.url))[3]["__key__"] == ShardDataset(packed.url)[3]["__key__"]
        )

    def test_one_name_does_as_a_list_of_it(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url, members="txt", metadata="label", decode=None)
        assert set(dataset[0]) == {"__key__", "__url__", "txt", "label"}

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"verify": "sometimes"}, "verify='sometimes' is not one of"),
            ({"max_failures": -1}, "max_failures=-1 must be at least 0"),
            ({"where": " "}, "where is empty"),
            ({"world": 3}, r"give World\("),
            ({"url": ["a", "b"]}, "a list is no data set"),
            ({"url": None}, "a NoneType is no data set"),
        ],
    )
    def test_a_wrong_argument_is_refused_with_what_to_give(
        self, packed: Packed, choice: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            ShardDataset(**({"url": packed.url} | choice))

    @pytest.mark.parametrize("index", [1.5, "1", slice(0, 2), [1]])
    def test_what_is_no_number_is_no_index(self, packed: Packed, index: Any) -> None:
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            ShardDataset(packed.url)[index]

    def test_nothing_there_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            ShardDataset(str(tmp_path / "nowhere"))


MANY = """
import resource, sys
from shardkit import ShardDataset

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
options = {"decode": None, "verify": "never"}
datasets = [ShardDataset(sys.argv[1], **options) for _ in range(12)]
iterators = [iter(dataset) for dataset in datasets]
print(sum(1 for samples in zip(*iterators) for _ in samples))
"""


def test_many_data_sets_together_keep_no_more_files_open_than_a_process_may(packed: Packed) -> None:
    """Twelve of fifteen shards each, as a mixture or validation sets beside training read them."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, packed.url], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{12 * NUM_SAMPLES}\n", done.stderr


class TestOrder:
    @pytest.mark.parametrize("shuffle", MODES)
    def test_each_epoch_has_every_sample_once(self, packed: Packed, shuffle: Any) -> None:
        dataset = ShardDataset(packed.url, shuffle=shuffle, decode=None)
        for _ in range(3):
            assert sorted(keys_of(dataset)) == packed.keys

    def test_without_shuffle_the_order_is_the_packed_one(self, packed: Packed) -> None:
        assert keys_of(ShardDataset(packed.url, shuffle="none", decode=None)) == packed.keys

    def test_by_shard_keeps_the_rows_of_a_shard_together(self, packed: Packed) -> None:
        urls = [s["__url__"] for s in ShardDataset(packed.url, shuffle="shard", decode=None)]
        changes = sum(a != b for a, b in itertools.pairwise(urls))
        assert changes == 14
        assert urls != sorted(urls)

    @pytest.mark.parametrize("shuffle", MODES[1:])
    def test_epochs_differ_and_seeds_repeat(self, packed: Packed, shuffle: Any) -> None:
        first, again = (
            ShardDataset(packed.url, shuffle=shuffle, seed=5, decode=None) for _ in range(2)
        )
        epochs = [keys_of(first) for _ in range(3)]
        assert epochs == [keys_of(again) for _ in range(3)]
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_set_epoch_chooses_the_next_one(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url, decode=None)
        epochs = [keys_of(dataset) for _ in range(3)]
        dataset.set_epoch(1)
        assert keys_of(dataset) == epochs[1]
        assert keys_of(dataset) == epochs[2]

    @pytest.mark.parametrize("shuffle", MODES)
    @pytest.mark.parametrize("world_size", [1, 2, 3, 8, 150])
    def test_ranks_share_an_epoch_exactly(
        self, packed: Packed, shuffle: Any, world_size: int
    ) -> None:
        seen: list[str] = []
        for rank in range(world_size):
            dataset = ShardDataset(
                packed.url, shuffle=shuffle, decode=None, world=World(rank, world_size)
            )
            mine = keys_of(dataset)
            assert len(mine) == len(dataset)
            seen += mine
        assert sorted(seen) == packed.keys


class TestState:
    @pytest.mark.parametrize("shuffle", MODES)
    def test_restored_at_every_position_it_gives_the_rest(
        self, packed: Packed, shuffle: Any
    ) -> None:
        dataset = ShardDataset(packed.url, shuffle=shuffle, decode=None, members=["cls"])
        states, keys = [dataset.state_dict()], []
        for sample in dataset:
            keys.append(sample["__key__"])
            states.append(dataset.state_dict())
        for position, state in enumerate(states[:-1]):
            fresh = ShardDataset(packed.url, shuffle=shuffle, decode=None, members=["cls"])
            fresh.load_state_dict(state)
            assert keys_of(fresh) == keys[position:]

    def test_a_state_from_the_end_of_an_epoch_begins_the_next(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url, decode=None)
        keys_of(dataset)
        state = dataset.state_dict()
        fresh = ShardDataset(packed.url, decode=None)
        fresh.load_state_dict(state)
        assert keys_of(fresh) == keys_of(dataset)

    def test_saved_on_two_ranks_it_goes_on_with_three(self, packed: Packed) -> None:
        seen: list[str] = []
        state: dict[str, Any] = {}
        for rank in range(2):
            dataset = ShardDataset(packed.url, decode=None, world=World(rank, 2))
            running = iter(dataset)
            seen += [next(running)["__key__"] for _ in range(12)]
            assert not state or state == dataset.state_dict()
            state = dataset.state_dict()
        for rank in range(3):
            dataset = ShardDataset(packed.url, decode=None, world=World(rank, 3))
            dataset.load_state_dict(state)
            seen += keys_of(dataset)
        assert sorted(seen) == packed.keys

    def test_a_state_of_other_data_is_refused(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url)
        state = dataset.state_dict() | {"fingerprint": "0" * 32}
        with pytest.raises(StateError, match="open the data set that it was saved on"):
            dataset.load_state_dict(state)


class TestTorchDataLoader:
    @pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than cores
    @pytest.mark.parametrize("num_workers", [0, 1, 3])
    def test_workers_share_an_epoch_exactly(self, packed: Packed, num_workers: int) -> None:
        dataset = ShardDataset(packed.url, decode=None, transforms=[key_only])
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=num_workers)
        keys = [key for batch in loader for key in batch["key"]]
        assert Counter(keys) == Counter(packed.keys)

    @pytest.mark.parametrize(
        ("context", "persistent"),
        [("fork", False), ("fork", True), ("spawn", False), ("forkserver", True)],
    )
    def test_each_epoch_differs_with_any_kind_of_worker(
        self, packed: Packed, context: str, persistent: bool
    ) -> None:
        dataset = ShardDataset(packed.url, decode=None, transforms=[key_only])
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=8,
            num_workers=2,
            multiprocessing_context=context,
            persistent_workers=persistent,
        )
        epochs = [[key for batch in loader for key in batch["key"]] for _ in range(2)]
        assert [sorted(epoch) for epoch in epochs] == [packed.keys] * 2
        assert epochs[0] != epochs[1]

    def test_pickled_it_gives_the_same(self, packed: Packed) -> None:
        dataset = ShardDataset(packed.url, decode=None)
        assert keys_of(pickle.loads(pickle.dumps(dataset))) == keys_of(dataset)


class TestTransforms:
    def test_a_transform_may_drop_and_multiply(self, packed: Packed) -> None:
        def odd_twice(sample: dict[str, Any]) -> list[dict[str, Any]]:
            return [sample, dict(sample)] if sample["cls"] % 2 else []

        keys = keys_of(ShardDataset(packed.url, shuffle="none", transforms=[odd_twice]))
        assert keys == [key for key in packed.keys if int(key) % 2 for _ in range(2)]

    def test_randomness_is_the_samples_own(self, packed: Packed) -> None:
        def draw(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
            return {"__key__": sample["__key__"], "draw": rng.random()}

        def draws(world_size: int, epoch: int) -> dict[str, float]:
            found = {}
            for rank in range(world_size):
                dataset = ShardDataset(packed.url, transforms=[draw], world=World(rank, world_size))
                dataset.set_epoch(epoch)
                found |= {sample["__key__"]: sample["draw"] for sample in dataset}
            return found

        assert draws(1, 0) == draws(3, 0)
        assert draws(1, 0) != draws(1, 1)

    def test_an_error_of_a_transform_names_the_sample(self, packed: Packed) -> None:
        def fail(sample: dict[str, Any]) -> dict[str, Any]:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no") as caught:
            ShardDataset(packed.url, transforms=[fail])[3]
        assert "'0003'" in caught.value.__notes__[0]


class TestDamage:
    def flip(self, folder: Path, key: str = "0010", ext: str = "jpg") -> None:
        """Flip one bit of a member's data."""
        shard = folder / f"shard-{int(key) // 7:06d}.tar"
        data = bytearray(shard.read_bytes())
        at = data.index(f"{key}.{ext}".encode()) + 512 + 100
        data[at] ^= 1
        shard.write_bytes(data)

    def test_a_flipped_bit_is_found_before_the_sample_is_given(
        self, packed: Packed, tmp_path: Path
    ) -> None:
        folder = copy_of(packed, tmp_path)
        self.flip(folder)
        dataset = ShardDataset(str(folder), shuffle="none", decode=None)
        seen: list[str] = []
        with pytest.raises(CorruptError, match=r"shard-000001\.tar: key '0010': .*'jpg'"):
            seen.extend(sample["__key__"] for sample in dataset)
        with pytest.raises(CorruptError, match="0010"):
            dataset[10]

    def test_skipped_it_is_counted_and_the_rest_comes(self, packed: Packed, tmp_path: Path) -> None:
        folder = copy_of(packed, tmp_path)
        self.flip(folder)
        for decode in (None, "auto"):
            dataset = ShardDataset(str(folder), shuffle="none", decode=decode, on_error="skip")
            assert keys_of(dataset) == [key for key in packed.keys if key != "0010"]
            assert dataset.failures.count == 1
            assert dataset.failures.listed[0].place.key == "0010"

    def test_a_missing_shard_is_skipped_whole_or_raises(
        self, packed: Packed, tmp_path: Path
    ) -> None:
        folder = copy_of(packed, tmp_path)
        (folder / "shard-000003.tar").unlink()
        with pytest.raises(NotFoundError, match=r"shard-000003\.tar does not exist"):
            keys_of(ShardDataset(str(folder), decode=None))
        dataset = ShardDataset(str(folder), shuffle="none", decode=None, on_error="skip")
        assert keys_of(dataset) == packed.keys[:21] + packed.keys[28:]
        assert dataset.failures.count == 7

    def test_a_tar_cut_on_a_member_boundary_is_found(self, packed: Packed, tmp_path: Path) -> None:
        folder = copy_of(packed, tmp_path)
        shard = folder / "shard-000002.tar"
        offsets = np.fromfile(f"{shard}.idx", "<u8")
        shard.write_bytes(shard.read_bytes()[: int(offsets[5])])
        with pytest.raises(CorruptError, match=r"shard-000002\.tar has .* bytes instead of"):
            keys_of(ShardDataset(str(folder), decode=None))

    def test_a_sidecar_of_another_shard_is_found(self, packed: Packed, tmp_path: Path) -> None:
        folder = copy_of(packed, tmp_path)
        shutil.copy(folder / "shard-000001.parquet", folder / "shard-000002.parquet")
        with pytest.raises(CorruptError, match=r"shard-000002\.parquet is not what was packed"):
            keys_of(ShardDataset(str(folder), decode=None))

    def test_max_failures_ends_a_run_that_loses_its_data(
        self, packed: Packed, tmp_path: Path
    ) -> None:
        folder = copy_of(packed, tmp_path)
        (folder / "shard-000003.tar").unlink()
        dataset = ShardDataset(str(folder), decode=None, on_error="skip", max_failures=3)
        with pytest.raises(ShardkitError, match="more than max_failures=3"):
            keys_of(dataset)

    def test_what_cannot_be_decoded_names_data_set_shard_key_and_ext(
        self, packed: Packed, tmp_path: Path
    ) -> None:
        dataset = ShardDataset(packed.url, decode={"txt": int})
        with pytest.raises(DecodeError, match=r"shards: .*shard-000000\.tar: key '0002'.*txt"):
            dataset[2]

    def test_so_does_what_a_transform_can_not_decode(self, packed: Packed) -> None:
        def decode_late(sample: dict[str, Any]) -> dict[str, Any]:
            raise DecodeError("cannot decode .jpg")

        dataset = ShardDataset(packed.url, decode=None, transforms=[decode_late])
        with pytest.raises(DecodeError, match=r"shards: .*shard-000000\.tar: key '0002'.*jpg"):
            dataset[2]
