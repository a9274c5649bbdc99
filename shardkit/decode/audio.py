"""Sound to float32, whole or a stretch of it: by libsndfile where it can, by FFmpeg otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shardkit.decode.container import open_container
from shardkit.decode.extras import has_module, need
from shardkit.decode.seekable import open_file
from shardkit.decode.source import Data, Source, as_source
from shardkit.decode.wav import check_wav
from shardkit.errors import ConfigError, DecodeError

__all__ = ["Audio", "AudioInfo", "audio_info", "decode_audio", "decode_track"]

Samples = npt.NDArray[np.float32]

# Formats that libsndfile seeks in exactly, by their first bytes. mp3 too: FFmpeg guesses there.
_SNDFILE_STARTS = (
    b"RIFF",
    b"fLaC",
    b"OggS",
    b"FORM",
    b"ID3",
    b"\xff\xfb",
    b"\xff\xf3",
    b"\xff\xf2",
)
_PREROLL_S = 0.25  # codecs with overlapping windows need some frames before they are right
_JITTER_S = 0.005  # containers round times (mkv to 1 ms); larger steps are real gaps


class Audio(NamedTuple):
    """Sound: ``samples`` float32 ``[channels, time]`` in [-1, 1], ``sample_rate`` in Hz."""

    samples: Samples
    sample_rate: int


class AudioInfo(NamedTuple):
    """Length in seconds, channels and sample rate in Hz, as the file's header says."""

    duration: float
    num_channels: int
    sample_rate: int


def decode_audio(
    data: Source | Data | str,
    *,
    start: float = 0.0,
    duration: float | None = None,
    allow_shorter: bool = False,
) -> Audio:
    """Decode a sound file, or the sound of a video, without decoding what is not asked for.

    Args:
        data: bytes, a local path, or a source.
        start: seconds from the first sample.
        duration: seconds; None: to the end.
        allow_shorter: give less where there is less.

    Returns:
        float32 ``[channels, time]`` at the file's own rate. 16-bit samples are divided by 2^15,
        24 and 32-bit ones by 2^31 of the full scale; float ones stay as they are.

    Raises:
        DecodeError: no sound in it, cut short, or fewer than ``duration`` seconds.
    """
    _check_span(start, duration)
    source = as_source(data)
    if _is_for_sndfile(source):
        if not allow_shorter:
            check_wav(source)
        audio = _decode_with_sndfile(source, start, duration)
    else:
        with open_container(source) as container:
            audio = decode_track(container, start, duration)
    return audio if allow_shorter else _long_enough(audio, start, duration)


def audio_info(data: Source | Data | str) -> AudioInfo:
    """Read length, channels and rate; where no header tells the length, by decoding."""
    source = as_source(data)
    if _is_for_sndfile(source):
        with _open_sndfile(source) as file:
            return AudioInfo(file.frames / file.samplerate, file.channels, file.samplerate)
    with open_container(source) as container:
        stream = _audio_stream(container)
        rate = stream.codec_context.sample_rate
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / 1e6
        else:
            seconds = decode_track(container, 0.0, None).samples.shape[1] / rate
        return AudioInfo(seconds, stream.codec_context.channels, rate)


def _check_span(start: float, duration: float | None) -> None:
    if start < 0 or (duration is not None and duration <= 0):
        raise ConfigError(
            f"start={start}, duration={duration}: seconds, at least 0 and more than 0"
        )


def _long_enough(audio: Audio, start: float, duration: float | None) -> Audio:
    have = audio.samples.shape[1]
    wanted = 1 if duration is None else round(duration * audio.sample_rate)
    if have < wanted:
        raise DecodeError(
            f"{duration or 0:.3f} s from {start:.3f} s on were asked for, but only "
            f"{have / audio.sample_rate:.3f} s are there; ask for less, or allow_shorter=True"
        )
    return audio


def _is_for_sndfile(source: Source) -> bool:
    head = bytes(source.read(0, min(12, source.size)))
    if not head.startswith(_SNDFILE_STARTS) or not has_module("soundfile"):
        return False
    return head[:4] != b"RIFF" or head[8:12] == b"WAVE"  # an AVI is a RIFF too


