"""The benchmarks that the README's table comes from.

    python benchmarks/peers.py setup                     once: the peers' own environment
    python benchmarks/run.py [pack read verify random loader startup …] [--quick]

Data is made under ``--root`` when it is not there yet and read once before the clock starts, so
that the page cache holds it; packed output goes to ``--memory`` (a tmpfs). ``--write FILE``
replaces the tables of a markdown file.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import data
import harness
import limits
import peers
from harness import Contestant, Result, Task

QUICK_SCALE = 0.05
TITLES = {
    "D1": "D1, JPEGs of ~100 KB with a small json each",
    "D2": "D2, json of ~1 KB",
    "D3": "D3, members of 5 MB",
}


@dataclass(frozen=True)
class Bench:
    """What the command line chose."""

    root: str
    memory: str
    python: str  # the peers' interpreter; "" leaves them out
    scale: float
    rounds: int
    only: str

    def data(self, name: str) -> str:
        folder = data.make(name, self.root, self.scale)
        harness.warm(folder)
        return folder

    def peer(self, label: str, name: str, **options: Any) -> list[Contestant]:
        return self.chosen(Contestant(label, "peers", name, self.python, options), self.python)

    def limit(self, label: str, name: str, **options: Any) -> list[Contestant]:
        return [Contestant(label, "limits", name, options=options)]

    def ours(self, label: str, name: str, **options: Any) -> list[Contestant]:
        return self.chosen(Contestant(label, "ours", name, options=options), sys.executable)

    def chosen(self, contestant: Contestant, python: str) -> list[Contestant]:
        return [contestant] if python and self.only in contestant.label else []


def empty(folder: str) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def expecting(facts: data.Facts) -> Callable[[Contestant, Result], None]:
    """A check that a pass over all samples gave every byte of the data set."""

    def expect(contestant: Contestant, result: Result) -> None:
        wanted = (facts.num_samples, facts.num_bytes, facts.crc_sum)
        given = (result.num_samples, result.num_bytes, result.crc_sum)
        if result.num_bytes >= 0 and given != wanted:
            raise RuntimeError(f"{contestant.label} gave {given}, not {wanted}")

    return expect


# Packing


def pack_table(bench: Bench, name: str) -> str:
    folder = bench.data(name)
    facts = data.read_facts(folder)

    def make_task(_: Contestant, check: bool) -> Task:
        harness.warm(folder)
        return Task(
            data=folder,
            out=empty(os.path.join(bench.memory, "out")),
            scratch=empty(os.path.join(bench.memory, "scratch")),
            check=check,
            options={"num_samples": facts.num_samples},
        )

    contestants = [
        *bench.limit("GNU tar", "gnu_tar"),
        *bench.limit("cp -r", "copy"),
        *bench.ours("shardkit, 1 process", "pack", workers=1),
        *bench.ours("shardkit, 2 processes", "pack", workers=2),
        *bench.peer("webdataset ShardWriter", "pack_webdataset"),
        *bench.peer("MosaicML MDSWriter", "pack_mosaicml"),
        *bench.peer("LitData optimize, 1 worker", "pack_litdata"),
    ]

    def expect(contestant: Contestant, _: Result) -> None:
        # What was packed is read back and summed by the reading tables.
        written = harness.warm(os.path.join(bench.memory, "out"))
        if written < facts.num_bytes:
            raise RuntimeError(f"{contestant.label} wrote {written} of {facts.num_bytes} bytes")

    results = harness.contest(contestants, make_task, rounds=bench.rounds, expect=expect)
    empty(os.path.join(bench.memory, "out"))
    empty(os.path.join(bench.memory, "scratch"))
    return harness.table(
        f"Packing {TITLES[name]}: {facts.num_samples:,} samples, {facts.num_bytes / 1e6:,.0f} MB",
        results,
        base="GNU tar",
        num_bytes=facts.num_bytes,
        extra=[
            ("webdataset ShardWriter", "x webdataset"),
            ("MosaicML MDSWriter", "x MosaicML"),
            ("shardkit, 1 process", "x shardkit, 1 process"),
        ],
    )


# Reading


def packed_folders(bench: Bench, name: str) -> dict[str, str]:
    """Pack a data set in each contestant's own format, once, and return the folders."""
    folder = bench.data(name)
    facts = data.read_facts(folder)
    base = os.path.join(bench.root, "packed", os.path.basename(folder))
    makers = {"mds": "pack_mosaicml", "litdata": "pack_litdata", "tar": "pack_webdataset"}
    jobs = {fmt: Contestant(fmt, "peers", job, bench.python) for fmt, job in makers.items()}
    jobs["shardkit"] = Contestant("shardkit", "ours", "pack", options={"workers": 2})
    folders = {}
    for fmt, job in jobs.items():
        place = os.path.join(base, fmt)
        if not os.path.exists(os.path.join(place, ".whole")):
            task = Task(
                data=folder,
                out=empty(place),
                scratch=empty(os.path.join(bench.memory, "scratch")),
                options={"num_samples": facts.num_samples},
            )
            try:
                harness.run_once(job, task)
            except (RuntimeError, OSError) as error:
                print(f"! no {fmt} of {name}: {error}", file=sys.stderr)
                continue
            if fmt == "tar":
                counts = limits.write_spans(place)
                peers.write_wids_index(place, counts)
            with open(os.path.join(place, ".whole"), "w", encoding="ascii"):
                pass
        folders[fmt] = place
    return folders


