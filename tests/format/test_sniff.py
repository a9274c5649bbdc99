"""The ext of bytes whose name says nothing."""

from __future__ import annotations

import io
import json
import tarfile
import wave
import zipfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardkit.format.sniff import sniff_ext


def image(name: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (20, 10)).save(out, name)
    return out.getvalue()


def wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(100))
    return out.getvalue()


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


def video(form: str, codec: str) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        container.mux([p for f in (frame, None) for p in stream.encode(f)])
    return out.getvalue()


def audio(form: str, codec: str) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame(
            format=stream.format.name, layout="mono", samples=stream.frame_size or 1024
        )
        frame.sample_rate = 48_000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux([p for f in (frame, None) for p in stream.encode(f)])
    return out.getvalue()


REAL: dict[str, Callable[[], bytes]] = {
    **{
        ext: lambda n=name: image(n)
        for ext, name in (
            ("jpg", "JPEG"),
            ("png", "PNG"),
            ("gif", "GIF"),
            ("webp", "WEBP"),
            ("bmp", "BMP"),
            ("tif", "TIFF"),
            ("ppm", "PPM"),
        )
    },  # type: ignore[misc]
    "pgm": lambda: image("PPM", "L"),
    "wav": wav,
    "npy": lambda: saved(lambda out: np.save(out, np.zeros(3))),
    "npz": lambda: saved(lambda out: np.savez(out, a=np.zeros(3))),
    "zip": lambda: saved(lambda out: zipfile.ZipFile(out, "w").writestr("a.txt", "x")),
    "parquet": lambda: saved(lambda out: pq.write_table(pa.table({"a": [1]}), out)),
    "tar": tar,
    "mp4": lambda: video("mp4", "mpeg4"),
    "mov": lambda: video("mov", "mpeg4"),
    "mkv": lambda: video("matroska", "mpeg4"),
    "webm": lambda: video("webm", "libvpx"),
    "avi": lambda: video("avi", "mpeg4"),
    "ts": lambda: video("mpegts", "mpeg4"),
    "flv": lambda: video("flv", "flv"),
    "mp3": lambda: audio("mp3", "libmp3lame"),
    "flac": lambda: audio("flac", "flac"),
    "opus": lambda: audio("ogg", "libopus"),
    "aac": lambda: audio("adts", "aac"),
    "json": lambda: json.dumps({"a": [1]}).encode(),
    "txt": lambda: "eine Straße, ein Café\n".encode() * 400,
    "html": lambda: b"<!DOCTYPE html><html></html>",
    "svg": lambda: b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "xml": lambda: b"<?xml version='1.0'?><a/>",
}


@pytest.mark.parametrize("ext", REAL)
def test_real_files_are_known_by_their_bytes(ext: str) -> None:
    assert sniff_ext(REAL[ext]()) == ext


def test_mp3_is_known_with_and_without_its_tag() -> None:
    data = audio("mp3", "libmp3lame")
    assert sniff_ext(data) == "mp3"
    frame = data.index(b"\xff\xfb") if b"\xff\xfb" in data else data.index(b"\xff\xf3")
    assert sniff_ext(data[frame:]) == "mp3"


def test_safetensors_is_known() -> None:
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    assert sniff_ext(len(head).to_bytes(8, "little") + head + bytes(4)) == "safetensors"


@pytest.mark.parametrize("data", [b"", b"\x00", bytes(range(256)), b"\x00\x01\x02text"])
def test_what_is_not_known_is_bin(data: bytes) -> None:
    assert sniff_ext(data) == "bin"


@given(st.binary(max_size=600))
def test_any_bytes_have_an_ext_that_names_can_hold(data: bytes) -> None:
    ext = sniff_ext(data)
    assert ext.isalnum()
    assert ext == ext.lower()
