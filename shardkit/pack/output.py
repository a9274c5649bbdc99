"""Where a pack writes: a folder, local or behind a URL, in which every file appears whole or not.

Under a local folder, temporaries lie in ``.pack/`` and move to their name by one rename; behind a
URL they lie in a local scratch folder and are uploaded, which object stores do atomically. A
temporary is locked while its writer lives, so whoever comes later may remove what is not. Not every
shared filesystem shows a machine the locks of another, so what other machines wrote is left alone
for an hour, or until nothing is pending.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_hexdigest

from shardkit.errors import ConfigError, NotFoundError, StoreError
from shardkit.format.manifest import MANIFEST_NAME
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.store import Store, is_local, local_path
from shardkit.storage.urls import given_url, scheme_of

__all__ = ["PLAN_NAME", "WORK_FOLDER", "Output"]

WORK_FOLDER = ".pack"
PLAN_NAME = f"{WORK_FOLDER}/plan.json"

_ABANDONED_S = 3_600
"""A writer touches its temporary with every few MB: one that has not for an hour is dead."""


@dataclass(frozen=True)
class Output:
    """A folder to pack into; picklable, so that every worker has one.

    ``scratch`` is where a remote shard is written before its upload (by default below the
    system's folder for temporary files): room for one shard per worker is needed there.
    """

    url: str
    store: Store
    scratch: str = ""

    def __post_init__(self) -> None:
        url = given_url(self.url)
        url = local_path(url) if is_local(url) else url
        object.__setattr__(self, "url", url.rstrip("/") or "/")

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
        with self._written(name, data) as path:
            self.publish(path, name)

    def write_first(self, name: str, data: bytes) -> bytes:
        """Publish small bytes under a name, unless somebody else has; returns what is there.

        On an object store two that write at the same instant both do: the last one's bytes stay,
        and each returns what it finds there afterwards.
        """
        found = self.read(name)
        if found is not None:
            return found
        if not self.is_local:
            self.store.put(self.at(name), data)
            return self.read(name) or data
        with self._written(name, data) as path:
            target = local_path(self.at(name))
            try:
                os.link(path, target)
                _sync_folder(os.path.dirname(target))
            except FileExistsError:
                pass  # somebody else was first
            except OSError:  # a filesystem without hard links: as on an object store
                self.publish(path, name)
        return self.read(name) or data

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """Yield the path of a new file, locked until the block ends, to be published or dropped."""
        with map_os_errors("write", self.url):
            path, lock = _locked_file(self._work_folder)
        try:
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(lock)

    @contextlib.contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[str]:
        with self.temporary() as path:
            with map_os_errors("write", self.at(name)), open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path

    def publish(self, path: str, name: str) -> None:
        """Give the finished local file at ``path`` its name, or upload it under that name."""
        if not self.is_local:
            self.store.put_file(self.at(name), path)
            return
        with map_os_errors("write", self.at(name)):
            target = local_path(self.at(name))
            os.replace(path, target)
            _sync_folder(os.path.dirname(target))

    def files(self) -> dict[str, int]:
        """Names and sizes of what lies in the folder, our own work folder left out."""
        prefix = f"{self.url}/"
        try:
            found = {info.url.removeprefix(prefix): info.size for info in self.store.list(prefix)}
        except NotFoundError:
            return {}
        return {
            name: size for name, size in found.items() if not name.startswith(f"{WORK_FOLDER}/")
        }

    def sweep(self) -> None:
        """Remove temporaries whose writers are dead."""
        for path in self._temporaries():
            if os.path.basename(path).startswith(_this_machine()) or _is_abandoned(path):
                _remove_if_unlocked(path)

    def finish(self) -> None:
        """Remove the plan and the work folder: the manifest is published, nothing is pending."""
        for path in self._temporaries():
            _remove_if_unlocked(path)
        self.store.delete(self.at(PLAN_NAME))
        with contextlib.suppress(OSError):  # another run of the same pack is still in it, or ended
            os.rmdir(self._work_folder)

    def check_begun(self) -> None:
        """Refuse a local folder that holds no pack, as the same path on another machine would.

        Raises:
            ConfigError: this machine does not see what the one that began it saved.
        """
        if not self.is_local:
            return
        if not any(os.path.exists(local_path(self.at(n))) for n in (PLAN_NAME, MANIFEST_NAME)):
            raise ConfigError(
                f"{self.url} on {os.uname().nodename} is another folder than where this run was "
                "begun (no plan and no manifest are in it): all machines must see the same one. "
                "Name a folder of a shared filesystem by its whole path, or a URL (s3://…)"
            )

    def _temporaries(self) -> list[str]:
        folder = self._work_folder
        with contextlib.suppress(FileNotFoundError):
            return [f"{folder}/{name}" for name in os.listdir(folder) if name.endswith(".tmp")]
        return []

    @property
    def _work_folder(self) -> str:
        if self.is_local:
            return os.path.join(local_path(self.url), WORK_FOLDER)
        below = self.scratch or os.path.join(tempfile.gettempdir(), f"shardkit-{os.getuid()}")
        return os.path.join(below, "pack")


def check_writable(output: Output) -> None:
    """Refuse a local folder that can't be made or written, before any work is done.

    Raises:
        ConfigError: the path is a file, or behind a web server, which takes no files.
        StoreError: it can't be made or written.
    """
    if scheme_of(output.url) in ("http", "https"):
        raise ConfigError(
            f"can't pack into {output.url}: http is for reading; name a folder or a bucket"
        )
    if not output.is_local:
        return
    path = os.path.abspath(output.url)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise ConfigError(
            f"can't pack into {output.url}: {path} is a file, not a folder; name another folder"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise StoreError(
            f"can't pack into {output.url}: no permission to write into {path}; name another folder"
        )


def _locked_file(folder: str) -> tuple[str, int]:
    """Make a file and hold its lock; again, if a sweep took it before the lock was ours."""
    while True:
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{_this_machine()}-{secrets.token_hex(16)}.tmp")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another run ended and took the folder away
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return path, lock
        os.close(lock)


def _this_machine() -> str:
    return xxh3_64_hexdigest(os.uname().nodename.encode())


def _is_abandoned(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _ABANDONED_S
    except FileNotFoundError:
        return False


def _remove_if_unlocked(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        pass  # its writer lives, or has just published it
    finally:
        os.close(fd)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
