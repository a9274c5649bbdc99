"""Idle connections, kept for the next request to the same server."""

from __future__ import annotations

import threading
from typing import Generic, Protocol, TypeVar

__all__ = ["Pool"]

_MOST_PER_SERVER = 64
"""As many as fetch ever uses at once."""

_MOST = 128
"""An index may name files of thousands of servers, and descriptors are few."""


class _Connection(Protocol):
    def close(self) -> None: ...


S = TypeVar("S")
C = TypeVar("C", bound=_Connection)


class Pool(Generic[S, C]):
    """Connections by server. Thread-safe; those idle the longest are closed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[S, list[C]] = {}  # the server used last is last; guarded by _lock
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def take(self, server: S) -> C | None:
        """Return an idle connection, if there is one; the caller has it alone."""
        with self._lock:
            idle = self._idle.get(server)
            if not idle:
                return None
            self._num -= 1
            connection = idle.pop()
            if not idle:
                del self._idle[server]
            return connection

    def give_back(self, server: S, connection: C) -> None:
        """Keep a connection over which nothing is on its way; another may be closed for it."""
        with self._lock:
            idle = self._idle.pop(server, [])
            self._idle[server] = idle
            idle.append(connection)
            self._num += 1
            oldest = server if len(idle) > _MOST_PER_SERVER else next(iter(self._idle))
            if len(idle) <= _MOST_PER_SERVER and self._num <= _MOST:
                return
            self._num -= 1
            closed = self._idle[oldest].pop(0)
            if not self._idle[oldest]:
                del self._idle[oldest]
        closed.close()
