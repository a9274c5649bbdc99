"""Write the index that NVIDIA DALI's ``fn.readers.webdataset`` takes, beside each tar.

    python tools/dali_index.py out/shard-*.tar

The text of DALI's own ``wds2idx`` (v1.2: per sample, ext, data offset, size and name of each
member), made from the headers alone, without DALI and without listing each tar twice.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable

from shardkit.format.keys import split_name
from shardkit.format.tar import TarMember, walk_members


def dali_index(members: Iterable[TarMember]) -> str:
    """The index of a tar with these members."""
    samples: dict[str, list[str]] = {}
    for member in members:
        key, ext = split_name(member.name)
        samples.setdefault(key, []).append(f"{ext} {member.start} {member.size} {member.name}")
    return "\n".join([f"v1.2 {len(samples)}", *map(" ".join, samples.values()), ""])


def main(tars: list[str]) -> None:
    """Write ``NAME.idx`` for each ``NAME.tar``."""
    for path in tars:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            text = dali_index(walk_members(data))  # type: ignore[arg-type]  # slices are bytes
        with open(path.removesuffix(".tar") + ".idx", "w", encoding="ascii") as out:
            out.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
