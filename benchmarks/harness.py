"""Run contestants in turn (A B C A B C …), each in a process of its own, and compare them.

A contestant is a function of a ``Task`` in a module of this folder, named in the module's
``CONTESTANTS``; it does its set-up, takes the time of the one thing that is measured, and
returns a ``Result``. Round 0 is a warm-up: caches fill, results are thrown away, and the
contestant goes over everything it yields and sums it (``check``), so that all contestants are
known to give the same bytes. The rounds after it only count. A ratio is taken within a round
and the median over the rounds is shown, so that a slow minute of the machine falls on all alike.

This file is also what the child processes run: ``python harness.py MODULE NAME TASK``.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MARK = "\x1eRESULT "
TIMEOUT_S = 600


@dataclass(frozen=True)
class Task:
    """What one contestant is asked to do. ``packed`` maps a format to the folder that has it."""

    data: str  # folder of the data set, as data.py makes it
    packed: Mapping[str, str] = field(default_factory=dict)
    out: str = ""  # an empty folder to write to
    scratch: str = ""  # an empty folder for caches
    check: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shuffled(self) -> bool:
        return self.options.get("shuffle", "none") != "none"


@dataclass(frozen=True)
class Result:
    seconds: float
    num_samples: int
    num_bytes: int = -1  # -1: not summed in this round
    crc_sum: int = -1
    latencies_us: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Contestant:
    label: str
    module: str
    name: str
    python: str = sys.executable
    options: Mapping[str, Any] = field(default_factory=dict)


def members_of(sample: Mapping[str, Any]) -> Iterable[bytes]:
    return (
        value
        for name, value in sample.items()
        if not name.startswith("__") and isinstance(value, (bytes, bytearray, memoryview))
    )


def timed_pass(dataset: Iterable[Mapping[str, Any]], task: Task) -> Result:
    """Go over all samples ``epochs`` times in this process and time the last time.

    With ``check`` also sum up the bytes, which takes longer.
    """
    for _ in range(task.options.get("epochs", 1)):
        num_samples = num_bytes = crc_sum = 0
        start = time.perf_counter()
        if task.check:
            for sample in dataset:
                num_samples += 1
                for data in members_of(sample):
                    num_bytes += len(data)
                    crc_sum += zlib.crc32(data)
        else:
            for _sample in dataset:
                num_samples += 1
        seconds = time.perf_counter() - start
    if task.check:
        return Result(seconds, num_samples, num_bytes, crc_sum)
    return Result(seconds, num_samples)


@dataclass(frozen=True)
class Again:
    """An iterable that calls ``start`` for each pass, where a library gives a generator."""

    start: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.start()


def timed_gets(get: Callable[[int], Any], ids: Sequence[int], *, warm_up: int = 200) -> Result:
    """Time single random reads, after ``warm_up`` of them that open what has to be opened."""
    for number in ids[:warm_up]:
        get(number)
    clock = time.perf_counter_ns
    taken = []
    for number in ids[warm_up:]:
        start = clock()
        get(number)
        taken.append(clock() - start)
    taken.sort()
    cuts = {"p50": taken[len(taken) // 2], "p99": taken[len(taken) * 99 // 100]}
    return Result(
        sum(taken) / 1e9,
        len(taken),
        latencies_us={name: value / 1e3 for name, value in cuts.items()},
    )


def source_rows(folder: str) -> list[tuple[str, dict[str, str]]]:
    """The samples of a data set, in order: key, and the path of each member by ext."""
    rows: dict[str, dict[str, str]] = {}
    with open(os.path.join(folder, "files.txt"), encoding="ascii") as file:
        for line in file:
            path = line.rstrip("\n")
            key, ext = os.path.basename(path).split(".", 1)
            rows.setdefault(key, {})[ext] = os.path.join(folder, path)
    return list(rows.items())


def random_ids(task: Task, count: int = 2_200) -> list[int]:
    """The samples that every contestant of random access reads, in this order."""
    return random.Random(1).choices(range(task.options["num_samples"]), k=count)


def run_once(contestant: Contestant, task: Task) -> Result:
    """Run one contestant in a fresh process and return what it measured."""
    merged = {**asdict(task), "options": {**task.options, **contestant.options}}
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
    command = [contestant.python, os.path.abspath(__file__), contestant.module, contestant.name]
    with subprocess.Popen(
        [*command, json.dumps(merged)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    ) as process:
        try:
            said, warned = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # and the workers that it left behind
            raise
    if process.returncode or MARK not in said:
        raise RuntimeError(f"{contestant.label} failed:\n{said[-2000:]}{warned[-4000:]}")
    return Result(**json.loads(said.rsplit(MARK, 1)[1]))


def contest(
    contestants: Sequence[Contestant],
    make_task: Callable[[Contestant, bool], Task],
    *,
    rounds: int = 5,
    expect: Callable[[Contestant, Result], None],
) -> dict[str, list[Result]]:
    """Alternate the contestants for ``rounds`` rounds after a checked, untimed one.

    ``make_task(contestant, check)`` readies a fresh task for each run; ``expect`` raises when
    a checked result is not what it should be. A contestant that fails is reported and left out.
    """
    results: dict[str, list[Result]] = {contestant.label: [] for contestant in contestants}
    standing = list(contestants)
    for turn in range(rounds + 1):
        for contestant in list(standing):
            try:
                result = run_once(contestant, make_task(contestant, turn == 0))
                if turn == 0:
                    expect(contestant, result)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"! {error}", file=sys.stderr)
                standing.remove(contestant)
                results.pop(contestant.label)
                continue
            print(
                f"  {'check' if turn == 0 else turn} {contestant.label}: {result.seconds:.3f} s"
                f" {dict(result.latencies_us) or ''}",
                file=sys.stderr,
                flush=True,
            )
            if turn > 0:
                results[contestant.label].append(result)
    return results


def paired(
    base: Sequence[Result], other: Sequence[Result], value: Callable[[Result], float]
) -> float:
    """Median over the rounds of how many times ``base``'s speed ``other`` reached."""
    return statistics.median(value(b) / value(o) for b, o in zip(base, other, strict=True))


