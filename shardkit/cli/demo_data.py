"""A small data set of really encoded photos, sounds and videos, made from nothing but a seed.

``shardkit demo`` packs and trains on it, and tests and examples borrow its pictures. The same
arguments give the same files with the same versions of Pillow and PyAV.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.decode.extras import need
from shardkit.errors import ConfigError

__all__ = [
    "SUBJECTS",
    "encode_audio",
    "encode_image",
    "encode_video",
    "make_demo_data",
    "photo",
    "sound",
]

Pixels = npt.NDArray[np.uint8]
Wave = npt.NDArray[np.float32]

SUBJECTS = ("lighthouse", "orchard", "harbour", "meadow", "bridge", "market", "glacier", "dune")
_MOODS = ("at dawn", "in the rain", "under snow", "in autumn", "at noon", "after dusk")
_SAMPLE_RATES = {"wav": 44_100, "flac": 48_000, "mp3": 22_050}


def make_demo_data(
    folder: str,
    num_images: int = 48,
    num_audio: int = 12,
    num_videos: int = 6,
    *,
    image_formats: Sequence[str] = ("jpg", "jpg", "jpg", "png"),
    audio_formats: Sequence[str] = ("flac", "mp3", "wav"),
    image_size: tuple[int, int] = (375, 500),
    seed: int = 0,
) -> str:
    """Write media files and an index of them, and return the path of the index.

    Every row has a photo and its metadata; the first ``num_audio`` rows also have a sound and the
    first ``num_videos`` a video of two seconds. Files are named relative to the index's folder.
    Formats are taken in turn. The defaults take about two seconds on one core and hold all the
    formats that the docs mention; ``image_formats=("jpg",), audio_formats=("flac",)`` with three
    equal counts gives samples that all have the same members.

    Columns: ``id``, ``image``, ``audio``, ``video`` (paths or null), ``caption``, ``label``,
    ``width``, ``height``, ``aspect``, ``aesthetic`` (float, 0 to 10), ``taken`` (timestamp).

    Raises:
        ConfigError: there are more sounds or videos than photos.
        MissingDependencyError: Pillow or PyAV is not installed.
    """
    if not 0 <= max(num_audio, num_videos) <= num_images:
        raise ConfigError(
            f"num_audio={num_audio} and num_videos={num_videos} must not exceed "
            f"num_images={num_images}: each row has a photo; raise num_images"
        )
    for kind in ("images", "audio", "video"):
        os.makedirs(os.path.join(folder, kind), exist_ok=True)
    rows = [
        _write_row(folder, number, seed, image_formats, image_size)
        | _write_audio(folder, number, seed, audio_formats, num_audio)
        | _write_video(folder, number, seed, num_videos)
        for number in range(num_images)
    ]
    path = os.path.join(folder, "index.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path)
    return path


def _schema() -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.string()),
            ("audio", pa.string()),
            ("video", pa.string()),
            ("caption", pa.string()),
            ("label", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("aspect", pa.float64()),
            ("aesthetic", pa.float64()),
            ("taken", pa.timestamp("ms", tz="UTC")),
        ]
    )


def _write_row(
    folder: str, number: int, seed: int, formats: Sequence[str], size: tuple[int, int]
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, number, 1])
    height, width = size if number % 5 else (size[1], size[0])  # every fifth one stands upright
    label = SUBJECTS[number % len(SUBJECTS)]
    ext = formats[number % len(formats)]
    name = f"images/{number:05d}.{ext}"
    _write(folder, name, encode_image(photo(rng, height, width), ext))
    minutes = int(rng.integers(0, 500_000))
    article = "An" if label[0] in "aeiou" else "A"
    taken = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    return {
        "id": f"demo-{number:05d}",
        "image": name,
        "caption": f"{article} {label} {_MOODS[int(rng.integers(len(_MOODS)))]}, photo {number}.",
        "label": label,
        "width": width,
        "height": height,
        "aspect": width / height,
        "aesthetic": round(float(rng.uniform(2, 9)), 3),
        "taken": taken + dt.timedelta(minutes=minutes),
    }


def _write_audio(
    folder: str, number: int, seed: int, formats: Sequence[str], count: int
) -> dict[str, str | None]:
    if number >= count:
        return {"audio": None}
    ext = formats[number % len(formats)]
    rate = _SAMPLE_RATES.get(ext, 44_100)
    rng = np.random.default_rng([seed, number, 2])
    name = f"audio/{number:05d}.{ext}"
    _write(folder, name, encode_audio(sound(rng, 2.0, rate), rate, ext))
    return {"audio": name}


def _write_video(folder: str, number: int, seed: int, count: int) -> dict[str, str | None]:
    if number >= count:
        return {"video": None}
    rng = np.random.default_rng([seed, number, 3])
    frames = pan(photo(rng, 180, 320), num_frames=48, size=(144, 192))
    name = f"video/{number:05d}.mp4"
    _write(folder, name, encode_video(frames, fps=24, sound=sound(rng, 2.0, 44_100), rate=44_100))
    return {"video": name}


def _write(folder: str, name: str, data: bytes) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def photo(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Draw something with a photograph's statistics: uint8 ``[height, width, 3]``.

    Noise of falling strength over octaves (power falls as in natural pictures), a sky that
    brightens towards the horizon, and a few hard-edged discs. At 375 by 500 and the quality of
    ``encode_image`` a JPEG of it has about 110 KB, like the photos of ImageNet.
    """
    from PIL import Image

    picture = np.zeros((height, width, 3), dtype=np.float32)
    cells = 2
    while cells < 2 * min(height, width):
        layer = rng.standard_normal((cells, cells * width // height + 1, 3), dtype=np.float32)
        layer[..., 1:] = 0.7 * layer[..., :1] + 0.3 * layer[..., 1:]  # colours go together
        for channel in range(3):
            plane = Image.fromarray(layer[..., channel], mode=None)
            picture[..., channel] += np.asarray(
                plane.resize((width, height), Image.Resampling.BICUBIC)
            ) * (42.0 / cells**0.27)
        cells *= 2
    picture += np.linspace(175, 85, height, dtype=np.float32)[:, None, None]
    y, x = np.ogrid[:height, :width]
    for _ in range(6):
        centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
        radius = rng.uniform(0.03, 0.15) * height
        disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        picture[disc] = 0.4 * picture[disc] + 0.6 * rng.uniform(0, 255, 3).astype(np.float32)
    return picture.clip(0, 255).astype(np.uint8)


def pan(picture: Pixels, num_frames: int, size: tuple[int, int]) -> Pixels:
    """Move a window of ``size`` (height, width) over a picture: ``[num_frames, h, w, 3]``."""
    height, width = size
    ys = np.linspace(0, picture.shape[0] - height, num_frames).astype(int)
    xs = np.linspace(0, picture.shape[1] - width, num_frames).astype(int)
    return np.stack([picture[y : y + height, x : x + width] for y, x in zip(ys, xs, strict=True)])


def sound(rng: np.random.Generator, seconds: float, rate: int, num_channels: int = 2) -> Wave:
    """A chord of decaying notes over faint noise: float32 ``[num_channels, time]`` in [-1, 1]."""
    t = np.arange(round(seconds * rate)) / rate
    tracks = []
    for _ in range(num_channels):
        track = 0.01 * rng.standard_normal(t.size)
        for _ in range(4):
            pitch = 220.0 * 2.0 ** (rng.integers(0, 24) / 12)
            start = rng.uniform(0, 0.6 * seconds)
            swell = np.where(t >= start, np.exp(-2.5 * (t - start)), 0.0)
            track += 0.2 * swell * np.sin(2 * np.pi * pitch * t)
        tracks.append(track)
    return np.clip(np.stack(tracks), -1, 1).astype(np.float32)


def encode_image(picture: Pixels, ext: str, **options: Any) -> bytes:
    """Encode uint8 ``[h, w, 3]`` (or ``[h, w]``, ``[h, w, 4]``) with Pillow, by ext."""
    image = need("PIL.Image", "encoding images")
    name = {"jpg": "jpeg", "tif": "tiff"}.get(ext, ext)
    if name == "jpeg":
        options = {"quality": 95, "subsampling": 2} | options
    file = io.BytesIO()
    image.fromarray(picture).save(file, format=name, **options)
    return file.getvalue()


def encode_audio(samples: Wave, rate: int, ext: str) -> bytes:
    """Encode float32 ``[channels, time]`` in [-1, 1] as 16-bit wav, flac or mp3."""
    if ext == "wav":
        return _encode_wav(samples, rate)
    av = need("av", f"encoding .{ext}")
    codec = {"mp3": "libmp3lame", "flac": "flac", "m4a": "aac", "ogg": "libopus"}[ext]
    file = io.BytesIO()
    container_format = {"m4a": "mp4"}.get(ext, ext)
    with av.open(file, "w", format=container_format) as container:
        _bitexact(container)
        _encode_track(av, container, samples, rate, codec)
    return file.getvalue()


def _encode_wav(samples: Wave, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[0])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples.T * 32_767).round().astype("<i2").tobytes())
    return file.getvalue()