def reading(
    bench: Bench,
    name: str,
    contestants: Sequence[Contestant],
    options: Mapping[str, Any] | None = None,
) -> tuple[data.Facts, dict[str, list[Result]]]:
    packed = packed_folders(bench, name)
    folder = data.folder_of(name, bench.root, bench.scale)
    facts = data.read_facts(folder)
    scratch = os.path.join(bench.memory, "read")

    def make_task(contestant: Contestant, check: bool) -> Task:
        mine = os.path.join(scratch, contestant.label.replace(" ", "-").replace(",", ""))
        os.makedirs(mine, exist_ok=True)
        if contestant.options.get("scratch") == "fresh":
            empty(mine)
        harness.warm(packed.get(contestant.options.get("format", "tar"), ""))
        chosen = {"num_samples": facts.num_samples, **(options or {})}
        return Task(folder, packed, scratch=mine, check=check, options=chosen)

    results = harness.contest(contestants, make_task, rounds=bench.rounds, expect=expecting(facts))
    shutil.rmtree(scratch, ignore_errors=True)
    return facts, results


def read_table(bench: Bench, name: str, shuffle: str) -> str:
    contestants = [
        *bench.limit("os.pread", "pread_members"),
        *bench.limit("bare generator", "bare_generator"),
        *bench.ours("shardkit", "read", format="shardkit"),
        *bench.peer("LitData", "read_litdata", format="litdata"),
        # These two gain nothing from a second pass, and take long.
        *bench.peer("webdataset", "read_webdataset", epochs=1),
        *bench.peer("MosaicML", "read_mosaicml", format="mds", epochs=1),
        *(bench.peer("wids", "read_wids") if shuffle == "none" else []),
    ]
    facts, results = reading(bench, name, contestants, {"shuffle": shuffle, "epochs": 2})
    how = "in order" if shuffle == "none" else f"shuffled by {shuffle}"
    return harness.table(
        f"Reading raw samples of {TITLES[name]}, {how}: {facts.num_samples:,} samples",
        results,
        base="os.pread",
        num_bytes=facts.num_bytes,
        extra=[("bare generator", "x bare generator"), ("LitData", "x LitData")],
    )


def verify_table(bench: Bench, name: str) -> str:
    contestants = [
        *bench.limit("os.pread", "pread_members"),
        *bench.ours("shardkit, first pass: verifies", "read", format="shardkit", scratch="fresh"),
        *bench.ours("shardkit, second pass", "read", format="shardkit", scratch="fresh", epochs=2),
    ]
    facts, results = reading(bench, name, contestants, {"shuffle": "none"})
    return harness.table(
        f"First pass over shards this machine has not verified yet: {TITLES[name]}",
        results,
        base="os.pread",
        num_bytes=facts.num_bytes,
    )


def random_table(bench: Bench, name: str) -> str:
    contestants = [
        *bench.limit("os.pread", "pread_random"),
        *bench.ours("shardkit", "random", format="shardkit"),
        *bench.peer("wids", "random_wids"),
        *bench.peer("MosaicML", "random_mosaicml", format="mds"),
        *bench.peer("LitData", "random_litdata", format="litdata"),
    ]
    _, results = reading(bench, name, contestants)
    return harness.latency_table(f"One random sample of {TITLES[name]}", results, base="os.pread")


