"""Temporaries: each process writes them in folders of its own, a new one for every few files.

ext4 looks for a new file's inode near its first folder, past all those that were freed in the last
minutes, one by one: where thousands of files were just deleted, making one took 100 to 1,200 us.
Folders in one that is marked (chattr(1), attribute T) are spread over the disk by their names, so a
new name is a new place, mostly one where nothing was deleted: 60 us.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

__all__ = ["Asides", "aside_files", "remove_asides", "spread_folders"]

_MOST = 500
"""Files made in one folder: making it costs about as much as making two files."""

_GET_FLAGS, _SET_FLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL of linux/fs.h."""


class Asides:
    """Where the process of a lease writes. Not thread-safe: its cache calls it under one lock."""

    def __init__(self, root: str, lease: str) -> None:
        self._root = root
        self._lease = lease
        self._num_folders = 0
        self._num_files = 0
        self._folders: list[str] = []  # those that may hold files; the last is in use

    def make(self) -> tuple[int, str]:
        """Make a new temporary, so that its folder is not empty; return it, open, and its path."""
        if not self._folders or self._num_files >= _MOST:
            folder = os.path.join(self._root, f"{self._lease}-{self._num_folders}")
            os.mkdir(folder)
            self.remove_empty()
            self._folders.append(folder)
            self._num_folders += 1
            self._num_files = 0
        self._num_files += 1
        path = f"{self._folders[-1]}/{self._num_files}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), path

    def remove_empty(self) -> None:
        """Delete the folders in which nothing is being written."""
        self._folders = [folder for folder in self._folders if not _is_removed(folder)]


def aside_files(root: str) -> Iterator[tuple[str, str]]:
    """Yield lease and path of all temporaries on the disk."""
    for name in os.listdir(root):
        folder = os.path.join(root, name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for file in os.listdir(folder):
                yield name.split("-", 1)[0], os.path.join(folder, file)


def remove_asides(root: str, leases: set[str]) -> None:
    """Delete the temporaries of these leases."""
    for lease, path in aside_files(root):
        if lease in leases:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    for name in os.listdir(root):
        if name.split("-", 1)[0] in leases:
            _is_removed(os.path.join(root, name))


def spread_folders(path: str) -> None:
    """Ask ext4 to spread the folders in ``path``, made from now on, over the disk.

    Filesystems that know no such flag have no such search.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (flags,) = struct.unpack("i4x", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("i4x", flags | _TOPDIR))
    except OSError:
        return
    finally:
        os.close(fd)


def _is_removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:  # not empty
        return False
    return True
