"""Plans on a Ray cluster: the one module that knows Ray, which is imported when it is asked for.

The task goes to the cluster once, pickled; an item is one Ray task, which streams what a local
worker sends too: progress, then the result or the error. All of that is small and lands in the
driver's own memory: the bytes of shards never touch Ray's object store. Who is lost (a worker, a
node) is seen here, and the item is done anew, on whichever node has room; Ray's own retries are
off, since a stream that is replayed would hide what was lost.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import queue
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from shardkit import __version__
from shardkit.errors import ConfigError, MissingDependencyError
from shardkit.executors.local import WorkerLostError
from shardkit.executors.messages import Done, Failed, Progress, sendable
from shardkit.executors.protocol import Report, Task

__all__ = ["RayExecutor"]

logger = logging.getLogger(__name__)

R = TypeVar("R")

_MAX_LOSSES = 3
"""Workers lost at one item before a run gives up: an item that needs too much memory kills each one
that tries it; a cluster of spot machines loses many, but seldom four at the same shard."""

_REPORT_S = 0.5  # between two words of a worker: a hundred workers send 200 small messages a second
_LOOK_S = 5.0  # between two looks at how many workers the cluster has room for
_CONNECT_S = 10.0  # for a TCP connection; ray.init itself takes minutes to see that nobody is there


class RayExecutor:
    """Workers on a Ray cluster; see ``Executor``.

    All nodes must see what the task names, under the same paths or URLs. A program that has called
    ``ray.init`` itself keeps its connection; otherwise one is made for the run and closed after it.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_workers: int | None = None,
        cpus_per_worker: float = 1.0,
    ) -> None:
        """Nothing is connected to before the run.

        Args:
            address: of a running cluster, ``"host:port"`` or ``"auto"``; by default that of
                ``RAY_ADDRESS`` or of this machine; if there is none, one is started for the run.
            num_workers: items at a time; by default as many as the cluster has CPUs for, counted
                again as nodes come and go. An autoscaler grows the cluster to a given number.
            cpus_per_worker: that Ray reserves for each. Packing one shard keeps one core busy.

        Raises:
            ConfigError: a number is out of bounds.
        """
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"workers={num_workers} must be at least 1")
        if cpus_per_worker <= 0:
            raise ConfigError(f"cpus_per_worker={cpus_per_worker} must be above 0")
        self.address = address
        self.num_workers = num_workers
        self.cpus_per_worker = cpus_per_worker

    @contextlib.contextmanager
    def ready(self, task: type[object] | None = None) -> Iterator[None]:
        """See ``Executor``: connected to the cluster.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigError: there is no cluster at the address.
        """
        del task
        ray = _import_ray()
        if ray.is_initialized():
            yield
            return
        _connect(ray, self.address)
        try:
            yield
        finally:
            ray.shutdown()

    def run(self, task: Task[R], items: Iterable[int], report: Report) -> Iterator[R]:
        """See ``Executor``."""
        todo = deque(items)
        if not todo:
            return
        with self.ready(), contextlib.closing(_Crew(self, task, todo, report)) as crew:
            while crew.send():
                yield from crew.step()


