"""The ext of bytes whose name says nothing, by their first bytes.

Signatures after the formats' own specifications: ISO/IEC 14496-12 (``ftyp`` brands), RFC 8794
(EBML), RIFF, RFC 3533 (Ogg) and so on. Pure; reads at most a few KB, and never raises.
"""

from __future__ import annotations

import re

__all__ = ["sniff_ext"]

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (b"8BPS", "psd"),
    (b"v/1\x01", "exr"),
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"FLV\x01", "flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wmv"),
    (b"\x00\x00\x01\xba", "mpg"),
    (b"\x00\x00\x01\xb3", "mpg"),
    (b"#!AMR", "amr"),
    (b"MThd", "mid"),
    (b"\x93NUMPY", "npy"),
    (b"\x89HDF\r\n\x1a\n", "h5"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"%PDF-", "pdf"),
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"glTF", "glb"),
)
_RIFF = {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}
_AIFF = {b"AIFF": "aif", b"AIFC": "aif"}
_BRANDS: tuple[tuple[bytes, str], ...] = (
    (b"avif", "avif"),
    (b"avis", "avif"),
    (b"heic", "heic"),
    (b"heix", "heic"),
    (b"mif1", "heic"),
    (b"M4A ", "m4a"),
    (b"M4B ", "m4a"),
    (b"qt  ", "mov"),
    (b"3gp", "3gp"),
    (b"3g2", "3g2"),
)
_PNM = re.compile(rb"P([1-6])\s+\d+\s+\d+\s")
_PNM_EXTS = {b"1": "pbm", b"4": "pbm", b"2": "pgm", b"5": "pgm", b"3": "ppm", b"6": "ppm"}
_HEAD = 4096


def sniff_ext(data: bytes) -> str:
    """Return the ext of a file's bytes: ``"bin"`` where nothing is recognised, ``"txt"`` for text.

    >>> sniff_ext(b"RIFF$...WAVEfmt ")
    'wav'
    """
    for start, ext in _STARTS:
        if data.startswith(start):
            return ext
    return _by_container(data) or _by_text(data[:_HEAD]) or "bin"


def _by_container(data: bytes) -> str | None:
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    if data[:4] == b"FORM":
        return _AIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return next((ext for brand, ext in _BRANDS if data[8:12].startswith(brand)), "mp4")
    if data[:4] == b"\x1aE\xdf\xa3":
        return "webm" if b"webm" in data[:64] else "mkv"
    if data[:4] == b"OggS":
        return "opus" if b"OpusHead" in data[:64] else "ogv" if b"theora" in data[:64] else "ogg"
    if data[:4] == b"PK\x03\x04":
        return "npz" if b".npy" in data[:128] else "pt" if b"data.pkl" in data[:128] else "zip"
    if data[:2] == b"BM" and len(data) >= 26 and data[6:10] == bytes(4):
        return "bmp"
    if data[257:262] == b"ustar":
        return "tar"
    return _by_frames(data)


def _by_frames(data: bytes) -> str | None:
    """Formats without a signature: frames that follow each other."""
    if len(data) >= 4 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "aac"  # ADTS: twelve ones, layer 0
    if len(data) >= 4 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06 == 0x02:
        return "mp3"  # MPEG audio, layer III
    if data[:1] == b"\x47" and data[188:189] == b"\x47" and data[376:377] in (b"\x47", b""):
        return "ts"
    if data[8:9] == b"{" and len(data) > 16 and int.from_bytes(data[:8], "little") < len(data):
        return "safetensors"
    return None


def _by_text(head: bytes) -> str | None:
    if not head:
        return None
    if match := _PNM.match(head):
        return _PNM_EXTS[match.group(1)]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(head) < _HEAD or error.start < len(head) - 4:
            return None
        text = head[: error.start].decode("utf-8-sig")  # the cut went through a character
    if any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return None
    start = text.lstrip()[:256].lower()
    if start.startswith("<svg") or (start.startswith("<?xml") and "<svg" in text[:1024].lower()):
        return "svg"
    if start.startswith(("<!doctype html", "<html")):
        return "html"
    if start.startswith("<?xml"):
        return "xml"
    if re.match(r"(\{\s*(\"|\})|\[\s*(\{|\[|\]|\"|-?\d))", start):
        return "json"
    return "txt"