def seconds(result: Result) -> float:
    return result.seconds


def table(
    title: str,
    results: Mapping[str, Sequence[Result]],
    *,
    base: str,
    num_bytes: int = 0,
    extra: Sequence[tuple[str, str]] = (),
) -> str:
    """Markdown: median speed, and speed as a multiple of ``base`` (and of each of ``extra``).

    ``extra`` holds pairs (label of a contestant, heading of its column).
    """
    ratios = [(base, f"x {base}")] + [pair for pair in extra if pair[0] in results]
    heads = ["", "samples/s", *(["MB/s"] if num_bytes else []), *(h for _, h in ratios), "spread"]
    lines = [f"**{title}**", "", "| " + " | ".join(heads) + " |"]
    lines.append("|" + "---|" + "---:|" * (len(heads) - 1))
    for label, runs in results.items():
        taken = [run.seconds for run in runs]
        middle = statistics.median(taken)
        cells = [label, f"{runs[0].num_samples / middle:,.0f}"]
        if num_bytes:
            cells.append(f"{num_bytes / middle / 1e6:,.0f}")
        cells += [f"{paired(results[other], runs, seconds):.3g}" for other, _ in ratios]
        cells.append(f"{min(taken) / middle:.2f} to {max(taken) / middle:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def latency_table(title: str, results: Mapping[str, Sequence[Result]], *, base: str) -> str:
    """Markdown: p50 and p99 of single reads, and their ratio to those of ``base``."""
    lines = [f"**{title}**", "", f"| | p50 µs | p99 µs | p50 ÷ {base} | p99 ÷ {base} |"]
    lines.append("|---|---:|---:|---:|---:|")
    for label, runs in results.items():
        cells, ratios = [label], []
        for name in ("p50", "p99"):
            cells.append(f"{statistics.median(run.latencies_us[name] for run in runs):,.1f}")
            pairs = zip(results[base], runs, strict=True)
            slower = [o.latencies_us[name] / b.latencies_us[name] for b, o in pairs]
            ratios.append(f"{statistics.median(slower):.2f}")
        lines.append("| " + " | ".join([*cells, *ratios]) + " |")
    return "\n".join(lines) + "\n"


def warm(folder: str) -> int:
    """Read every file below a folder once, so that the page cache holds it; return the bytes."""
    total = 0
    buffer = bytearray(1 << 20)
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
    return total


def write_block(path: str, name: str, text: str) -> None:
    """Put ``text`` between the marks ``<!-- benchmark NAME -->`` and ``<!-- end -->`` of a file."""
    with open(path, encoding="utf-8") as file:
        page = file.read()
    mark = f"<!-- benchmark {name} -->"
    pattern = re.compile(re.escape(mark) + r".*?<!-- end -->", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path} has no block {mark} … <!-- end -->")
    block = f"{mark}\n{text.rstrip()}\n<!-- end -->"
    with open(path, "w", encoding="utf-8") as file:
        file.write(pattern.sub(lambda _: block, page))


def child(module: str, name: str, task: str) -> None:
    """Run one contestant here and print its result for the parent."""
    run = importlib.import_module(module).CONTESTANTS[name]
    result = run(Task(**json.loads(task)))
    print(MARK + json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    # The contestants must see the same classes as this script: not "__main__"'s.
    sys.modules["harness"] = sys.modules["__main__"]
    child(*sys.argv[1:4])
