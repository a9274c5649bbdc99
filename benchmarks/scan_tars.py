"""How fast tars with no sidecar are scanned, beside Python's tarfile; one process, page cache warm.

    python benchmarks/scan_tars.py [--folder DIR] [--rounds 5]

Contestants alternate; a ratio is taken within a round, and the median over the rounds is shown.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shardkit.index import scan_tar

KINDS = {
    "5,000 x (100 KB jpg, 200 B json)": (5_000, 100_000, tarfile.USTAR_FORMAT),
    "50,000 x (1 KB jpg, 200 B json)": (50_000, 1_000, tarfile.USTAR_FORMAT),
    "20,000 x the same, PAX record each": (20_000, 1_000, tarfile.PAX_FORMAT),
}


def make_tar(path: Path, count: int, size: int, tar_format: int) -> None:
    data = os.urandom(size)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for i in range(count):
            for ext, length in (("jpg", size), ("json", 200)):
                info = tarfile.TarInfo(f"{i:07d}.{ext}")
                info.size = length
                info.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1  # type: ignore[assignment]
                tar.addfile(info, io.BytesIO(data[:length]))


def ours(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        scan = scan_tar(lambda start, stop: os.pread(fd, stop - start, start), size, str(path))
    finally:
        os.close(fd)
    return sum(scan.table.column(ext).length() for ext in scan.table.column_names[1:])


def tarfiles(path: Path) -> int:
    with tarfile.open(path) as tar:
        return sum(1 for member in tar if member.isreg())


def timed(scan: Callable[[Path], int], path: Path) -> tuple[float, int]:
    start = time.perf_counter()
    count = scan(path)
    return time.perf_counter() - start, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print("| tar | shardkit, µs a member | tarfile, µs a member | ratio |")
        print("|---|---|---|---|")
        for i, (label, (count, size, tar_format)) in enumerate(KINDS.items()):
            path = Path(folder) / f"{i}.tar"
            make_tar(path, count, size, tar_format)
            rounds = []
            for _ in range(args.rounds + 1):
                (mine, found), (theirs, expected) = timed(ours, path), timed(tarfiles, path)
                assert found == expected == 2 * count
                rounds.append((mine / expected * 1e6, theirs / expected * 1e6, theirs / mine))
            mine, theirs, ratio = (
                statistics.median(column) for column in zip(*rounds[1:], strict=True)
            )
            print(f"| {label} | {mine:.1f} | {theirs:.1f} | {ratio:.1f} |")
            path.unlink()


if __name__ == "__main__":
    main()
