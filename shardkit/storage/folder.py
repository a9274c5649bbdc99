"""Where everything of a cache lies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

from shardkit.storage.entries import is_entry_name

__all__ = ["Folder"]

_ASIDES = 32
"""Folders of temporaries: few to look through after a death, enough to be spread over a disk."""

_GET_FLAGS, _SET_FLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL of linux/fs.h; see chattr(1), attribute T."""


class Folder:
    """Paths of a cache: everything it owns lies in one sub-folder of the user's folder."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(root, "shardkit-cache-1")
        self.entries = os.path.join(self.root, "entries")
        self.asides = os.path.join(self.root, "asides")
        self.leases = os.path.join(self.root, "leases")
        self.ledger = os.path.join(self.root, "ledger.sqlite")
        self.flights = os.path.join(self.root, "flights")

    def make(self) -> None:
        """Make the folders, all of them at once so that nobody ever meets a missing one."""
        if os.path.isdir(f"{self.entries}/ff") and os.path.isdir(
            f"{self.asides}/{_ASIDES - 1:02x}"
        ):
            return
        for path in (self.leases, self.asides, self.entries):
            os.makedirs(path, exist_ok=True)
        _spread(self.asides)  # where files are made; for the entries it would take 40 ms
        for path, num_folders in ((self.asides, _ASIDES), (self.entries, 256)):
            for first in range(num_folders):
                os.makedirs(os.path.join(path, f"{first:02x}"), exist_ok=True)

    def entry(self, name: str) -> str:
        """Return the path of an entry."""
        return f"{self.entries}/{name[:2]}/{name}"

    def aside(self, lease: str, number: int) -> str:
        """Return the path of a temporary: where its process looks, and who cleans up after it."""
        return f"{self.asides}/{number % _ASIDES:02x}/{lease}-{number}"

    def aside_paths(self) -> Iterator[tuple[str, str]]:
        """Yield lease and path of all temporaries on the disk."""
        for part in os.listdir(self.asides):
            folder = os.path.join(self.asides, part)
            for name in os.listdir(folder):
                yield name.split("-", 1)[0], os.path.join(folder, name)

    def entry_names(self) -> Iterator[str]:
        """Yield the names of all entries on the disk."""
        for part in sorted(os.listdir(self.entries)):
            with contextlib.suppress(NotADirectoryError):
                for name in os.listdir(os.path.join(self.entries, part)):
                    if name[:2] == part and is_entry_name(name):
                        yield name


def _spread(path: str) -> None:
    """Ask ext4 to spread the folders in ``path``, made from now on, over the disk.

    A new file's inode is looked for near that of its first folder, past all those freed in the
    last minutes, one by one: where thousands of files were just deleted, making one took 700 us,
    in folders that are spread 60 us. Filesystems that know no such flag have no such search.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (flags,) = struct.unpack("i4x", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("i4x", flags | _TOPDIR))
    except OSError:
        return
    finally:
        os.close(fd)
