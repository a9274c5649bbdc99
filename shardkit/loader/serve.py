"""What runs in a loader process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.reduction import send_handle

from shardkit.errors import ShardkitError
from shardkit.loader.segments import Parcel, Writer
from shardkit.loader.stats import CacheCounts, counts_of
from shardkit.loader.work import BatchMaker, Made, keep_memory

__all__ = ["Reply", "serve"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A batch that was made: all but its value, and where that lies."""

    made: Made
    parcel: Parcel
    cache: CacheCounts


def serve(
    maker: BatchMaker,
    connection: Connection,
    number: int,
    worker_init: Callable[[int], None] | None,
) -> None:
    """Make batches until the consumer is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the consumer, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # as torch's own workers: the cores are shared by them all
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            if worker_init is not None:
                worker_init(number)
        except Exception as error:  # noqa: BLE001 - told to the consumer
            connection.recv()
            connection.send(_portable(error))
            return
        writer = Writer()
        while True:
            job, segment, dropped = connection.recv()
            writer.forget(dropped)
            try:
                made = maker(job)
                parcel, fd = writer.write(made.value, segment)
            except Exception as error:  # noqa: BLE001 - told to the consumer
                connection.send(_portable(error))
                continue
            made.value = None
            made.failures = [
                (feed, replace(failed, error=_portable(failed.error)))
                for feed, failed in made.failures
            ]
            connection.send(Reply(made, parcel, counts_of(maker.feeds)))
            if fd is not None:
                send_handle(connection, fd, os.getppid())
                os.close(fd)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error with the worker's traceback as a note; one that can't be pickled, as its text."""
    text = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error):
            error.add_note(f"in a loader worker:\n{text}")
            return error
    except Exception:  # noqa: BLE001 - many exceptions can't be pickled, each in its own way
        return ShardkitError(f"in a loader worker: {text}")
    return ShardkitError(f"in a loader worker: {text}")
