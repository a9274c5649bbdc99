"""What kind of filesystem a path lies on: locks and mappings cannot be trusted on a network one."""

from __future__ import annotations

import os
import re

__all__ = ["filesystem_of", "is_network_path"]

_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fhgfs", "glusterfs", "gpfs", "lustre",
        "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
    }
)  # fmt: skip
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuseblk", "fuse.mergerfs", "fuse.lxcfs"})


def filesystem_of(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the type of the filesystem that holds ``path`` (``ext4``, ``nfs4``, …), "" unknown.

    The path need not exist yet. Source: proc_pid_mountinfo(5).
    """
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), left.split(" ")[4])
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, right.split(" ", 1)[0]
    except OSError:
        return ""
    return kind


def is_network_path(path: str) -> bool:
    """Does ``path`` lie on a network filesystem, where another machine may cut or lock a file?"""
    kind = filesystem_of(path)
    return kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
