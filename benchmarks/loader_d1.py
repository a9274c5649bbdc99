"""The loader beside what the machine allows and beside its peers, on D1.

    python benchmarks/loader_d1.py [bytes decoded python resume] [--scale 0.25] [--rounds 5]

bytes    batches of 64 undecoded samples, second pass: a bare generator, our threads and
         processes, and the peers through torch's DataLoader with 2 workers
decoded  batches of 64 pictures of 224x224, uint8 [64, 224, 224, 3]: two threads of nothing but our
         decoder and resize, our loader with 2 threads, webdataset's ``decode("pil")`` in 2 workers;
         and our loader again with the whole ``image_pipeline``, which gives [64, 3, 224, 224]
python   a transform of 2 ms of pure Python: our 2 processes and torch's DataLoader with 2 workers
resume   time to the first batch: of a fresh epoch, and of one that goes on at its middle

Takes turns, checks and ratios are those of ``harness``; data and peers those of ``run.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import data
import harness
import limits
import peers
import run
from harness import Again, Contestant, Result, Task, timed_pass

SIZE = (224, 224)
MODES = ("none", "shard", "buffer", "global")


def dataset_over(task: Task, **options: Any) -> Any:
    from shardkit import ShardDataset

    return ShardDataset(
        task.packed["shardkit"],
        shuffle="none",
        cache_dir=os.path.join(task.scratch, "c"),
        **options,
    )


def loader_over(dataset: Any, **options: Any) -> Any:
    from shardkit import DataLoader

    return DataLoader(dataset, 64, num_workers=2, remainder="keep", **options)


def load_processes(task: Task) -> Result:
    dataset = dataset_over(task, decode=None)
    loader = loader_over(dataset, workers="processes", collate_fn=peers.as_list)
    return timed_pass(Again(lambda: peers.flat(loader)), task)


# Decoded


def decode_and_resize() -> list[Any]:
    from shardkit.transforms import DecodeImage, DropFields, Resize

    return [
        DecodeImage("jpg", min_size=SIZE, into="image"),
        Resize("image", SIZE),
        DropFields("jpg"),
    ]


def bare_decoder(task: Task) -> Result:
    """Two threads that take every picture's bytes from a map, decode and resize them."""
    import torch

    from shardkit.transforms import Pipeline

    torch.set_num_threads(1)  # each of the two works alone
    pipeline = Pipeline(decode_and_resize())
    views = []
    for path, exts, _, (starts, *_), (stops, *_) in limits.read_spans(task):
        view = limits.mapped(path)
        assert exts[0] == "jpg"
        views += [(view, start, stop) for start, stop in zip(starts, stops, strict=True)]

    def make(part: list[Any]) -> int:
        for view, start, stop in part:
            (sample,) = pipeline({"jpg": view[start:stop]}, 0)
            assert sample["image"].shape == (*SIZE, 3)
        return len(part)

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        parts = [views[at : at + 64] for at in range(0, len(views), 64)]
        count = sum(pool.map(make, parts))
    return Result(time.perf_counter() - began, count)


def decoded_threads(task: Task) -> Result:
    return decoded(task, decode_and_resize(), (*SIZE, 3))


def decoded_planes(task: Task) -> Result:
    from shardkit.transforms import image_pipeline

    return decoded(task, image_pipeline("jpg", SIZE), (3, *SIZE))


def decoded(task: Task, transforms: list[Any], shape: tuple[int, ...]) -> Result:
    loader = loader_over(dataset_over(task, transforms=transforms))
    count, began = 0, time.perf_counter()
    for batch in loader:
        assert batch["image"].shape[1:] == shape
        count += len(batch["__key__"])
    return Result(time.perf_counter() - began, count)


# Pure Python


def spin(sample: dict[str, Any]) -> dict[str, Any]:
    until = time.thread_time() + 0.002
    total = 0
    while time.thread_time() < until:
        total += sum(range(100))
    return {"__key__": sample["__key__"], "jpg": sample["jpg"], "total": total}


def python_ours(task: Task) -> Result:
    dataset = dataset_over(task, decode=None, transforms=[spin])
    loader = loader_over(dataset, workers="processes", collate_fn=peers.as_list)
    return steady(lambda: peers.flat(loader))


def python_torch(task: Task) -> Result:
    from torch.utils.data import DataLoader

    dataset = dataset_over(task, decode=None, transforms=[spin])
    loader = DataLoader(dataset, 64, num_workers=2, collate_fn=peers.as_list)
    return steady(lambda: peers.flat(loader))


def steady(start: Callable[[], Iterator[Any]]) -> Result:
    """Time from the first batch on: the start of processes is not the claim."""
    count, samples = 0, start()
    for _ in range(64):
        next(samples)
    began = time.perf_counter()
    for _ in samples:
        count += 1
    return Result(time.perf_counter() - began, count)


# Resume


