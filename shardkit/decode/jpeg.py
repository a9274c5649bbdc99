"""What a JPEG says about itself before its pixels: size, components, EXIF orientation."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardkit.decode.source import Data

__all__ = ["JpegHeader", "read_jpeg_header"]

_START = b"\xff\xd8\xff"
_EXIF = b"Exif\x00\x00"
_ORIENTATION = 0x0112
# Start-of-frame markers; C4 (Huffman tables), C8 and CC (arithmetic conditioning) are none.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Size in pixels as stored (before turning), components, bits and EXIF orientation (1-8)."""

    height: int
    width: int
    num_components: int
    bits: int
    orientation: int


def read_jpeg_header(data: Data) -> JpegHeader | None:
    """Walk the markers up to the frame header; None if this is no JPEG that we understand.

    Source: ITU-T T.81 annex B; Exif 2.32 section 4.5.
    """
    if bytes(data[:3]) != _START:
        return None
    place, orientation = 2, 1
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker in _STANDALONE:
            place += 2
            continue
        length = (data[place + 2] << 8) | data[place + 3]
        if marker in _FRAMES:
            if place + 10 > len(data):
                return None
            bits, height, width, count = struct.unpack_from(">BHHB", data, place + 4)
            # A height of 0 is told after the first scan (DNL): left to Pillow, which refuses it.
            ok = height and width
            return JpegHeader(height, width, count, bits, orientation) if ok else None
        if marker == 0xE1 and bytes(data[place + 4 : place + 10]) == _EXIF:
            orientation = _orientation(bytes(data[place + 10 : place + 2 + length]))
        if marker in {0xD9, 0xDA}:
            return None
        place += 2 + length
    return None


def _orientation(tiff: bytes) -> int:
    """Find the orientation in the first directory of an Exif block; 1 where it has none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, 1000), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