def encode_video(
    frames: Pixels,
    fps: int = 24,
    *,
    sound: Wave | None = None,
    rate: int = 44_100,
    container_format: str = "mp4",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
) -> bytes:
    """Encode uint8 ``[t, h, w, 3]``, and a sound if there is one, as a video file."""
    av = need("av", "encoding video")
    file = io.BytesIO()
    with av.open(file, "w", format=container_format, options=container_options or {}) as container:
        _bitexact(container)
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.options = {"preset": "veryfast"} if options is None else options
        stream.codec_context.thread_count = 1  # same bytes whatever the number of cores
        track = None if sound is None else _add_track(container, sound, rate, "aac")
        step = rate // fps
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
            if track is not None and sound is not None:
                last = number == len(frames) - 1
                part = sound[:, number * step : None if last else (number + 1) * step]
                _feed_track(av, container, track, part, number * step)
        container.mux(stream.encode())
        if track is not None:
            container.mux(track.encode())
    return file.getvalue()


def _bitexact(container: Any) -> None:
    container.flags |= 0x0400  # AVFMT_FLAG_BITEXACT: no times or versions in the file


def _add_track(container: Any, samples: Wave, rate: int, codec: str) -> Any:
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    return container.add_stream(codec, rate=rate, layout=layout)


def _feed_track(av: Any, container: Any, track: Any, part: Wave, start: int) -> None:
    if part.shape[1] == 0:
        return
    layout = "mono" if part.shape[0] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = track.codec_context.sample_rate, start
    container.mux(track.encode(frame))


def _encode_track(av: Any, container: Any, samples: Wave, rate: int, codec: str) -> None:
    track = _add_track(container, samples, rate, codec)
    _feed_track(av, container, track, samples, 0)
    container.mux(track.encode())
