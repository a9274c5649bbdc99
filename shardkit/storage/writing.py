"""Objects become entries: as files of their own, or packed into a segment."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

from shardkit.errors import CacheError
from shardkit.format.sizes import show_size
from shardkit.storage.keeping import Job
from shardkit.storage.segments import NoHolesError
from shardkit.storage.sinks import STEP, AsideSink, NoRoomError, Wanted
from shardkit.storage.space import Space

__all__ = ["Writer"]

T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer:
    """Writes entries of one cache folder, evicting more where the disk itself is full.

    Args:
        space: of the folder.
        limit: of the cache.
        folder: as the user named it, for errors.
        passed: called for each job that found no room.
    """

    def __init__(
        self, space: Space, limit: int | None, folder: str, passed: Callable[[], None]
    ) -> None:
        self._space = space
        self._limit = limit
        self._folder = folder
        self._passed = passed

    def write_file(self, wanted: Wanted, settle: Callable[[AsideSink], None]) -> AsideSink:
        """Fill, settle and publish an entry that is a file.

        Raises:
            NoRoomError: everything is in use.
            CacheError: the disk is full of other things.
        """
        return self._with_room(
            wanted.key, wanted.size, lambda: self._fill_and_publish(wanted, settle)
        )

    def write_jobs(self, jobs: Sequence[Job]) -> None:
        """Write objects in memory, those that may be packed together if they can be."""
        together = [job for job in jobs if not job.is_file]
        done = len(together) > 1 and self._write(together)
        for job in jobs:
            if not done or job.is_file:
                self._write([job])

    def _write(self, jobs: Sequence[Job]) -> bool:
        """Write one job, or leave its error with it; or several packed ones if all goes well."""
        try:
            num_bytes = sum(len(job.packed.data) for job in jobs)
            self._with_room(jobs[0].packed.key, num_bytes, lambda: self._write_once(jobs))
        except NoHolesError:
            for job in jobs:
                job.is_file = True
            return len(jobs) == 1 and self._write(jobs)
        except Exception as error:  # noqa: BLE001 - the job's
            if len(jobs) > 1:  # perhaps not each of them
                return False
            if isinstance(error, NoRoomError):
                self._passed()
            else:
                jobs[0].error = error
        return True

    def _write_once(self, jobs: Sequence[Job]) -> None:
        if not jobs[0].is_file:
            if not self._space.keep([job.packed for job in jobs]):
                raise NoRoomError
            return
        name, key, data, mark, _ = jobs[0].packed
        wanted = Wanted(name, key, lambda sink: sink.write(data), len(data), mark=mark)
        self._fill_and_publish(wanted, AsideSink.close)

    def _fill_and_publish(self, wanted: Wanted, settle: Callable[[AsideSink], None]) -> AsideSink:
        sink = AsideSink(self._space, self._limit, wanted)
        try:
            wanted.fill(sink)
            sink.finish()
            settle(sink)
            self._space.publish(sink.path, wanted.name, wanted.key, sink.size, wanted.due)
        except BaseException:
            sink.discard()
            raise
        return sink

    def _with_room(self, key: str, size: int, write: Callable[[], T]) -> T:
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if not self._space.make_disk_room(max(size, STEP)):
                    raise self._disk_full(key, size) from error

    def _disk_full(self, key: str, size: int) -> CacheError:
        full = CacheError(
            f"the disk of the cache {self._folder} is full and nothing of the cache is left to "
            f"evict: no room for {key} ({show_size(max(size, 0))}); make room there, "
            "or choose a smaller cache_limit or another cache_dir"
        )
        full.errno = errno.ENOSPC
        return full
