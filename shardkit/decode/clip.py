"""Which moments of a video or sound make a clip: arithmetic on seconds alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shardkit.errors import ConfigError, DecodeError

__all__ = ["ClipPlan", "ClipRequest", "Moment", "draw_for"]

Moment: TypeAlias = str | float

_STARTS = ("start", "middle", "random")
_INTERVAL_MODES = ("hard", "soft")


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Times to show, float64 ``[t]`` in seconds from the first frame, and their spacing."""

    times: npt.NDArray[np.float64]
    step: float

    @property
    def start(self) -> float:
        """The first moment of the clip, in seconds."""
        return float(self.times[0])


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What is asked of a video.

    Attributes:
        num_frames: how many; None: as many as follow ``start`` in the interval.
        fps: frames per second of the clip; None: the video's own.
        start: ``"start"``, ``"middle"`` or ``"random"`` within the interval, or seconds.
        interval: (start, stop) in seconds that the clip must lie in; None: the whole video.
        interval_mode: ``"hard"`` refuses an interval that is too short or outside of the video;
            ``"soft"`` moves and widens it, evenly to both sides, as far as the clip needs.
        speed: 2.0 shows twice the time with the same number of frames.
        allow_shorter: give fewer frames where there is not enough.
        draw: a number in [0, 1) that places a ``"random"`` start.
    """

    num_frames: int | None = None
    fps: float | None = None
    start: Moment = "start"
    interval: tuple[float, float] | None = None
    interval_mode: str = "hard"
    speed: float = 1.0
    allow_shorter: bool = False
    draw: float = 0.0

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise ConfigError(f"num_frames={self.num_frames}: give 1 or more, or None for all")
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"fps={self.fps}: give a positive number, or None: the video's own")
        if isinstance(self.start, str) and self.start not in _STARTS:
            raise ConfigError(f"start={self.start!r}: give seconds or one of {', '.join(_STARTS)}")
        if not self.speed > 0:
            raise ConfigError(f"speed={self.speed}: give a positive number")
        if self.interval_mode not in _INTERVAL_MODES:
            raise ConfigError(
                f"interval_mode={self.interval_mode!r}: give one of {', '.join(_INTERVAL_MODES)}"
            )
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ConfigError(f"interval={self.interval}: its start must not be after its stop")

    def plan(self, duration: float, native_fps: float) -> ClipPlan:
        """Choose the times, for a video of ``duration`` seconds at ``native_fps`` on average.

        Raises:
            DecodeError: the clip does not fit.
        """
        step = self.speed / (self.fps or native_fps)
        slack = 0.5 / native_fps  # headers round durations; half a frame is nobody's loss
        span = step * (self.num_frames or 1)
        low, high = self._bounds(duration, span, slack)
        first = self._first(low, high, span, slack)
        available = max(1, int((high - first + slack) / step + 1e-6))
        count = self.num_frames or available
        if count > available:
            if not self.allow_shorter:
                raise DecodeError(
                    f"the clip of {count} frames needs {span:.3f} s, but only "
                    f"{max(0.0, high - first):.3f} s are there from {first:.3f} s on; ask for "
                    f"fewer frames, a higher fps, or allow_shorter=True"
                )
            count = available
        return ClipPlan(first + step * np.arange(count, dtype=np.float64), step)

    def _first(self, low: float, high: float, span: float, slack: float) -> float:
        room = max(0.0, high - low - span)
        if isinstance(self.start, str):
            share = {"start": 0.0, "middle": 0.5, "random": self.draw}[self.start]
            return low + share * room
        if not low - slack <= self.start < high:
            raise DecodeError(
                f"start={self.start} s is outside of what there is, {low:.3f} to {high:.3f} s"
            )
        return float(self.start)

    def _bounds(self, duration: float, span: float, slack: float) -> tuple[float, float]:
        if self.interval is None:
            return 0.0, duration
        low, high = self.interval
        if self.interval_mode == "hard":
            if low < -slack or high > duration + slack:
                raise DecodeError(
                    f"interval {low} to {high} s is outside of the {duration:.3f} s that there "
                    f'are; interval_mode="soft" moves it inside'
                )
            if high - low + slack < span and not self.allow_shorter:
                raise DecodeError(
                    f"interval {low} to {high} s is shorter than the clip of {span:.3f} s; "
                    f'interval_mode="soft" widens it'
                )
            return max(low, 0.0), min(high, duration)
        missing = max(0.0, span - (high - low))
        low, high = low - missing / 2, high + missing / 2
        if low < 0:
            low, high = 0.0, high - low
        if high > duration:
            low, high = low - (high - duration), duration
        return max(low, 0.0), high


def draw_for(start: Moment, rng: np.random.Generator | None) -> float:
    """Draw the number that places a ``"random"`` start; nothing is drawn for any other."""
    if start != "random":
        return 0.0
    if rng is None:
        raise ConfigError('start="random" needs rng: give a numpy.random.Generator')
    return float(rng.random())
