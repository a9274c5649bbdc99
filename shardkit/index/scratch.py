"""The folder where indexes keep what they converted: made once, shared by processes and runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shardkit.errors import CacheError, ShardkitError

__all__ = ["Carried", "Scratch"]

_ABANDONED_S = 3600  # a temporary folder without a lock, which a kill between two calls can leave

_CARRIED_BYTES = 16 << 20
"""Of a kept file that goes along when its path is pickled: some 100,000 rows of an index, or a
filter of 10^8, and yet only milliseconds to each worker."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A kept file on its way to a process, perhaps elsewhere; a small one brings its bytes."""

    path: str
    data: bytes | None

    @classmethod
    def of(cls, path: str) -> Carried:
        """The file at ``path``."""
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size <= _CARRIED_BYTES:
                return cls(path, file.read())
        return cls(path, None)

    def arrive(self) -> str:
        """Return the path; where the file is not there, it is now, unless it was too large."""
        if self.data is not None and not os.path.exists(self.path):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            part = f"{self.path}.{secrets.token_hex(6)}"
            with open(part, "wb") as file:
                file.write(self.data)
            os.replace(part, self.path)
        return self.path


class Scratch:
    """A local folder of files, each made once under a name that says what it was made from.

    The default is private to the user, below the system's folder for temporary files, which the
    system itself cleans. Nothing here is precious: what is gone is made again. Picklable.
    """

    def __init__(self, folder: str | None = None) -> None:
        own = os.path.join(tempfile.gettempdir(), f"shardkit-{os.getuid()}")
        self.folder = os.path.expanduser(folder or own)

    def keep(self, name: str, make: Callable[[str], None]) -> str:
        """Return the path of ``name``; if it is not there yet, ``make`` fills a file first.

        However many processes ask, one makes it and the others wait for its lock, which dies with
        it.
        """
        path = os.path.join(self.folder, name)
        if os.path.exists(path):
            return path
        self._prepare()
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(path):
                with self.temporary() as folder:
                    part = os.path.join(folder, name)
                    make(part)
                    os.replace(part, path)
        finally:
            os.close(lock)
        return path

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """Yield a folder that goes at the end; what a killed process left is removed before."""
        self._prepare()
        self._sweep()
        with self._naming_a_full_disk():
            folder, lock = self._locked_folder()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)

    @contextlib.contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except ShardkitError:
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CacheError(
                f"the disk of {self.folder} is full, where what is made of an index is kept: make "
                "room, or name another folder (scratch=, --scratch, TMPDIR)"
            ) from error

    def _locked_folder(self) -> tuple[str, int]:
        """Make a folder and hold its lock; again, if a sweep took it before the lock was ours."""
        while True:
            folder = os.path.join(self.folder, f"tmp-{secrets.token_hex(6)}")
            path = os.path.join(folder, "lock")
            os.mkdir(folder, 0o700)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(path):
                return folder, lock
            os.close(lock)

    def _sweep(self) -> None:
        """Remove temporary folders whose owner is dead: nobody holds their lock."""
        for name in os.listdir(self.folder):
            if not name.startswith("tmp-"):
                continue
            folder = os.path.join(self.folder, name)
            try:
                lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - os.stat(folder).st_mtime > _ABANDONED_S:
                        shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass  # its owner lives
            finally:
                os.close(lock)

    def _prepare(self) -> None:
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if os.stat(self.folder).st_uid != os.getuid():
                raise CacheError(
                    f"{self.folder} belongs to another user; give scratch= a folder of your own"
                )
        except FileExistsError as error:
            raise CacheError(f"scratch={self.folder!r} is a file, not a folder") from error
        except OSError as error:
            raise CacheError(f"scratch={self.folder!r} can't be made: {error}") from error