@contextlib.contextmanager
def _open_sndfile(source: Source) -> Iterator[Any]:
    soundfile = need("soundfile", "decoding sound")
    try:
        with soundfile.SoundFile(open_file(source)) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise DecodeError(f"libsndfile says: {error.error_string}") from error


def _decode_with_sndfile(source: Source, start: float, duration: float | None) -> Audio:
    with _open_sndfile(source) as file:
        rate = file.samplerate
        first = round(start * rate)
        if first >= file.frames:
            raise DecodeError(
                f"start={start:.3f} s is at or after the end, {file.frames / rate:.3f} s"
            )
        file.seek(first)
        count = file.frames - first
        if duration is not None:
            count = min(count, round(duration * rate))
        samples = file.read(count, dtype="float32", always_2d=True)
        if len(samples) < count:
            raise DecodeError(
                f"its header says {file.frames} samples, but only {first + len(samples)} "
                f"are there: it was cut"
            )
        return Audio(np.ascontiguousarray(samples.T), rate)


def _audio_stream(container: Any) -> Any:
    if not container.streams.audio:
        kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
        raise DecodeError(f"it has no audio track (it has: {kinds})")
    if container.streams.audio[0].codec_context is None:
        raise DecodeError("FFmpeg knows no decoder for its audio track")
    return container.streams.audio[0]


def decode_track(
    container: Any, start: float, duration: float | None, *, origin: float | None = None
) -> Audio:
    """Decode the first audio track of a container from ``start`` on, sample by sample in place.

    Args:
        container: an open one.
        start: seconds after ``origin``.
        duration: seconds; None: to the end.
        origin: the container's time that counts as 0 s; None: the track's first sample.

    Returns:
        At most ``duration``; stretches without data are silent. Times are kept to a sample, but
        for containers that round theirs (mkv: to 1 ms).
    """
    stream = _audio_stream(container)
    rate = stream.codec_context.sample_rate
    if origin is None:
        origin = float((stream.start_time or 0) * stream.time_base)
    begin = origin + start
    limit = None if duration is None else round(duration * rate)
    if start > 0 or origin > 0 or container.streams.video:
        earlier = max(0.0, begin - _PREROLL_S)
        container.seek(int(earlier / stream.time_base), stream=stream)
    if duration is None and not container.streams.video:
        limit = _told_length(stream, start)
    place: int | None = None  # of the next sample, counted from ``begin``
    parts: list[tuple[int, Samples]] = []
    for frame in container.decode(stream):
        samples = _floats(frame)
        told = place if frame.pts is None else round((float(frame.time) - begin) * rate)
        if place is None or (told is not None and abs(told - place) > _JITTER_S * rate):
            place = told or 0
        if limit is not None and place >= limit:
            break
        if place + samples.shape[1] > 0:
            parts.append((place, samples))
        place += samples.shape[1]
    return Audio(_laid_out(parts, limit, stream.codec_context.channels), rate)


def _told_length(stream: Any, start: float) -> int | None:
    """Return how many samples follow ``start``, where the header tells it to the sample.

    The last packet of an mp4's AAC is filled up; its edit list says where the sound ends.
    """
    rate: int = stream.codec_context.sample_rate
    if not stream.duration or stream.time_base * rate != 1 or stream.frames == 0:
        return None
    return max(0, int(stream.duration) - round(start * rate))


def _laid_out(parts: list[tuple[int, Samples]], limit: int | None, num_channels: int) -> Samples:
    stop = max((place + part.shape[1] for place, part in parts), default=0)
    stop = stop if limit is None else min(stop, limit)
    out = np.zeros((num_channels, stop), np.float32)
    for place, part in parts:
        low, high = max(place, 0), min(place + part.shape[1], stop)
        if low < high:
            out[:, low:high] = part[:num_channels, low - place : high - place]
    return out


def _floats(frame: Any) -> Samples:
    """Return a decoded frame as float32 ``[channels, time]``."""
    array: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    is_integer = array.dtype.kind == "i"
    samples: Samples = array.astype(np.float32, copy=False)
    if is_integer:
        samples *= np.float32(0.5 ** (8 * array.dtype.itemsize - 1))
    return samples
