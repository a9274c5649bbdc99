"""Small sets of real files with an index, and looks at what was packed of them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.pack import LocalExecutor, PackOptions, PackSummary, pack

CAPTIONS = ("a lighthouse at dawn", "ein Haus “im Regen”", "", "猫", None)


def make_files(
    folder: Path, count: int = 24, *, mean_bytes: int = 2_000, seed: int = 0, **columns: list[Any]
) -> Path:
    """Write ``count`` binary files with a note beside every third, and an index of them.

    Args:
        folder: where; made if need be.
        count: rows.
        mean_bytes: of the files, whose sizes vary by half of it.
        seed: of their contents.
        columns: in place of, or besides, the index's own.
    """
    rng = np.random.default_rng(seed)
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for row in range(count):
        size = int(rng.integers(mean_bytes // 2, mean_bytes * 3 // 2))
        (folder / "files" / f"{row:05d}.bin").write_bytes(rng.bytes(size))
        if row % 3 == 0:
            (folder / "files" / f"{row:05d}.note").write_text(f"note {row}")
    table = {
        "id": [f"sample_{row:05d}" for row in range(count)],
        "data": [f"files/{row:05d}.bin" for row in range(count)],
        "note": [f"files/{row:05d}.note" if row % 3 == 0 else None for row in range(count)],
        "caption": [CAPTIONS[row % len(CAPTIONS)] for row in range(count)],
        "score": [row / 7 if row % 5 else None for row in range(count)],
        "big": [2**60 + row for row in range(count)],
        "tags": [[f"t{row % 3}", "x"] for row in range(count)],
        **columns,
    }
    index = folder / "index.parquet"
    pq.write_table(pa.table(table), index, row_group_size=10)
    return index


FILES = ["data", "note=note"]


def pack_files(index: Path | str | pa.Table, out: Path | str, **changes: Any) -> PackSummary:
    """Pack an index of ``make_files`` in this process, six samples a shard, but for ``changes``."""
    names = ("shard_size", "samples_per_shard", "shuffle", "seed", "on_error", "metadata_member")
    options = {name: changes.pop(name) for name in names if name in changes}
    if "shard_size" not in options:
        options.setdefault("samples_per_shard", 6)
    workers = changes.pop("workers", 1)
    return pack(
        index if isinstance(index, pa.Table) else str(index),
        str(out),
        **{"files": FILES, "inline": ["caption=txt"], **changes},
        options=PackOptions(**options),
        executor=LocalExecutor(workers),
    )


def contents(folder: Path | str) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path in it."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            found[os.path.relpath(path, folder)] = Path(path).read_bytes()
    return found


def num_files_below(folder: Path | str) -> int:
    """Files below a folder, hidden ones too; 0 where there is none."""
    return sum(len(names) for _, _, names in os.walk(folder))


def kill_at(process: subprocess.Popen[bytes], folder: Path, num_files: int) -> bool:
    """Kill a process once so many files lie below a folder; whether it had not ended before.

    What it started ends with it.
    """
    while process.poll() is None and num_files_below(folder) < num_files:
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    orphans = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    was_killed = process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(orphans, timeout=10)
    assert not alive, "workers outlive their parent"
    return was_killed


def tar_samples(folder: Path | str) -> dict[str, dict[str, bytes]]:
    """All samples of all tars of a folder as Python's own tarfile reads them, in order."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, ext = member.name.split(".", 1)
                file = tar.extractfile(member)
                assert isinstance(file, io.BufferedReader)
                samples.setdefault(key, {})[ext] = file.read()
    return samples


def workers_alive() -> list[int]:
    """Process ids of this process's pack workers."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "shardkit.executors" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found
