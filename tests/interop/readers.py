"""Stock readers of WebDataset tars, each as its own docs say, all giving key → ext → bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence

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
    import webdataset

    return {
        sample["__key__"]: {ext: v for ext, v in sample.items() if not ext.startswith("__")}
        for sample in webdataset.WebDataset(list(tars), shardshuffle=False)
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


READERS: dict[str, Callable[[Sequence[str], str], Samples]] = {
    "python-tarfile": read_python,
    "gnu-tar": read_gnu,
    "webdataset": read_webdataset,
    "wids": read_wids,
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
