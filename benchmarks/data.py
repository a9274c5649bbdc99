"""Make the benchmark data sets: the same files, byte for byte, for one version of Pillow.

D1  20,000 photos-like JPEGs of about 100 KB, each with a small json
D2  200,000 json samples of about 1 KB
D3  400 members of 5 MB that do not compress

    python benchmarks/data.py D1 D2 D3 [--root FOLDER] [--scale 0.1]

Each lies as plain files in folders of 1,000, beside ``index.parquet`` (a key and one path a
member), ``files.txt`` (the relative paths, for GNU tar) and ``facts.json`` (counts and sums
that every contestant is held against). D2 also has ``inline.parquet``: the same values in a
column. D1 encodes 256 distinct pictures and gives each file a picture of those with its own
comment segment, so that no two files are equal and making them takes seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DEFAULT_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".data")
NUM_PICTURES = 256
PER_FOLDER = 1_000
MAKER_VERSION = 1
WORDS = ("amber", "birch", "cloud", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty")

Sample = dict[str, bytes]


@dataclass(frozen=True)
class Facts:
    """What a data set holds; ``crc_sum`` is the sum of the CRC-32 of all member bytes."""

    name: str
    scale: float
    version: int
    num_samples: int
    num_members: int
    num_bytes: int
    crc_sum: int


def pictures(count: int) -> list[bytes]:
    """JPEGs of 640 x 480 with detail at every scale, as photos have; about 100 KB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    grain = rng.normal(0, 16, (1024, 1024, 3)).astype(np.float32)
    made = []
    for number in range(count):
        top, left = rng.integers(0, 1024 - 480), rng.integers(0, 1024 - 640)
        canvas = grain[top : top + 480, left : left + 640] + 128
        for cells in (2, 4, 8, 16, 32, 64, 128):
            grid = rng.integers(0, 256, (cells * 3 // 4 + 1, cells, 3), np.uint8)
            layer = Image.fromarray(grid).resize((640, 480), Image.Resampling.BILINEAR)
            canvas = canvas + (np.asarray(layer, np.float32) - 128) * np.float32(cells**-0.6)
        out = io.BytesIO()
        pixels = np.clip(canvas, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "JPEG", quality=79 + number % 12)
        made.append(out.getvalue())
    return made


def with_comment(jpeg: bytes, comment: bytes) -> bytes:
    """Put a COM segment right after SOI (ITU T.81, B.2.4.5); every decoder skips it."""
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def caption(number: int) -> str:
    draws = [(number * 2_654_435_761 >> shift) % len(WORDS) for shift in range(0, 24, 3)]
    return " ".join(WORDS[draw] for draw in draws)


def photos(count: int) -> Iterator[tuple[str, Sample]]:
    bases = pictures(min(count, NUM_PICTURES))
    for number in range(count):
        key = f"{number:08d}"
        jpeg = with_comment(bases[number * 97 % len(bases)], f"shardkit {key}".encode())
        described = {"id": number, "caption": caption(number), "width": 640, "height": 480}
        yield key, {"jpg": jpeg, "json": json.dumps(described).encode()}


def records(count: int) -> Iterator[tuple[str, Sample]]:
    for number in range(count):
        turns = [caption(number * 31 + turn) for turn in range(15 + number % 9)]
        value = {"id": number, "score": number % 1000 / 10, "turns": turns}
        yield f"{number:08d}", {"json": json.dumps(value).encode()}


def blocks(count: int) -> Iterator[tuple[str, Sample]]:
    rng = np.random.default_rng(3)
    bases = [rng.bytes(5_000_000 - 16) for _ in range(min(count, 8))]
    for number in range(count):
        yield f"{number:08d}", {"bin": f"{number:016d}".encode() + bases[number % len(bases)]}


MAKERS: dict[str, tuple[int, Callable[[int], Iterator[tuple[str, Sample]]]]] = {
    "D1": (20_000, photos),
    "D2": (200_000, records),
    "D3": (400, blocks),
}


def folder_of(name: str, root: str = DEFAULT_ROOT, scale: float = 1.0) -> str:
    return os.path.join(root, name if scale == 1 else f"{name}-{scale:g}")


def read_facts(folder: str) -> Facts:
    with open(os.path.join(folder, "facts.json"), encoding="ascii") as file:
        return Facts(**json.load(file))


def make(name: str, root: str = DEFAULT_ROOT, scale: float = 1.0) -> str:
    """Return the folder of a data set, made now unless it is there and whole."""
    folder = folder_of(name, root, scale)
    try:
        if read_facts(folder).version == MAKER_VERSION:
            return folder
    except (OSError, TypeError, ValueError):
        pass  # not there, or cut short: made below
    shutil.rmtree(folder, ignore_errors=True)
    full, maker = MAKERS[name]
    count = max(1, round(full * scale))
    columns: dict[str, list[str]] = {"key": []}
    inline: dict[str, list[str]] = {"key": [], "json": []}
    num_members = num_bytes = crc_sum = 0
    for number, (key, members) in enumerate(maker(count)):
        place = os.path.join("files", f"{number // PER_FOLDER:04d}")
        if number % PER_FOLDER == 0:
            os.makedirs(os.path.join(folder, place))
        columns["key"].append(key)
        for ext, data in members.items():
            path = os.path.join(place, f"{key}.{ext}")
            with open(os.path.join(folder, path), "wb", buffering=0) as file:
                file.write(data)
            columns.setdefault(ext, []).append(path)
            num_members, num_bytes = num_members + 1, num_bytes + len(data)
            crc_sum += zlib.crc32(data)
        if name == "D2":
            inline["key"].append(key)
            inline["json"].append(members["json"].decode())
    exts = [column for column in columns if column != "key"]
    with open(os.path.join(folder, "files.txt"), "w", encoding="ascii") as file:
        file.writelines(
            f"{path}\n" for row in zip(*(columns[e] for e in exts), strict=True) for path in row
        )
    absolute = {ext: [os.path.join(folder, path) for path in columns[ext]] for ext in exts}
    table = pa.table({"key": columns["key"], **absolute})
    pq.write_table(table, os.path.join(folder, "index.parquet"), row_group_size=10_000)
    if name == "D2":
        pq.write_table(
            pa.table(inline), os.path.join(folder, "inline.parquet"), row_group_size=10_000
        )
    facts = Facts(name, scale, MAKER_VERSION, count, num_members, num_bytes, crc_sum)
    with open(os.path.join(folder, "facts.json"), "w", encoding="ascii") as file:
        json.dump(asdict(facts), file, indent=1)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["D1", "D2", "D3"], metavar="D1|D2|D3")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder (/dev/shm/… for memory)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the samples to make")
    args = parser.parse_args()
    for name in args.names:
        start = time.perf_counter()
        folder = make(name, os.path.abspath(args.root), args.scale)
        facts = read_facts(folder)
        print(
            f"{folder}: {facts.num_samples:,} samples, {facts.num_bytes / 1e6:,.0f} MB"
            f" ({facts.num_bytes / facts.num_members / 1e3:,.1f} KB a member),"
            f" {time.perf_counter() - start:.1f} s"
        )


if __name__ == "__main__":
    main()
