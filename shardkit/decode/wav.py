"""Is a WAV file all there? libsndfile reads a cut one without a word."""

from __future__ import annotations

import struct

from shardkit.decode.source import Source
from shardkit.errors import DecodeError

__all__ = ["check_wav"]

_UNTOLD = (0, 0xFFFFFFFF)  # what writers put that could not go back to fill in the size
_MAX_CHUNKS = 64


def check_wav(source: Source) -> None:
    """Compare the size of the data chunk with the bytes that follow; other formats pass.

    Raises:
        DecodeError: the file ends before its data does.

    Source: Microsoft and IBM, Multimedia Programming Interface 1.0 (RIFF).
    """
    place = 12
    for _ in range(_MAX_CHUNKS):
        if place + 8 > source.size or bytes(source.read(0, 4)) != b"RIFF":
            return
        name, size = struct.unpack("<4sI", bytes(source.read(place, place + 8)))
        if name == b"data":
            have = source.size - place - 8
            if size not in _UNTOLD and size > have:
                raise DecodeError(
                    f"its header says {size} bytes of sound, but only {have} follow: it was cut; "
                    f"allow_shorter=True takes what is there"
                )
            return
        place += 8 + size + size % 2
