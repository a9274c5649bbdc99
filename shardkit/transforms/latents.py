"""Presets for latents of autoencoders: arrays or tensors that were computed beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shardkit.errors import ConfigError
from shardkit.transforms.image import as_output
from shardkit.transforms.onfields import OnFields, number_of, value_of
from shardkit.transforms.pipeline import Sample

__all__ = ["SampleLatent", "SkipLatentFrames", "as_floats"]


@dataclass(frozen=True)
class SampleLatent(OnFields):
    """A dict of mean and log-variance → one draw, float32, of the mean's shape.

    ``mean + exp(logvar / 2) * e`` with e standard normal from the sample's generator (Kingma and
    Welling, Auto-Encoding Variational Bayes, 2013). An image's latent is ``[c, h, w]``, a video's
    ``[c, t, h, w]``.

    Attributes:
        mean: key of the mean in the dict. Where the field is not a dict, ``mean`` and ``logvar``
            are fields of the sample, and the field is only written.
        logvar: key of the log-variance; None: there is none, the mean is taken as it is.
        scale: the draw is multiplied by it (0.18215 for Stable Diffusion's latents).
        output: ``"torch"``, ``"numpy"``, or ``"auto"``: torch where installed.
    """

    mean: str = "mean"
    logvar: str | None = "logvar"
    scale: float = 1.0
    output: str = "auto"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw each field's latent."""
        for value, into in self.each(sample):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"SampleLatent: the field is a {type(value).__name__}, not a dict with "
                    f"{self.mean!r}; npz and safetensors members are dicts"
                )
            latent = as_floats(value_of(value, self.mean))
            if self.logvar is not None:
                deviation = np.exp(0.5 * as_floats(value_of(value, self.logvar)))
                latent = latent + deviation * rng.standard_normal(latent.shape, np.float32)
            sample[into] = as_output(
                np.ascontiguousarray(latent * np.float32(self.scale)), self.output
            )
        return sample


@dataclass(frozen=True)
class SkipLatentFrames(OnFields):
    """``[c, t, h, w]`` → ``[c, ceil((t - offset) / step), h, w]``: a lower frame rate.

    Attributes:
        fps: the rate to come to; ``step`` is the source's rate divided by it, which must be whole.
        source_fps: a number, or the name of a field that holds one.
        offset: ``"start"`` or ``"random"``: the first frame, from 0 to ``step - 1``; all fields
            get the same.
        axis: of time.
        fps_into: field for the new rate.
    """

    fps: float
    source_fps: float | str
    offset: str = "start"
    axis: int = 1
    fps_into: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offset not in {"start", "random"}:
            raise ConfigError(f'offset={self.offset!r}: give "start" or "random"')

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Take every ``step``-th frame of each field."""
        ratio = number_of(sample, self.source_fps) / self.fps
        step = max(1, round(ratio))
        if abs(ratio - step) > 0.02 * step:
            raise ConfigError(
                f"{number_of(sample, self.source_fps)} fps is not a multiple of fps={self.fps}: "
                f"latents have no frames in between; choose a divisor"
            )
        first = int(rng.integers(step)) if self.offset == "random" else 0
        for latent, into in self.each(sample):
            frames = [slice(None)] * latent.ndim
            frames[self.axis] = slice(min(first, max(0, latent.shape[self.axis] - 1)), None, step)
            sample[into] = latent[tuple(frames)]
        if self.fps_into is not None:
            sample[self.fps_into] = self.fps
        return sample


def as_floats(value: Any) -> Any:
    """Return an array or tensor of any float type as a float32 array."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32)
    return value.detach().cpu().float().numpy()
