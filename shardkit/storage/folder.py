"""Where everything of a cache lies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from shardkit.storage.asides import spread_folders
from shardkit.storage.entries import is_entry_name

__all__ = ["Folder"]


class Folder:
    """Paths of a cache: everything it owns lies in one sub-folder of the user's folder."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(root, "shardkit-cache-2")
        self.entries = os.path.join(self.root, "entries")
        self.asides = os.path.join(self.root, "asides")
        self.leases = os.path.join(self.root, "leases")
        self.ledger = os.path.join(self.root, "ledger.sqlite")
        self.flights = os.path.join(self.root, "flights")
        self.segments = os.path.join(self.root, "segments")
        self.places = os.path.join(self.root, "places")

    def make(self) -> None:
        """Make the folders that every cache has."""
        for path in (self.leases, self.asides, self.segments, self.entries):
            os.makedirs(path, exist_ok=True)
        spread_folders(self.asides)

    def move_in(self, aside: str, name: str) -> None:
        """Give a temporary the place of an entry."""
        try:
            os.rename(aside, self.entry(name))
        except FileNotFoundError:  # the first with these two digits
            os.makedirs(os.path.dirname(self.entry(name)), exist_ok=True)
            os.rename(aside, self.entry(name))

    def entry(self, name: str) -> str:
        """Return the path of an entry."""
        return f"{self.entries}/{name[:2]}/{name}"

    def segment(self, name: str) -> str:
        """Return the path of a segment."""
        return f"{self.segments}/{name}"

    def entry_names(self) -> Iterator[str]:
        """Yield the names of all entries on the disk."""
        for part in sorted(os.listdir(self.entries)):
            with contextlib.suppress(NotADirectoryError):
                for name in os.listdir(os.path.join(self.entries, part)):
                    if name[:2] == part and is_entry_name(name):
                        yield name
