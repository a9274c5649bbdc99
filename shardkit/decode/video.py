"""Videos as handles: nothing is opened or fetched until a clip, a sound or a fact is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shardkit.decode.audio import Audio, decode_track
from shardkit.decode.clip import ClipPlan, ClipRequest, Moment, draw_for
from shardkit.decode.container import open_container
from shardkit.decode.frames import (
    PastEndError,
    frame_times,
    frames_at,
    is_on_its_side,
    keyframe_before,
    last_end,
    timeline_of,
)
from shardkit.decode.pictures import FrameWriter
from shardkit.decode.source import Data, Source, as_source
from shardkit.errors import ConfigError, DecodeError

__all__ = ["Clip", "Video", "VideoInfo", "open_video"]


Frames: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What the header says: seconds, frames per second, pixels (upright), and codecs."""

    duration: float
    fps: float
    height: int
    width: int
    codec: str
    has_audio: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video.

    Attributes:
        frames: uint8 ``[t, height, width, 3]``.
        timestamps: float64 ``[t]``, seconds from the video's first frame that were asked for;
            given to another video as ``timestamps=``, they show the same moments.
        frame_times: float64 ``[t]``, when the frame that was on display began.
        start: seconds of the first timestamp.
        duration: seconds of the source that the clip shows.
        fps: frames of the clip per second of the source.
    """

    frames: npt.NDArray[np.uint8]
    timestamps: npt.NDArray[np.float64]
    frame_times: npt.NDArray[np.float64]
    start: float
    duration: float
    fps: float


class Video:
    """A video that can be asked for clips. Picklable; keeps nothing open; thread-safe.

    Args:
        data: bytes, a local path, or a source that is read by ranges.
        threads: threads that the codec may use. One, since loaders decode many videos at once.
    """

    def __init__(self, data: Source | Data | str, *, threads: int = 1) -> None:
        self.source = as_source(data)
        self.threads = threads

    def __repr__(self) -> str:
        return f"Video({self.source.name})"

    def info(self) -> VideoInfo:
        """Read the header; where it has no duration, the packets too."""
        with open_container(self.source) as container:
            stream = self._stream(container)
            height, width = stream.codec_context.height, stream.codec_context.width
            if is_on_its_side(container, stream):
                height, width = width, height
            return VideoInfo(
                duration=_header_duration(container, stream) or self._end(),
                fps=1 / timeline_of(container, stream).frame,
                height=height,
                width=width,
                codec=stream.codec_context.name,
                has_audio=bool(container.streams.audio),
            )

    def clip(
        self,
        num_frames: int | None = None,
        *,
        fps: float | None = None,
        start: Moment = "start",
        interval: tuple[float, float] | None = None,
        interval_mode: str = "hard",
        speed: float = 1.0,
        allow_shorter: bool = False,
        seek: str = "exact",
        min_size: tuple[int, int] | None = None,
        duration: float | None = None,
        native_fps: float | None = None,
        rng: np.random.Generator | None = None,
        out: Frames | None = None,
    ) -> Clip:
        """Decode a clip at even times, and no more of the video than it takes.

        Args:
            num_frames: how many; None: all from ``start`` (in ``interval``) on.
            fps: of the clip; None: the video's own (its average, where it varies).
            start: ``"start"``, ``"middle"``, ``"random"`` or seconds.
            interval: (start, stop) in seconds within which the clip must lie.
            interval_mode: ``"hard"`` refuses an interval that is too short, ``"soft"`` widens it.
            speed: 2.0 shows twice the time in the same number of frames.
            allow_shorter: fewer frames where the video ends early, in place of an error.
            seek: ``"exact"``, or ``"keyframe"``: the clip moves back to the keyframe before its
                start, where a decoder begins anyway, so that nothing is decoded in vain.
            min_size: (height, width) that is enough: larger frames are scaled down to cover it.
            duration: seconds, where the header is known to be wrong.
            native_fps: the video's frame rate, where the header is known to be wrong.
            rng: for ``start="random"``.
            out: uint8 ``[num_frames, height, width, 3]`` to write to.

        Raises:
            DecodeError: no video track, damaged, or too short.
        """
        if seek not in {"exact", "keyframe"}:
            raise ConfigError(f'seek={seek!r}: give "exact" or "keyframe"')
        request = ClipRequest(
            num_frames=num_frames,
            fps=fps,
            start=start,
            interval=interval,
            interval_mode=interval_mode,
            speed=speed,
            allow_shorter=allow_shorter,
            draw=draw_for(start, rng),
        )
        with open_container(self.source) as container:
            stream = self._stream(container)
            rate = native_fps or 1 / timeline_of(container, stream).frame
            length = duration or _header_duration(container, stream) or self._end()
            plan = request.plan(length, rate)
            if seek == "keyframe":
                plan = _moved(plan, keyframe_before(container, stream, plan.start))
            try:
                writer = FrameWriter(len(plan.times), min_size, out)
                return _decoded(container, stream, plan, writer)
            except PastEndError as error:
                if duration is not None or error.end >= length:
                    raise
                plan = request.plan(error.end, rate)  # the header promised more than there is
        return self._decoded(plan, min_size, out)

    def frames_at(
        self,
        timestamps: Sequence[float] | npt.NDArray[np.float64],
        *,
        allow_shorter: bool = False,
        min_size: tuple[int, int] | None = None,
        out: Frames | None = None,
    ) -> Clip:
        """Decode the frames on display at explicit times, in any order, repeats allowed.

        Args:
            timestamps: seconds from the first frame, ``[t]``.
            allow_shorter: leave out times after the end, in place of an error.
            min_size: (height, width) that is enough.
            out: uint8 ``[t, height, width, 3]`` to write to.

        Raises:
            DecodeError: as ``clip``.
        """
        times = np.asarray(timestamps, np.float64)
        if times.ndim != 1 or not len(times) or not (times >= 0).all():
            raise ConfigError("timestamps must be a flat list of at least one time, 0 s or later")
        step = float(np.ptp(times)) / max(1, len(times) - 1)
        try:
            return self._decoded(ClipPlan(times, step), min_size, out)
        except PastEndError as error:
            times = times[times < error.end]
            if not allow_shorter or not len(times):
                raise
        return self._decoded(ClipPlan(times, step), min_size, out)

    def frames(self, *, min_size: tuple[int, int] | None = None) -> Clip:
        """Decode every frame, at its own time."""
        with open_container(self.source) as container:
            stream = self._stream(container)
            times, step = frame_times(container, stream), timeline_of(container, stream).frame
        return self._decoded(ClipPlan(np.array(times), step), min_size, None)

    def audio(self, *, start: float = 0.0, duration: float | None = None) -> Audio:
        """Decode the sound of a stretch of the video, in step with its frames.

        Args:
            start: seconds from the video's first frame, as in ``Clip.start``.
            duration: seconds; None: to the end. Where the track is shorter, silence follows, so
                that there are exactly ``round(duration * sample_rate)`` samples.

        Raises:
            DecodeError: it has no audio track.
        """
        with open_container(self.source) as container:
            origin = None
            if container.streams.video:
                line = timeline_of(container, container.streams.video[0])
                origin = line.origin * line.tick
            audio = decode_track(container, start, duration, origin=origin)
        if duration is None:
            return audio
        missing = round(duration * audio.sample_rate) - audio.samples.shape[1]
        return Audio(np.pad(audio.samples, ((0, 0), (0, missing))), audio.sample_rate)

    def _decoded(
        self, plan: ClipPlan, min_size: tuple[int, int] | None, out: Frames | None
    ) -> Clip:
        with open_container(self.source) as container:
            writer = FrameWriter(len(plan.times), min_size, out)
            return _decoded(container, self._stream(container), plan, writer)

    def _end(self) -> float:
        """Find where the video ends, in seconds, by reading all its packets."""
        with open_container(self.source) as container:
            return last_end(container, self._stream(container))

    def _stream(self, container: Any) -> Any:
        if not container.streams.video:
            kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
            raise DecodeError(f"it has no video track (it has: {kinds})")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DecodeError("FFmpeg knows no decoder for its video track")
        stream.codec_context.thread_count = self.threads
        stream.codec_context.thread_type = "AUTO" if self.threads != 1 else "NONE"
        return stream


def open_video(data: Source | Data | str) -> Video:
    """Wrap a video; what is wrong with it shows when it is used, but an empty one at once.

    Raises:
        DecodeError: there are no bytes.
    """
    video = Video(data)
    if video.source.size == 0:
        raise DecodeError("there are no bytes")
    return video


def _decoded(container: Any, stream: Any, plan: ClipPlan, writer: FrameWriter) -> Clip:
    order = np.argsort(plan.times, kind="stable")
    begins = np.empty(len(order))
    step = plan.step or timeline_of(container, stream).frame
    shown = frames_at(container, stream, plan.times[order].tolist(), writer.reordered(order))
    begins[order] = shown
    return Clip(
        frames=writer.pixels(),
        timestamps=plan.times,
        frame_times=begins,
        start=plan.start,
        duration=len(order) * step,
        fps=1 / step,
    )


def _moved(plan: ClipPlan, start: float) -> ClipPlan:
    return ClipPlan(plan.times - plan.start + start, plan.step)


def _header_duration(container: Any, stream: Any) -> float | None:
    """Return the video's length as told by the stream, its tags, or the container."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    told = dict(stream.metadata).get("DURATION")  # Matroska: 00:00:10.000000000
    if told and told.count(":") == 2:
        hours, minutes, seconds = told.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return float(container.duration) / 1e6 if container.duration else None