def first_batch(task: Task) -> Result:
    """Seconds from a data set that was just opened to its first batch."""
    from shardkit import DataLoader, ShardDataset

    def opened() -> Any:
        dataset = ShardDataset(
            task.packed["shardkit"],
            shuffle=task.options["mode"],
            decode=None,
            cache_dir=os.path.join(task.scratch, "c"),
        )
        return DataLoader(dataset, 64, num_workers=2)

    with opened() as loader:
        state = loader.state_dict()
        next(iter(loader))  # imports, and what only a first use costs
    state["position"] = int(state["num_samples"] * task.options["part"])
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        with opened() as loader:
            loader.load_state_dict(state)
            next(iter(loader))
            taken.append(time.perf_counter() - began)
    return Result(statistics.median(taken), 64)


CONTESTANTS: dict[str, Callable[[Task], Result]] = {
    "load_processes": load_processes,
    "bare_decoder": bare_decoder,
    "decoded_threads": decoded_threads,
    "decoded_planes": decoded_planes,
    "python_ours": python_ours,
    "python_torch": python_torch,
    "first_batch": first_batch,
}


def mine(label: str, name: str, **options: Any) -> list[Contestant]:
    return [Contestant(label, "loader_d1", name, options=options)]


def bytes_table(bench: run.Bench) -> str:
    contestants = [
        *bench.limit("bare generator", "bare_generator", epochs=2),
        *bench.ours("shardkit, 2 threads", "load_threads", format="shardkit", epochs=2),
        *mine("shardkit, 2 processes", "load_processes", format="shardkit", epochs=2),
        *bench.ours("shardkit in torch DataLoader", "load_torch", format="shardkit"),
        *bench.peer("webdataset in torch DataLoader", "load_webdataset"),
        *bench.peer("MosaicML in torch DataLoader", "load_mosaicml", format="mds"),
        *bench.peer("LitData StreamingDataLoader", "load_litdata", format="litdata"),
    ]
    facts, results = run.reading(bench, "D1", contestants, {"workers": 2})
    best = min(
        (label for label in results if label.split()[0] in ("webdataset", "MosaicML", "LitData")),
        key=lambda label: statistics.median(r.seconds for r in results[label]),
        default="bare generator",
    )
    return harness.table(
        "Batches of 64 undecoded samples",
        results,
        base="bare generator",
        num_bytes=facts.num_bytes,
        extra=[(best, f"x {best}")],
    )


def decoded_table(bench: run.Bench) -> str:
    contestants = [
        *mine("bare decoder and resize, 2 threads", "bare_decoder"),
        *mine("shardkit, 2 threads", "decoded_threads", format="shardkit"),
        *mine("shardkit, 2 threads, in planes", "decoded_planes", format="shardkit"),
        *(
            [
                Contestant(
                    "webdataset, 2 workers", "loader_peers", "decoded_webdataset", bench.python
                )
            ]
            if bench.python
            else []
        ),
    ]
    _, results = run.reading(bench, "D1", contestants, {"workers": 2})
    return harness.table(
        "Batches of 64 pictures of 224x224",
        results,
        base="bare decoder and resize, 2 threads",
        extra=[("webdataset, 2 workers", "x webdataset")],
    )


def python_table(bench: run.Bench) -> str:
    contestants = [
        *mine("torch DataLoader, 2 workers", "python_torch", format="shardkit"),
        *mine("shardkit, 2 processes", "python_ours", format="shardkit"),
    ]
    _, results = run.reading(bench, "D1", contestants)
    return harness.table(
        "A transform of 2 ms of pure Python", results, base="torch DataLoader, 2 workers"
    )


def resume_table(bench: run.Bench) -> str:
    contestants = [
        *(
            mine(f"{mode}, {where}", "first_batch", format="shardkit", mode=mode, part=part)[0]
            for mode in MODES
            for where, part in (("fresh", 0.0), ("at 50 %", 0.5))
        )
    ]
    _, results = run.reading(bench, "D1", contestants)
    lines = ["**Opened to first batch of 64**", "", "| | fresh | at 50 % | ratio |"]
    lines.append("|---|---:|---:|---:|")
    for mode in MODES:
        fresh, middle = results[f"{mode}, fresh"], results[f"{mode}, at 50 %"]
        cells = [
            *(
                f"{statistics.median(r.seconds for r in runs) * 1e3:.1f} ms"
                for runs in (fresh, middle)
            ),
            f"{1 / harness.paired(fresh, middle, harness.seconds):.2f}",
        ]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TABLES = {
    "bytes": bytes_table,
    "decoded": decoded_table,
    "python": python_table,
    "resume": resume_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES))
    parser.add_argument("--root", default=data.DEFAULT_ROOT, help="where the data sets are")
    parser.add_argument("--memory", default="/dev/shm/shardkit-bench", help="a folder in memory")
    default = os.path.join(peers.DEFAULT_VENV, "bin", "python")
    parser.add_argument("--peers-python", default=default, help="'' leaves the peers out")
    parser.add_argument("--scale", type=float, default=0.25, help="part of D1")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    python = args.peers_python if os.path.exists(args.peers_python) else ""
    bench = run.Bench(
        os.path.abspath(args.root), args.memory, python, args.scale, args.rounds, only=""
    )
    for name in args.tables or TABLES:
        print(f"{TABLES[name](bench)}\n{run.machine()}; medians of {bench.rounds}.\n", flush=True)


if __name__ == "__main__":
    main()
