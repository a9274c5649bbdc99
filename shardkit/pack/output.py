"""Where a pack writes: a folder, local or behind a URL, in which every file appears whole or not.

Under a local folder, temporaries lie in ``.pack/`` and move to their name by one rename; behind a
URL they lie in a local scratch folder and are uploaded, which object stores do atomically. A
temporary is locked while its writer lives, so whoever comes later may remove what is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from shardkit.errors import ConfigError, NotFoundError, StoreError
from shardkit.storage.store import Store, is_local, local_path

__all__ = ["PLAN_NAME", "WORK_FOLDER", "Output"]

WORK_FOLDER = ".pack"
PLAN_NAME = f"{WORK_FOLDER}/plan.json"


@dataclass(frozen=True)
class Output:
    """A folder to pack into; picklable, so that every worker has one.

    ``scratch`` is where a remote shard is written before its upload: room for one shard per
    worker is needed there.
    """

    url: str
    store: Store
    scratch: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/") or "/")

    @property
    def is_local(self) -> bool:
        """Whether the folder is one of this machine's."""
        return is_local(self.url)

    def at(self, name: str) -> str:
        """The URL of a file of the folder."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, None where there is none."""
        try:
            return self.store.get(self.at(name))
        except NotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Publish small bytes under a name."""
        if not self.is_local:
            self.store.put(self.at(name), data)
            return
        with self.temporary() as path:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.publish(path, name)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """A path, locked until the block ends, for a file that will be published or dropped."""
        folder = os.path.join(local_path(self.url), WORK_FOLDER) if self.is_local else self._scratch
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{uuid.uuid4().hex}.tmp")
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
        finally:
            for left in (path, f"{path}.lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)
            os.close(lock)

    def publish(self, path: str, name: str) -> None:
        """Give the finished local file at ``path`` its name, or upload it under that name."""
        if not self.is_local:
            self.store.put_file(self.at(name), path)
            return
        target = local_path(self.at(name))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(path, target)
        _sync_folder(os.path.dirname(target))

    def files(self) -> dict[str, int]:
        """Names and sizes of what lies in the folder, our own work folder left out."""
        prefix = f"{self.url}/"
        try:
            found = {
                info.url.removeprefix("file://").removeprefix(prefix): info.size
                for info in self.store.list(prefix)
            }
        except NotFoundError:
            return {}
        return {
            name: size for name, size in found.items() if not name.startswith(f"{WORK_FOLDER}/")
        }

    def sweep(self) -> None:
        """Remove temporaries whose writers are dead."""
        if not self.is_local:
            return  # remote temporaries live in a scratch folder that ends with its run
        folder = os.path.join(local_path(self.url), WORK_FOLDER)
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name.endswith(".tmp.lock") and _unlocked(os.path.join(folder, name)):
                for left in (name.removesuffix(".lock"), name):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, left))

    def finish(self) -> None:
        """Remove the plan and the work folder: the manifest is published, nothing is pending."""
        if self.is_local:
            shutil.rmtree(os.path.join(local_path(self.url), WORK_FOLDER), ignore_errors=True)
            return
        with contextlib.suppress(NotFoundError):
            self.store.delete(self.at(PLAN_NAME))

    @property
    def _scratch(self) -> str:
        return self.scratch or tempfile.gettempdir()


def check_writable(output: Output) -> None:
    """Refuse a local folder that can't be made or written, before any work is done.

    Raises:
        ConfigError: the path is a file.
        StoreError: it can't be made or written.
    """
    if not output.is_local:
        return
    path = local_path(output.url)
    if os.path.exists(path) and not os.path.isdir(path):
        raise ConfigError(f"{path} is a file, not a folder to pack into; name another folder")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can't make the folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StoreError(f"can't write into {path}: no permission; name another folder")


def _unlocked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