class _Crew:
    """The items that are on the cluster now, each a stream of messages."""

    def __init__(
        self, executor: RayExecutor, task: Task[Any], todo: deque[int], report: Report
    ) -> None:
        self._ray = _import_ray()
        self._work = self._ray.remote(_work).options(
            num_cpus=executor.cpus_per_worker,
            num_returns="streaming",
            max_retries=0,
            scheduling_strategy="SPREAD",  # every node has a disk and a network of its own
        )
        self._host = self._ray.put(_Driver(os.getcwd(), tuple(sys.path), __version__))
        self._task = self._ray.put(pickle.dumps(task))
        self._todo = todo
        self._report = report
        self._executor = executor
        self._streams: dict[Any, int] = {}
        self._losses: Counter[int] = Counter()
        self._room = 0
        self._looked = -_LOOK_S

    def send(self) -> bool:
        """Give the cluster as many items as it has room for; whether any is on it."""
        while self._todo and len(self._streams) < self._num_at_once():
            item = self._todo.popleft()
            self._streams[self._work.remote(self._host, self._task, item)] = item
        return bool(self._streams)

    def step(self) -> list[Any]:
        """Wait for word from workers; returns results that came."""
        results = []
        ready, _ = self._ray.wait(list(self._streams), timeout=_LOOK_S)
        for stream in ready:
            message = self._next(stream)
            if isinstance(message, Progress):
                self._report(message.samples, message.num_bytes)
            elif isinstance(message, Failed):
                raise message.error
            elif isinstance(message, Done):
                del self._streams[stream]
                results.append(message.result)
        return results

    def close(self) -> None:
        """End all workers now: after an error or Ctrl-C nobody wants what they are doing."""
        for stream in self._streams:
            self._ray.cancel(stream, force=True)
        self._streams = {}

    def _next(self, stream: Any) -> Progress | Done | Failed | None:
        """The next message of a stream; None if its worker was lost, and the item goes again."""
        errors = self._ray.exceptions
        try:
            message: Progress | Done | Failed = self._ray.get(next(stream))
        except (
            StopIteration,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        ) as error:
            self._lost(stream, error)
            return None
        except errors.RuntimeEnvSetupError as error:
            raise ConfigError(f"Ray can't set up its workers: {error}") from error
        except errors.RayTaskError as error:  # raised before our own code ran
            raise _stranger(error) from error
        except errors.RayError as error:
            raise WorkerLostError(
                f"the Ray cluster failed ({error}); what is finished stays: run the same command "
                "again to continue"
            ) from error
        return message

    def _lost(self, stream: Any, error: Exception) -> None:
        item = self._streams.pop(stream)
        self._losses[item] += 1
        if self._losses[item] > _MAX_LOSSES:
            raise WorkerLostError(
                f"{self._losses[item]} workers were lost one after the other at item {item} (the "
                f"last: {_first_line(error)}): out of memory? What is finished stays: run the "
                "same command again to continue, with more --cpus-per-worker (fewer at a time on a "
                "node) if memory is short"
            ) from error
        logger.warning("item %d goes to another worker: %s", item, _first_line(error))
        self._todo.appendleft(item)

    def _num_at_once(self) -> int:
        """Items that may be on the cluster; at least one, which makes an autoscaler add a node."""
        if self._executor.num_workers is not None:
            return self._executor.num_workers
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            cpus = [
                node["Resources"].get("CPU", 0.0) for node in self._ray.nodes() if node["Alive"]
            ]
            self._room = sum(int(count // self._executor.cpus_per_worker) for count in cpus)
            if not self._room:
                logger.warning(
                    "no node of the Ray cluster has %g CPUs (they have %s): waiting for one",
                    self._executor.cpus_per_worker,
                    cpus,
                )
        return max(1, self._room)


@dataclass(frozen=True, slots=True)
class _Driver:
    """What a worker takes over from the driver, as a local one does."""

    folder: str
    path: tuple[str, ...]
    version: str

    def take_over(self) -> None:
        """Let relative paths and the driver's modules mean the same here, where they exist."""
        if self.version != __version__:
            raise ConfigError(
                f"a Ray worker on {os.uname().nodename} has shardkit {__version__} and the driver "
                f"{self.version}: install the same one on all nodes"
            )
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)


def _work(driver: _Driver, task: bytes, item: int) -> Iterator[Progress | Done | Failed]:
    """Do one item in a Ray worker, in a thread, and stream what there is to say of it."""
    words: queue.SimpleQueue[Progress | Done | Failed] = queue.SimpleQueue()

    def do() -> None:
        try:
            driver.take_over()
            result = _loaded(task)(item, lambda *done: words.put(Progress(*done)))
            words.put(Done(result))
        except BaseException as error:  # noqa: BLE001 - the driver raises it
            words.put(Failed(sendable(error)))

    threading.Thread(target=do, name="shardkit-item", daemon=True).start()
    samples = num_bytes = 0
    spoke = time.monotonic()
    while isinstance(word := words.get(), Progress):
        samples += word.samples
        num_bytes += word.num_bytes
        if time.monotonic() - spoke >= _REPORT_S:
            yield Progress(samples, num_bytes)
            samples = num_bytes = 0
            spoke = time.monotonic()
    yield Progress(samples, num_bytes)
    yield word


@functools.lru_cache(maxsize=1)
def _loaded(task: bytes) -> Task[Any]:
    """The task, unpickled once in a worker's life, with all that it keeps open."""
    loaded: Task[Any] = pickle.loads(task)
    return loaded


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an optional extra, and 0.5 s
    except ImportError as error:
        raise MissingDependencyError(
            "running on Ray needs Ray: pip install shardkit[ray]"
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    if address is not None and address != "auto":
        _check_reachable(address)
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError, SystemExit) as error:
        raise ConfigError(
            f"can't connect to the Ray cluster {address or 'of this machine'}: {error}"
        ) from error


def _check_reachable(address: str) -> None:
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(
            f"Ray address {address!r} is not of the form host:port, such as 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}): is it running (`ray status`), and may "
            "this machine reach it?"
        ) from error


def _stranger(error: Any) -> Exception:
    """An error of a worker that never came as far as the task."""
    if "No module named 'shardkit" in str(error):
        return ConfigError(
            "the Ray workers can't import shardkit: install it on all nodes, or connect with "
            "ray.init(runtime_env={'pip': ['shardkit']})"
        )
    return WorkerLostError(f"a Ray worker can't run shardkit: {error}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
