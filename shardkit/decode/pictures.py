"""Decoded video frames to RGB arrays: colours, scale, rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode import memory
from shardkit.decode.extras import need
from shardkit.errors import DecodeError

__all__ = ["FrameWriter", "cover"]


def cover(height: int, width: int, min_size: tuple[int, int] | None) -> tuple[int, int]:
    """Scale (height, width) down so that it just covers ``min_size``; never up."""
    if min_size is None:
        return height, width
    scale = max(min_size[0] / height, min_size[1] / width)
    if scale >= 1:
        return height, width
    return (
        max(min_size[0], round(height * scale)),
        max(min_size[1], round(width * scale)),
    )


class FrameWriter:
    """Writes frames into one array, uint8 ``[t, height, width, 3]``, made at the first frame.

    Args:
        num_frames: ``t``.
        min_size: (height, width), after rotation, that is enough: larger frames are scaled down.
        out: an array to write to; default: kept memory.
    """

    def __init__(
        self,
        num_frames: int,
        min_size: tuple[int, int] | None = None,
        out: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.num_frames = num_frames
        self.min_size = min_size
        self.out = out
        self._places: npt.NDArray[np.intp] | None = None
        # One scaler for all frames: making one costs as much as scaling a small frame.
        self._scaler = need("av.video.reformatter", "decoding video").VideoReformatter()

    def reordered(self, places: npt.NDArray[np.intp]) -> FrameWriter:
        """Let slot ``i`` from now on mean place ``places[i]`` of the array."""
        self._places = places
        return self

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return the array, once at least one frame was written."""
        if self.out is None:
            raise DecodeError("no frame came out of the decoder")
        return self.out

    def write(self, slots: Sequence[int], frame: Any) -> None:
        """Convert a frame and put it into each of the slots."""
        pixels = self.convert(frame)
        if self.out is None:
            self.out = memory.empty((self.num_frames, *pixels.shape))
        for slot in slots:
            self.out[slot if self._places is None else self._places[slot]] = pixels

    def convert(self, frame: Any) -> npt.NDArray[np.uint8]:
        """Return a frame as uint8 ``[height, width, 3]``, upright; a view, valid until dropped.

        Colours follow the frame's matrix and range; one that names none is BT.601, as FFmpeg and
        torchcodec have it.
        """
        turns = round(frame.rotation / 90) % 4
        height, width = self._size(frame, on_its_side=turns % 2 == 1)
        rgb = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            threads=1,
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        pixels = rows[:, : width * 3].reshape(height, width, 3)
        return np.rot90(pixels, turns) if turns else pixels

    def _size(self, frame: Any, *, on_its_side: bool) -> tuple[int, int]:
        if self.out is not None:
            height, width = self.out.shape[1:3]  # a video may change its size on the way
            return (width, height) if on_its_side else (height, width)
        least = self.min_size
        if least is not None and on_its_side:
            least = (least[1], least[0])
        return cover(frame.height, frame.width, least)