def loader_table(bench: Bench, name: str) -> str:
    contestants = [
        *bench.limit("bare generator, no loader", "bare_generator"),
        *bench.ours("shardkit in torch DataLoader", "load_torch", format="shardkit"),
        *bench.ours("shardkit DataLoader, threads", "load_threads", format="shardkit"),
        *bench.peer("webdataset in torch DataLoader", "load_webdataset"),
        *bench.peer("MosaicML in torch DataLoader", "load_mosaicml", format="mds"),
        *bench.peer("LitData StreamingDataLoader", "load_litdata", format="litdata"),
    ]
    facts, results = reading(bench, name, contestants, {"workers": 2})
    return harness.table(
        f"Batches of 64 undecoded samples of {TITLES[name]}, 2 workers",
        results,
        base="bare generator, no loader",
        num_bytes=facts.num_bytes,
        extra=[("webdataset in torch DataLoader", "x webdataset")],
    )


# Start-up


def startup_table(bench: Bench) -> str:
    code = {
        "python -c pass": "pass",
        "import numpy": "import numpy",
        "import shardkit": "import shardkit",
        "import torch": "import torch",
        "from shardkit import ShardDataset": "from shardkit import ShardDataset",
    }
    commands = {label: [sys.executable, "-c", text] for label, text in code.items()}
    script = os.path.join(os.path.dirname(sys.executable), "shardkit")
    commands["shardkit --help"] = [script, "--help"]
    taken: dict[str, list[Result]] = {label: [] for label in commands}
    for turn in range(2 * bench.rounds + 1):
        for label, command in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode == 0 and turn > 0:
                taken[label].append(Result(time.perf_counter() - start, 1))
    lines = ["**Start-up, wall time of a process**", "", "| | ms | ms above `python -c pass` |"]
    lines.append("|---|---:|---:|")
    bare = sorted(run.seconds for run in taken["python -c pass"])
    for label, runs in taken.items():
        if runs:
            middle = sorted(run.seconds for run in runs)[len(runs) // 2]
            above = middle - bare[len(bare) // 2]
            lines.append(f"| `{label}` | {middle * 1e3:.0f} | {above * 1e3:.0f} |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[Bench], str]] = {
    "pack": lambda bench: pack_table(bench, "D1"),
    "pack-small": lambda bench: pack_table(bench, "D2"),
    "pack-large": lambda bench: pack_table(bench, "D3"),
    "read": lambda bench: read_table(bench, "D1", "none"),
    "read-shuffled": lambda bench: read_table(bench, "D1", "shard"),
    "read-small": lambda bench: read_table(bench, "D2", "none"),
    "read-small-shuffled": lambda bench: read_table(bench, "D2", "shard"),
    "verify": lambda bench: verify_table(bench, "D1"),
    "random": lambda bench: random_table(bench, "D1"),
    "loader": lambda bench: loader_table(bench, "D1"),
    "startup": startup_table,
}


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES))
    parser.add_argument("--root", default=data.DEFAULT_ROOT, help="where the data sets are")
    parser.add_argument("--memory", default="/dev/shm/shardkit-bench", help="a folder in memory")
    default = os.path.join(peers.DEFAULT_VENV, "bin", "python")
    parser.add_argument("--peers-python", default=default, help="'' leaves the peers out")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each data set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"--scale {QUICK_SCALE} --rounds 3")
    parser.add_argument("--only", default="", help="only ours and peers whose label has this")
    parser.add_argument("--write", help="a markdown file whose blocks are replaced")
    args = parser.parse_args()
    bench = Bench(
        root=os.path.abspath(args.root),
        memory=args.memory,
        python=args.peers_python if os.path.exists(args.peers_python) else "",
        scale=QUICK_SCALE if args.quick else args.scale,
        rounds=3 if args.quick else args.rounds,
        only=args.only,
    )
    if args.peers_python and not bench.python:
        print("no peers: run `python benchmarks/peers.py setup` first", file=sys.stderr)
    for name in args.tables or TABLES:
        start = time.perf_counter()
        text = TABLES[name](bench)
        said = f"{machine()}; medians of {bench.rounds}, contestants in turn, page cache warm."
        text = f"{text}\n{said}\n"
        print(f"{text}\n({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
        if args.write:
            harness.write_block(args.write, name, text)


if __name__ == "__main__":
    main()
