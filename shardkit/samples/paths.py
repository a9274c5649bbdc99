"""Members as local paths, for libraries that want a file: good for as long as they are held."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

from shardkit.errors import CacheError
from shardkit.storage.cache import in_memory
from shardkit.storage.entries import Entry, open_entry

__all__ = ["PinnedPath", "path_in_memory"]

_MOST_SENT = 1_024
"""Paths on their way to another process whose files stay pinned: more than batches in flight have,
and as many open files."""

_sent: deque[Entry] = deque()  # the oldest is unpinned when there are too many
_lock = threading.Lock()


class PinnedPath(str):  # noqa: SLOT000 - it needs a __weakref__, which str has no slot for
    """A path whose file stays while the path is held: an entry of the cache, pinned.

    Unpickled in another process it pins the entry again there.
    """

    entry: Entry

    def __new__(cls, entry: Entry) -> PinnedPath:
        """Take the entry over; it is closed when the path is collected."""
        path = super().__new__(cls, entry.path)
        path.entry = entry
        weakref.finalize(path, entry.close).atexit = False
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.entry.is_cached:
            return path_in_memory, (bytes(self.entry.data),)
        again = open_entry(self.entry.path)
        if again is not None:
            with _lock:
                _sent.append(again)
                while len(_sent) > _MOST_SENT:
                    _sent.popleft().close()
        return _arrived, (str(self),)


def _arrived(path: str) -> PinnedPath:
    """Pin what came from another process."""
    entry = open_entry(path)
    if entry is None:
        raise CacheError(
            f"{path} was evicted on its way between processes: raise cache_limit to several "
            "batches for each worker, or use threads (shardkit.DataLoader)"
        )
    return PinnedPath(entry)


def path_in_memory(data: bytes) -> PinnedPath:
    """Return a path to an anonymous file in memory that holds these bytes."""
    return PinnedPath(in_memory("a member", lambda sink: sink.write(data), len(data)))
