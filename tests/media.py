"""Builders of really encoded images, sounds and videos, the odd ones included."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import wave
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from shardkit.cli.demo_data import encode_image, photo

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]


# Images


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Pixels:
    """A small photograph: uint8 ``[height, width, 3]``."""
    return photo(np.random.default_rng(seed), height, width)


def smooth(height: int = 48, width: int = 64) -> Pixels:
    """A gradient that no lossy codec changes by much, with a light corner at the top left."""
    y, x = np.mgrid[:height, :width]
    levels = np.stack([255 * y / height, 255 * x / width, 0 * x + 90], axis=-1)
    levels[: height // 4, : width // 4] = 250
    return levels.astype(np.uint8)


def jpeg(pixels: Pixels | None = None, **options: Any) -> bytes:
    """A JPEG; options as Pillow's ``save`` takes them (``exif``, ``progressive`` …)."""
    return encode_image(picture() if pixels is None else pixels, "jpg", **options)


def turned_jpeg(orientation: int, pixels: Pixels | None = None) -> bytes:
    """A JPEG whose EXIF tag says how to turn it; its stored pixels are as given."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(smooth() if pixels is None else pixels, exif=exif.tobytes(), subsampling=0)


def cmyk_jpeg(pixels: Pixels | None = None) -> bytes:
    """A JPEG of four inks."""
    file = io.BytesIO()
    image = Image.fromarray(smooth() if pixels is None else pixels)
    image.convert("CMYK").save(file, "jpeg", quality=95)
    return file.getvalue()


def save(image: Image.Image, name: str, **options: Any) -> bytes:
    """Encode any Pillow image."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def bomb_png(height: int = 60_000, width: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes that claims (and would unpack to) gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


# Sound


def tone(
    seconds: float = 1.0, rate: int = 16_000, num_channels: int = 2, pitch: float = 440.0
) -> Samples:
    """A sine at half scale, the second channel at a quarter: float32 ``[channels, time]``."""
    t = np.arange(round(seconds * rate)) / rate
    levels = 0.5 ** np.arange(1, num_channels + 1)
    return (levels[:, None] * np.sin(2 * np.pi * pitch * t)).astype(np.float32)


def clicks(seconds: float, rate: int, times: tuple[float, ...], num_channels: int = 1) -> Samples:
    """Silence with a loud, short burst at each of ``times``."""
    samples = np.zeros((num_channels, round(seconds * rate)), np.float32)
    for time in times:
        at = round(time * rate)
        samples[:, at : at + 40] = 0.9 * np.cos(np.arange(40))[: samples.shape[1] - at]
    return samples


def wav(samples: Samples, rate: int, kind: str = "int16") -> bytes:
    """A WAV of ``uint8``, ``int16``, ``int24``, ``int32`` or ``float32`` samples."""
    import soundfile

    subtypes = {"uint8": "PCM_U8", "int16": "PCM_16", "int24": "PCM_24", "int32": "PCM_32"}
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate, format="WAV", subtype=subtypes.get(kind, "FLOAT"))
    return file.getvalue()


def plain_wav(samples: Samples, rate: int) -> bytes:
    """A 16-bit WAV by the standard library."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[0])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples.T * 32_767).round().astype("<i2").tobytes())
    return file.getvalue()


def sound_file(samples: Samples, rate: int, container: str, codec: str) -> bytes:
    """Sound encoded by FFmpeg: ("mp3", "libmp3lame"), ("mp4", "aac"), ("ogg", "libopus") …"""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate, layout=_layout(samples))
        _put_sound(target, stream, samples, rate)
    return file.getvalue()


# Video


def numbered(num_frames: int, height: int = 64, width: int = 96, first: int = 0) -> Pixels:
    """Frames that carry their number as ten black or white bars: uint8 ``[t, h, w, 3]``."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    edges = np.linspace(0, width, 11).astype(int)
    for number in range(num_frames):
        for bit in range(10):
            level = 225 if (number + first) >> bit & 1 else 30
            frames[number, :, edges[bit] : edges[bit + 1]] = level
    return frames


def numbers_of(frames: npt.NDArray[Any]) -> list[int]:
    """Read the numbers off frames ``[t, h, w, 3]`` that ``numbered`` made, at any scale."""
    width = frames.shape[2]
    middle = frames[:, frames.shape[1] // 2, :, :].mean(axis=-1)
    centres = ((np.arange(10) + 0.5) * width / 10).astype(int)
    bits = middle[:, centres] > 127
    return [int(row @ (1 << np.arange(10))) for row in bits]


def video(
    num_frames: int = 50,
    fps: int = 25,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 96),
    sound: Samples | None = None,
    rate: int = 16_000,
    sound_codec: str | None = None,
    gop: int = 12,
    rotation: int = 0,
    times: list[int] | None = None,
    tick: Fraction | None = None,
    movflags: str | None = None,
    options: dict[str, str] | None = None,
    frames: Pixels | None = None,
    target: Any = None,
) -> bytes:
    """A video of numbered frames.

    Args:
        times: when each frame is shown, in ticks; default: one after another.
        tick: seconds of a tick; default 1 / fps.
        rotation: degrees that players are told to turn it by.
        movflags: of the mp4 muxer, such as "frag_keyframe+empty_moov" or "faststart".
        frames: other pictures than numbered ones.
        target: write to this file object (one that cannot seek, say).
    """
    pictures = numbered(num_frames, *size) if frames is None else frames
    number, path = tempfile.mkstemp()  # a real file: "faststart" reads again what it wrote
    os.close(number)
    file = path if target is None else target
    settings = {"movflags": movflags} if movflags else {}
    with av.open(file, "w", format=container, options=settings) as out:
        stream: Any = out.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = tick or Fraction(1, fps)
        default = (
            {"preset": "veryfast", "crf": "18", "sc_threshold": "0"} if codec == "libx264" else {}
        )
        stream.options = default if options is None else options
        if rotation:
            stream.set_display_rotation(rotation)
        track = None
        if sound is not None:
            name = sound_codec or ("libopus" if container == "webm" else "aac")
            track = out.add_stream(name, rate=rate, layout=_layout(sound))
        sent = 0
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = tick or Fraction(1, fps)
            out.mux(stream.encode(frame))
            if track is not None and sound is not None:
                until = min(round((number + 1) * rate / fps), sound.shape[1])
                _put(out, track, sound[:, sent:until], rate, sent)
                sent = until
        out.mux(stream.encode())
        if track is not None and sound is not None:
            _put(out, track, sound[:, sent:], rate, sent)
            out.mux(track.encode())
    with open(path, "rb") as written:
        data = written.read()
    os.unlink(path)
    return data


class Pipe(io.RawIOBase):
    """A file that can only be written on, as a live stream is: muxers can't go back in it."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _layout(samples: Samples) -> str:
    return {1: "mono", 2: "stereo"}[samples.shape[0]]


def _put_sound(target: Any, stream: Any, samples: Samples, rate: int) -> None:
    _put(target, stream, samples, rate, 0)
    target.mux(stream.encode())


def _put(target: Any, stream: Any, part: Samples, rate: int, start: int) -> None:
    if part.shape[1] == 0:
        return
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(part), format="fltp", layout=_layout(part)
    )
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    target.mux(stream.encode(frame))


def save_png(pixels: Pixels | None = None) -> bytes:
    """A PNG."""
    return save(Image.fromarray(picture() if pixels is None else pixels), "png")
