"""Presets for videos: clips out of files, sound in step with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardkit.decode.video import Clip, Video
from shardkit.errors import ConfigError
from shardkit.transforms.onfields import OnFields, names_of, number_of, value_of
from shardkit.transforms.pipeline import Sample
from shardkit.transforms.resize import resize

__all__ = ["DecodeClip", "Squarify"]


@dataclass(frozen=True)
class DecodeClip(OnFields):
    """A video (bytes, path, source or ``Video``) → uint8 ``[t, height, width, 3]``.

    With several fields, the first decides which moments are shown, and the others show the same.

    Attributes:
        num_frames: ``t``; None: all.
        fps: of the clip; None: the first video's own.
        start: ``"random"``, ``"start"``, ``"middle"`` or seconds.
        interval: (start, stop) in seconds, or the names of two fields that hold them.
        interval_mode: ``"hard"`` or ``"soft"``, see ``Video.clip``.
        speed: a number, or the name of a field that holds one.
        timestamps_from: field with explicit times, in place of all of the above.
        allow_shorter: fewer frames where a video ends early.
        seek: ``"exact"`` or ``"keyframe"``.
        min_size: (height, width) that is enough.
        duration_from: field with the true duration in seconds, where headers lie.
        fps_from: field with the true frame rate.
        audio_into: field for the sound of the same span of the first video, as ``Audio``.
        timestamps_into: field for the times shown, float64 ``[t]``.
        duration_into: field for the seconds that the clip spans.
        fps_into: field for the clip's frames per second.
        threads: that the codec may use.
    """

    num_frames: int | None = None
    fps: float | None = None
    start: str | float = "random"
    interval: tuple[float, float] | tuple[str, str] | None = None
    interval_mode: str = "hard"
    speed: float | str = 1.0
    timestamps_from: str | None = None
    allow_shorter: bool = False
    seek: str = "exact"
    min_size: tuple[int, int] | None = None
    duration_from: str | None = None
    fps_from: str | None = None
    audio_into: str | None = None
    timestamps_into: str | None = None
    duration_into: str | None = None
    fps_into: str | None = None
    threads: int = 1

    @property
    def decodes(self) -> tuple[str, ...]:
        """The fields that a dataset may leave undecoded."""
        return names_of(self.fields)

    @property
    def is_random(self) -> bool:
        """Does it draw anything?"""
        return self.start == "random" and self.timestamps_from is None

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Decode the first field's clip, then the same moments of the others."""
        first: Clip | None = None
        for value, into in self.each(sample):
            if isinstance(value, np.ndarray):
                raise ConfigError(f"field {into!r} is decoded already; name it in one DecodeClip")
            source = value.source if isinstance(value, Video) else value
            video = Video(source, threads=self.threads)
            if first is not None:
                clip = video.frames_at(
                    first.timestamps, allow_shorter=self.allow_shorter, min_size=self.min_size
                )
            else:
                clip = first = self._first(video, sample, rng)
                self._write_facts(video, clip, sample)
            sample[into] = clip.frames
        return sample

    def _first(self, video: Video, sample: Sample, rng: np.random.Generator | None) -> Clip:
        if self.timestamps_from is not None:
            times = np.asarray(value_of(sample, self.timestamps_from), np.float64)
            return video.frames_at(times, allow_shorter=self.allow_shorter, min_size=self.min_size)
        return video.clip(
            self.num_frames,
            fps=self.fps,
            start=self.start,
            interval=self._interval(sample),
            interval_mode=self.interval_mode,
            speed=number_of(sample, self.speed),
            allow_shorter=self.allow_shorter,
            seek=self.seek,
            min_size=self.min_size,
            duration=None if self.duration_from is None else number_of(sample, self.duration_from),
            native_fps=None if self.fps_from is None else number_of(sample, self.fps_from),
            rng=rng,
        )

    def _interval(self, sample: Sample) -> tuple[float, float] | None:
        if self.interval is None:
            return None
        return number_of(sample, self.interval[0]), number_of(sample, self.interval[1])

    def _write_facts(self, video: Video, clip: Clip, sample: Sample) -> None:
        facts = {
            self.timestamps_into: clip.timestamps,
            self.duration_into: clip.duration,
            self.fps_into: clip.fps,
        }
        sample.update({name: value for name, value in facts.items() if name is not None})
        if self.audio_into is not None:
            sample[self.audio_into] = video.audio(start=clip.start, duration=clip.duration)


@dataclass(frozen=True)
class Squarify(OnFields):
    """Undo a wrong aspect: ``[..., h, w, c]`` → the aspect that two fields of the sample tell.

    Attributes:
        size_from: names of the fields with the true (height, width).
        tolerance: differences of aspect below it are left alone: 2 %, which nobody sees.
    """

    size_from: tuple[str, str] = ("height", "width")
    tolerance: float = 0.02

    def __call__(self, sample: Sample) -> Sample:
        """Stretch the side that is too short."""
        wanted = number_of(sample, self.size_from[0]) / number_of(sample, self.size_from[1])
        for pixels, into in self.each(sample):
            height, width = pixels.shape[-3:-1]
            size = (height, width)
            if abs(height / width / wanted - 1) > self.tolerance:
                taller = round(width * wanted)
                size = (taller, width) if taller > height else (height, round(height / wanted))
            sample[into] = resize(pixels, size)
        return sample
