"""What a cache's folder holds as anybody sees it from outside: nothing here asks our own code."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

BLOCK = 4096
OURS = "shardkit-cache-2"


def data_bytes(path: Path | str) -> int:
    """Bytes of a file that take room: its extents of data, not its holes (nor its metadata)."""
    return sum(end - start for start, end in data_extents(path))


def data_extents(path: Path | str) -> Iterator[tuple[int, int]]:
    """Where a file has data."""
    fd = os.open(path, os.O_RDONLY)
    end = 0
    try:
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, end
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data any more
            raise
    finally:
        os.close(fd)


def entry_files(folder: Path | str) -> list[Path]:
    """Entries that are files of their own."""
    return [p for p in (Path(folder) / OURS / "entries").glob("*/*") if len(p.stem) == 32]


def segments(folder: Path | str) -> list[Path]:
    """The files of packed entries."""
    return sorted((Path(folder) / OURS / "segments").glob("*"))


def packed_bytes(folder: Path | str) -> int:
    """Bytes of packed entries, in whole blocks."""
    return sum(map(data_bytes, segments(folder)))


def disk_bytes(folder: Path | str) -> int:
    """Bytes of entries and temporaries."""
    files = [*entry_files(folder), *(Path(folder) / OURS / "asides").glob("*/*")]
    return packed_bytes(folder) + sum(p.stat().st_size for p in files)


def open_in(folder: Path | str) -> list[str]:
    """Files in ``folder`` that this process has open; what other tests left open is not judged."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(f"{os.path.realpath(folder)}/")]


def damage(path: str, start: int, size: int, how: str) -> None:
    """Change an entry's bytes behind the cache's back: flip, cut, delete or (a file only) grow."""
    if how == "delete":
        os.unlink(path)
        return
    with open(path, "r+b") as file:
        if how == "flip":
            file.seek(start + size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        elif how == "cut":
            file.truncate(start + size - 1)
        elif how == "grow":
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        else:
            raise ValueError(how)
