"""Presets for sound; between them travels ``Audio``: samples ``[channels, time]`` and rate."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode.audio import Audio, audio_info, decode_audio
from shardkit.decode.clip import ClipRequest, draw_for
from shardkit.decode.extras import need
from shardkit.decode.video import Video
from shardkit.errors import ConfigError, DecodeError
from shardkit.transforms.image import as_output
from shardkit.transforms.loudness import loudness
from shardkit.transforms.onfields import OnFields, names_of, number_of
from shardkit.transforms.pipeline import Sample

__all__ = [
    "AudioToTensor",
    "CheckAudible",
    "DecodeAudio",
    "Mono",
    "NormalizeLoudness",
    "PadOrTrim",
    "Resample",
]

_LOUD_STARTS = ("loudest", "peak", "random_loud")
_WINDOW_STEPS = 10  # candidate windows per window length


@dataclass(frozen=True)
class DecodeAudio(OnFields):
    """Sound (bytes, path, source, ``Video``, ``Audio``) → ``Audio``, whole or a stretch of it.

    Attributes:
        duration: seconds; None: all.
        start: ``"start"``, ``"middle"``, ``"random"``, seconds; or by loudness: ``"loudest"``
            (the stretch of most power), ``"peak"`` (around the highest sample), ``"random_loud"``
            (drawn among the stretches above ``cutoff_db``; the loudest if there is none).
        allow_shorter: give less where there is less, in place of an error.
        cutoff_db: for ``"random_loud"``, RMS in dB of full scale.
    """

    duration: float | None = None
    start: str | float = "start"
    allow_shorter: bool = False
    cutoff_db: float = -40.0

    @property
    def decodes(self) -> tuple[str, ...]:
        """The fields that a dataset may leave undecoded."""
        return names_of(self.fields)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in _LOUD_STARTS:
            ClipRequest(start=self.start)
        elif self.duration is None:
            raise ConfigError(f"start={self.start!r} needs a duration")

    @property
    def is_random(self) -> bool:
        """Does it draw anything?"""
        return self.start in {"random", "random_loud"}

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Decode each field; all draw the same share of their length."""
        draw = draw_for("random" if self.is_random else 0.0, rng)
        for value, into in self.each(sample):
            source = value.source if isinstance(value, Video) else value
            if isinstance(source, Audio) or self.start in _LOUD_STARTS:
                whole = source if isinstance(source, Audio) else decode_audio(source)
                sample[into] = self._cut(whole, draw)
            else:
                first = self._start_of(source, draw)
                sample[into] = decode_audio(
                    source, start=first, duration=self.duration, allow_shorter=self.allow_shorter
                )
        return sample

    def _start_of(self, source: Any, draw: float) -> float:
        if self.start == "start":
            return 0.0
        return self._place(
            1.0 if not isinstance(self.start, str) else audio_info(source).duration, draw
        )

    def _place(self, length: float, draw: float) -> float:
        if not isinstance(self.start, str):
            return float(self.start)
        room = max(0.0, length - (self.duration or length))
        return room * {"start": 0.0, "middle": 0.5, "random": draw}[self.start]

    def _cut(self, audio: Audio, draw: float) -> Audio:
        samples, rate = audio
        length = samples.shape[1]
        count = length if self.duration is None else round(self.duration * rate)
        if count > length:
            if not self.allow_shorter:
                raise DecodeError(
                    f"{count / rate:.3f} s were asked for, but only {length / rate:.3f} s are "
                    f"there; ask for less, or allow_shorter=True"
                )
            count = length
        if self.start in _LOUD_STARTS:
            first = self._loud_start(samples, count, draw)
        else:
            first = min(round(self._place(length / rate, draw) * rate), length - count)
        return Audio(np.ascontiguousarray(samples[:, first : first + count]), rate)

    def _loud_start(self, samples: npt.NDArray[np.float32], count: int, draw: float) -> int:
        power = (samples.astype(np.float64) ** 2).mean(axis=0)
        room = len(power) - count
        if self.start == "peak":
            return int(np.clip(int(power.argmax()) - count // 2, 0, room))
        starts = np.unique(np.append(np.arange(0, room + 1, max(1, count // _WINDOW_STEPS)), room))
        sums = np.concatenate([[0.0], np.cumsum(power)])
        means = (sums[starts + count] - sums[starts]) / max(1, count)
        loud = np.flatnonzero(means > 10 ** (self.cutoff_db / 10))
        if self.start == "random_loud" and len(loud):
            return int(starts[loud[int(draw * len(loud))]])
        return int(starts[int(means.argmax())])


@dataclass(frozen=True)
class Mono(OnFields):
    """``[channels, time]`` → ``[1, time]``: the mean of the channels."""

    def __call__(self, sample: Sample) -> Sample:
        """Mix each field."""
        for audio, into in self.each(sample):
            sample[into] = Audio(audio.samples.mean(axis=0, keepdims=True), audio.sample_rate)
        return sample


@dataclass(frozen=True)
class Resample(OnFields):
    """``[channels, time]`` → ``[channels, round(time * sample_rate / rate)]``, by torchaudio.

    Attributes:
        sample_rate: to bring the sound to, in Hz.
        lowpass_filter_width: zero crossings of the filter on each side; more is sharper.
    """

    sample_rate: int
    lowpass_filter_width: int = 6

    def __call__(self, sample: Sample) -> Sample:
        """Resample each field that has another rate."""
        for audio, into in self.each(sample):
            sample[into] = self._resampled(audio)
        return sample

    def _resampled(self, audio: Audio) -> Audio:
        if audio.sample_rate == self.sample_rate or audio.samples.shape[1] == 0:
            return Audio(audio.samples, self.sample_rate)
        torch = need("torch", "resampling")
        filters = _resampler(audio.sample_rate, self.sample_rate, self.lowpass_filter_width)
        with torch.no_grad():
            samples = filters(torch.from_numpy(audio.samples)).numpy()
        # Without overshoot at the ends of full-scale sounds: [-1, 1] stays [-1, 1].
        limit = max(1.0, float(np.abs(audio.samples).max()))
        exact = round(audio.samples.shape[1] * self.sample_rate / audio.sample_rate)
        return Audio(np.clip(samples[:, :exact], -limit, limit), self.sample_rate)


@functools.lru_cache(maxsize=32)
def _resampler(rate: int, sample_rate: int, width: int) -> Any:
    """Make the filters of one pair of rates; making them costs more than using them."""
    transforms = need("torchaudio.transforms", "resampling")
    return transforms.Resample(rate, sample_rate, lowpass_filter_width=width)


@dataclass(frozen=True)
class PadOrTrim(OnFields):
    """``[channels, time]`` → ``[channels, n]``: cut at the end, or silence added there.

    Attributes:
        num_samples: ``n``; or None, and
        duration: ``n`` in seconds: a number, or the name of a field that holds one.
    """

    num_samples: int | None = None
    duration: float | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.num_samples is None) == (self.duration is None):
            raise ConfigError("PadOrTrim: give num_samples or duration, one of them")

    def __call__(self, sample: Sample) -> Sample:
        """Pad or trim each field."""
        for audio, into in self.each(sample):
            count = self.num_samples
            if count is None:
                count = round(number_of(sample, self.duration) * audio.sample_rate)
            missing = max(0, count - audio.samples.shape[1])
            samples = np.pad(audio.samples[:, :count], ((0, 0), (0, missing)))
            sample[into] = Audio(samples, audio.sample_rate)
        return sample


@dataclass(frozen=True)
class NormalizeLoudness(OnFields):
    """Scale to a loudness (ITU-R BS.1770-4). Silence stays as it is.

    Attributes:
        target: in LUFS; -24 is common for speech and film, and leaves room for peaks.
        peak: highest absolute sample allowed. None: the target is met exactly, also where
            samples then pass 1; a number: the gain is lowered so far that they do not pass it.
    """

    target: float = -24.0
    peak: float | None = None

    def __call__(self, sample: Sample) -> Sample:
        """Scale each field."""
        for audio, into in self.each(sample):
            measured = loudness(audio.samples, audio.sample_rate)
            gain = 10 ** ((self.target - measured) / 20) if np.isfinite(measured) else 1.0
            if self.peak is not None and audio.samples.size:
                highest = float(np.abs(audio.samples).max())
                gain = min(gain, self.peak / highest) if highest > 0 else gain
            sample[into] = Audio(audio.samples * np.float32(gain), audio.sample_rate)
        return sample


@dataclass(frozen=True)
class CheckAudible(OnFields):
    """Refuse sounds whose highest absolute sample is below a threshold, or no number.

    Raises:
        DecodeError: it is, so ``on_error="skip"`` leaves the sample out.
    """

    threshold: float = 1e-3

    def __call__(self, sample: Sample) -> Sample:
        """Check each field."""
        for audio, _ in self.each(sample):
            highest = float(np.abs(audio.samples).max(initial=0.0))
            if not np.isfinite(highest):
                raise DecodeError(f"its sound holds {highest}, which is no number")
            if highest < self.threshold:
                raise DecodeError(f"its sound peaks at {highest:.2g}, below {self.threshold:.2g}")
        return sample


@dataclass(frozen=True)
class AudioToTensor(OnFields):
    """``Audio`` → its samples, float32 ``[channels, time]``.

    Attributes:
        rate_into: field for the sample rate; None: not written.
        output: ``"torch"``, ``"numpy"``, or ``"auto"``: torch where installed.
    """

    rate_into: str | None = None
    output: str = "auto"

    def __call__(self, sample: Sample) -> Sample:
        """Unpack each field."""
        for audio, into in self.each(sample):
            if self.rate_into is not None:
                sample[self.rate_into] = audio.sample_rate
            sample[into] = as_output(np.ascontiguousarray(audio.samples), self.output)
        return sample
