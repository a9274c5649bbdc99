"""Worker processes: fresh interpreters that do one pickled task for many items.

Not ``multiprocessing``'s own, because those import the caller's main module again (a script that
calls ``pack`` without ``if __name__ == "__main__"`` would start itself), and because one of its
pools is broken as a whole when one worker is killed. Nothing of the parent is copied: no lock, no
client, no memory. A worker ends with its parent, however that ends, and Ctrl-C is the parent's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable

from shardkit.executors.messages import Done, Failed, Progress, sendable

__all__ = ["Worker", "start_worker", "work"]

_START = (
    "import sys; sys.path[:] = {path!r}; from shardkit.executors.workers import work; work{args}"
)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process, seen from its parent."""

    process: subprocess.Popen[bytes]
    connection: Connection
    life: int
    """File descriptor of a pipe: when our end closes, the worker ends."""

    def end(self) -> None:
        """Let it go: it has nothing to do, or was killed, and ends at once."""
        os.close(self.life)
        self.process.wait()
        self.connection.close()


class _NoPandas(MetaPathFinder):
    """Keeps pandas out of workers: pyarrow imports it at its first array, which takes 0.3 s."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        del path, target
        if name == "pandas":
            raise ModuleNotFoundError("workers do without pandas", name=name)


def start_worker(imports: str | None = None) -> Worker:
    """Start a process that waits for a pickled task, and then does it for every item it is sent.

    While it waits it imports the module ``imports``, the task's.
    """
    ours, theirs = socket.socketpair()
    life_read, life_write = os.pipe()
    with theirs:
        fds = (theirs.fileno(), life_read)
        start = _START.format(path=sys.path, args=(*fds, imports))
        process = subprocess.Popen(
            [get_executable(), "-c", start],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            process_group=0,
        )
    os.close(life_read)
    return Worker(process, Connection(ours.detach()), life_write)


def work(connection_fd: int, life_fd: int, imports: str | None) -> None:
    """Do items until the parent has no more; the life of a worker process."""
    sys.meta_path.insert(0, _NoPandas())
    threading.Thread(target=_end_with_parent, args=(life_fd,), daemon=True).start()
    if imports is not None:
        importlib.import_module(imports)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # no parent
        _serve(Connection(connection_fd))


def _serve(connection: Connection) -> None:
    task = pickle.loads(connection.recv_bytes())
    while True:
        item = connection.recv()
        try:
            message: Done | Failed = Done(
                task(item, lambda *done: connection.send(Progress(*done)))
            )
        except Exception as error:  # noqa: BLE001 - the parent raises it
            message = Failed(sendable(error))
        connection.send(message)


def _end_with_parent(life_fd: int) -> None:
    os.read(life_fd, 1)  # nothing is ever written: this returns when the parent's end is closed
    os._exit(1)
