"""Stock readers of WebDataset tars, each as its own docs say, all giving key → ext → bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Samples = dict[str, dict[str, bytes]]


def by_key(names: Iterable[tuple[str, bytes]]) -> Samples:
    samples: Samples = {}
    for name, data in names:
        key, ext = name.split(".", 1)
        samples.setdefault(key, {})[ext] = data
    return samples


def read_python(tars: Sequence[str], scratch: str) -> Samples:
    found: list[tuple[str, bytes]] = []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                file = tar.extractfile(member)
                assert file is not None
                found.append((member.name, file.read()))
    return by_key(found)


def read_gnu(tars: Sequence[str], scratch: str) -> Samples:
    for path in tars:
        done = subprocess.run(
            ["tar", "--warning=all", "-xf", path, "-C", scratch], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    found: list[tuple[str, bytes]] = []
    for name in sorted(os.listdir(scratch)):
        with open(os.path.join(scratch, name), "rb") as file:
            found.append((name, file.read()))
    return by_key(found)


def read_webdataset(tars: Sequence[str], scratch: str) -> Samples:
    """Also takes one brace URL."""
    import webdataset

    urls = tars if isinstance(tars, str) else list(tars)
    return {
        sample["__key__"]: {ext: v for ext, v in sample.items() if not ext.startswith("__")}
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    }


def read_wids(tars: Sequence[str], scratch: str) -> Samples:
    import wids

    index = os.path.join(scratch, "wids.json")
    counts = {path: len(read_python([path], scratch)) for path in tars}
    shards = [{"url": path, "nsamples": count} for path, count in counts.items()]
    with open(index, "w", encoding="ascii") as file:
        json.dump({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}, file)
    dataset = wids.ShardListDataset(
        index, cache_dir=os.path.join(scratch, "cache"), transformations=[], keep=True
    )
    samples = [dataset[i] for i in range(len(dataset))]
    dataset.close()
    return {
        sample["__key__"]: {
            ext.removeprefix("."): value.getvalue()
            for ext, value in sample.items()
            if not ext.startswith("__")
        }
        for sample in samples
    }


def read_datasets(tars: Sequence[str], scratch: str) -> Samples:
    """Hugging Face's webdataset builder; it decodes json and text itself.

    Media are declared as plain bytes: left to itself the builder makes sound its Audio feature,
    which takes torchcodec and system FFmpeg even to pass bytes through.
    """
    import datasets

    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": list(tars)},
        split="train",
        cache_dir=scratch,
        features=datasets.Features(_features(tars[0])),
    )
    return {
        sample["__key__"]: {
            ext: _undecoded(value) for ext, value in sample.items() if not ext.startswith("__")
        }
        for sample in loaded
    }


def _features(tar: str) -> dict[str, Any]:
    """The features of a tar's first sample, media as bytes."""
    import datasets
    import pyarrow as pa
    import webdataset

    first = next(iter(webdataset.WebDataset(tar, shardshuffle=False)))
    found: dict[str, Any] = {}
    for name, data in first.items():
        kind = name.rpartition(".")[2]
        if kind == "json":
            schema = pa.Table.from_pylist([{name: json.loads(data)}]).schema
            found[name] = datasets.Features.from_arrow_schema(schema)[name]
        elif name in ("__key__", "__url__") or kind == "txt":
            found[name] = datasets.Value("string")
        elif not name.startswith("__"):
            found[name] = datasets.Value("binary")
    return found


def _undecoded(value: Any) -> bytes:
    if isinstance(value, dict) and value.keys() == {"path", "bytes"}:
        value = value["bytes"]
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def read_energon(tars: Sequence[str], scratch: str) -> Samples:
    """Energon's own indexer, then its loader over every sample once, undecoded."""
    from megatron import energon as en

    for path in tars:
        shutil.copy(path, scratch)
    energon_prepare(scratch)
    with open(os.path.join(scratch, ".nv-meta", "dataset.yaml"), "a", encoding="ascii") as file:
        file.write("decoder: null\n")

    @en.stateless
    def cook(sample: dict[str, Any]) -> Any:
        members = {ext: data for ext, data in sample.items() if not ext.startswith("__")}
        return RawSample(**en.basic_sample_keys(sample), members=members)

    @en.edataclass
    class RawSample(en.Sample):  # type: ignore[misc]
        members: dict[str, bytes]

    class Encoder(en.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (en.Cooker(cook),)

        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

    dataset = en.get_val_dataset(
        scratch,
        worker_config=en.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=4,
        task_encoder=Encoder(),
    )
    found: Samples = {}
    for batch in en.get_loader(dataset):
        for sample in batch:
            key = sample.__key__.rsplit("/", 1)[-1]
            assert key not in found
            found[key] = sample.members
    return found


READERS: dict[str, Callable[[Sequence[str], str], Samples]] = {
    "python-tarfile": read_python,
    "gnu-tar": read_gnu,
    "webdataset": read_webdataset,
    "wids": read_wids,
    "energon": read_energon,
}


def energon(*args: str) -> str:
    """Run Energon's command line and return what it printed."""
    script = os.path.join(os.path.dirname(sys.executable), "energon")
    done = subprocess.run(
        [script, *args], capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def energon_prepare(folder: str) -> str:
    """Energon's indexer over a folder of tars: all of them its "val" split, as raw dicts."""
    return energon(
        *("prepare", "--non-interactive", "--no-progress", "--num-workers", "1"),
        *("--split-ratio", "0,1,0", "--sample-type", "CrudeWebdataset", folder),
    )
