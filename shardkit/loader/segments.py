"""Shared memory in which a worker process hands batches over: pages that are used again.

A batch is pickled with its arrays and tensors out of line, and laid into a *segment*: a piece of
memory without a name that both processes map. The consumer's arrays are views of it; when the last
of them is gone the segment goes back to the worker, which fills it anew. So an array is copied
once, no page is touched for the first time twice, a process that is killed leaves nothing behind,
and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Lender", "Parcel", "Writer"]

_ALIGNMENT = 64  # bytes: a cache line, and what vector instructions like
_MAX_IDLE = 2  # segments kept for a worker beyond those that batches lie in


@dataclass(frozen=True, slots=True)
class Parcel:
    """Where a batch lies.

    Attributes:
        segment: its number.
        num_bytes: of the whole segment.
        is_new: whether the segment was made for it; its file descriptor then follows.
        body: where the pickle ends.
        buffers: start and stop of each array.
    """

    segment: int
    num_bytes: int
    is_new: bool
    body: int
    buffers: tuple[tuple[int, int], ...]


class Writer:
    """A worker's end."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._num_made = 0

    def forget(self, numbers: tuple[int, ...]) -> None:
        """Drop segments that the consumer has dropped."""
        for number in numbers:
            self._maps.pop(number, None)

    def write(self, value: Any, segment: int | None) -> tuple[Parcel, int | None]:
        """Lay ``value`` into a segment that is free, or into a new one if it does not fit.

        Returns the parcel, and a new segment's file descriptor, which the caller closes.

        Raises:
            Exception: the value can't be pickled.
        """
        chunks = _Chunks()
        buffers: list[pickle.PickleBuffer] = []
        _Pickler(chunks, protocol=5, buffer_callback=buffers.append).dump(value)
        views = [buffer.raw() for buffer in buffers]
        stop = body = sum(map(len, chunks.parts))
        places = []
        for view in views:
            start = -(-stop // _ALIGNMENT) * _ALIGNMENT
            stop = start + view.nbytes
            places.append((start, stop))
        fd = None
        if segment is None or len(self._maps[segment]) < stop:
            made, fd = self._make(stop)
            if segment is not None:
                del self._maps[segment]
            segment = made
        memory = self._maps[segment]
        at = 0
        for chunk in chunks.parts:
            memory[at : at + len(chunk)] = chunk
            at += len(chunk)
        for view, (start, end) in zip(views, places, strict=True):
            memory[start:end] = view
        parcel = Parcel(segment, len(memory), fd is not None, body, tuple(places))
        return parcel, fd

    def _make(self, num_bytes: int) -> tuple[int, int]:
        """Make a segment with some room to spare: batches vary, and untouched pages are free."""
        size = (num_bytes + num_bytes // 4) // mmap.PAGESIZE * mmap.PAGESIZE + mmap.PAGESIZE
        fd = os.memfd_create("shardkit-batch", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        number = self._num_made
        self._num_made += 1
        self._maps[number] = _map(fd, size)
        return number, fd


class Lender:
    """The consumer's end, for one worker: which segments are free, and what lies in others."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._idle: deque[int] = deque()  # finalizers of arrays append to it, from any thread

    def lend(self) -> tuple[int | None, tuple[int, ...]]:
        """Return a segment for the worker's next batch, None for a new one; and those dropped."""
        segment = self._idle.pop() if self._idle else None
        dropped = []
        while len(self._idle) > _MAX_IDLE:
            dropped.append(self._idle.popleft())
            del self._maps[dropped[-1]]
        return segment, tuple(dropped)

    def received(self, parcel: Parcel, lent: int | None, fd: int | None) -> None:
        """Map a new segment; forget the one that was lent for it and too small."""
        if fd is None:
            return
        try:
            if lent is not None:
                del self._maps[lent]
            self._maps[parcel.segment] = _map(fd, parcel.num_bytes)
        finally:
            os.close(fd)

    def give_back(self, segment: int | None) -> None:
        """Take back a segment in which nothing lies."""
        if segment is not None:
            self._idle.append(segment)

    def read(self, parcel: Parcel) -> Any:
        """Return the batch that lies in a segment; its arrays are views of it."""
        memory = np.frombuffer(self._maps[parcel.segment], np.uint8)
        weakref.finalize(memory, self._idle.append, parcel.segment).atexit = False
        view = memory.data
        buffers = [view[start:stop] for start, stop in parcel.buffers]
        return pickle.loads(view[: parcel.body], buffers=buffers)


def _map(fd: int, num_bytes: int) -> mmap.mmap:
    """Map a segment; before Python 3.13 that keeps a descriptor, one per batch that is held."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, num_bytes, trackfd=False)
    return mmap.mmap(fd, num_bytes)


class _Chunks(io.RawIOBase):
    """A file that keeps what is written to it in pieces: large values are not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Any] = []

    def write(self, data: Any) -> int:
        """Keep ``data``."""
        self.parts.append(data)
        return len(data)


class _Pickler(pickle.Pickler):
    """Gives torch's tensors the way of numpy's arrays: out of line."""

    def reducer_override(self, value: Any) -> Any:
        """See ``pickle.Pickler``."""
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or not _is_plain(torch, value):
            return NotImplemented
        flat = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (flat, value.dtype, tuple(value.shape))


def _is_plain(torch: Any, tensor: Any) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _tensor(flat: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    torch = sys.modules["torch"]
    return torch.from_numpy(flat).view(dtype).reshape(shape)
