"""Small packed datasets to reshard, and looks at what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shardkit.executors import LocalExecutor
from shardkit.pack import PackOptions, ReshardSummary, reshard
from tests.pack.data import make_files, pack_files

WAYS = ("ranges", "spill")


def make_source(folder: Path, count: int = 60, **changes: Any) -> Path:
    """Pack ``count`` samples of ``make_files`` into shards of seven."""
    columns = {name: changes.pop(name) for name in ("id", "split", "flag") if name in changes}
    mean_bytes = changes.pop("mean_bytes", 2_000)
    index = make_files(folder / "src", count, mean_bytes=mean_bytes, **columns)
    pack_files(index, folder / "packed", **{"samples_per_shard": 7, **changes})
    return folder / "packed"


def reshard_files(source: Path | str, out: Path | str, **changes: Any) -> ReshardSummary:
    """Reshard in this process, nine samples a shard, in the order of seed 1; or as changed."""
    names = ("shard_size", "samples_per_shard", "shuffle", "seed", "on_error", "metadata_member")
    options = {name: changes.pop(name) for name in names if name in changes}
    if "shard_size" not in options:
        options.setdefault("samples_per_shard", 9)
    workers = changes.pop("workers", 1)
    return reshard(
        str(source),
        str(out),
        options=PackOptions(**{"shuffle": "global", "seed": 1, **options}),
        executor=LocalExecutor(workers),
        **changes,
    )


def sidecar_rows(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of all sidecars of a folder, in order."""
    rows: list[dict[str, Any]] = []
    for path in sorted(Path(folder).glob("shard-*.parquet")):
        rows.extend(pq.read_table(path).to_pylist())
    return rows


def keys_of(folder: Path | str) -> list[str]:
    """The keys of all samples of a folder, in order."""
    return [row["__key__"] for row in sidecar_rows(folder)]
