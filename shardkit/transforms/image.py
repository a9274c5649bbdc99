"""Presets for images, most of them for videos too: arrays ``[..., height, width, c]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardkit.decode.extras import has_module, need
from shardkit.decode.image import decode_image
from shardkit.decode.source import read_all
from shardkit.errors import ConfigError
from shardkit.transforms.onfields import OnFields, drawn_from, names_of
from shardkit.transforms.pipeline import Sample
from shardkit.transforms.resize import Box, aspect_box, resize

__all__ = ["AsVideo", "DecodeImage", "Flip", "RandomResizedCrop", "Resize", "ToTensor"]

Size = tuple[int, int]


@dataclass(frozen=True)
class DecodeImage(OnFields):
    """Bytes, a path or a source → uint8 ``[height, width, c]``; arrays pass as they are.

    Attributes:
        min_size: (height, width) that is enough, see ``decode_image``: large photos are decoded
            at a reduced scale.
        mode: ``"RGB"`` (c = 3), ``"RGBA"``, ``"L"`` (c = 1) or ``"unchanged"``.
    """

    min_size: Size | None = None
    mode: str = "RGB"

    @property
    def decodes(self) -> tuple[str, ...]:
        """The fields that a dataset may leave undecoded."""
        return names_of(self.fields)

    def __call__(self, sample: Sample) -> Sample:
        """Decode each field."""
        for value, into in self.each(sample):
            if isinstance(value, np.ndarray):
                sample[into] = value
            else:
                sample[into] = decode_image(read_all(value), mode=self.mode, min_size=self.min_size)
        return sample


@dataclass(frozen=True)
class Resize(OnFields):
    """uint8 ``[..., h, w, c]`` → ``[..., height, width, c]``; the same crop for every field.

    Attributes:
        size: (height, width); or a mapping from sizes to probabilities, one of which is drawn.
        aspect: ``"crop"`` cuts to the aspect of ``size`` first, ``"pad"`` adds black bars,
            ``"stretch"`` lets the aspect change.
        crop: where to cut: ``"center"`` or ``"random"``.
        zoom: share of the largest crop to take: 0.875 is the middle 224 of 256.
        swap_upright: an upright image gets (width, height) in place of (height, width).
        mode: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; with antialiasing.
    """

    size: Size | Mapping[Size, float]
    aspect: str = "crop"
    crop: str = "center"
    zoom: float = 1.0
    swap_upright: bool = False
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (
            ("aspect", self.aspect, ("crop", "pad", "stretch")),
            ("crop", self.crop, ("center", "random")),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r}: give one of {', '.join(known)}")
        if not 0 < self.zoom <= 1:
            raise ConfigError(f"zoom={self.zoom}: give more than 0 and at most 1")

    @property
    def is_random(self) -> bool:
        """Does it draw anything?"""
        return self.crop == "random" or isinstance(self.size, Mapping)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Draw size and place once, and resize each field; ``rng`` where it ``is_random``."""
        size = self._drawn_size(rng)
        place = (0.5, 0.5)
        if self.crop == "random":
            rng = drawn_from(rng, self)
            place = (float(rng.random()), float(rng.random()))
        for pixels, into in self.each(sample):
            height, width = pixels.shape[-3:-1]
            target = size
            if self.swap_upright and height > width:
                target = (max(size), min(size))
            if self.aspect == "crop":
                box = aspect_box(height, width, target, zoom=self.zoom, place=place)
                sample[into] = resize(pixels, target, box, self.mode)
            elif self.aspect == "pad":
                sample[into] = _padded(pixels, target, self.mode)
            else:
                sample[into] = resize(pixels, target, mode=self.mode)
        return sample

    def _drawn_size(self, rng: np.random.Generator | None) -> Size:
        if not isinstance(self.size, Mapping):
            return self.size
        rng = drawn_from(rng, self)
        shares = np.array(list(self.size.values()), np.float64)
        return list(self.size)[int(rng.choice(len(shares), p=shares / shares.sum()))]

    @property
    def min_size(self) -> Size:
        """The size that a decoder must give at least, for any draw."""
        sizes = list(self.size) if isinstance(self.size, Mapping) else [self.size]
        height = max(size[0] for size in sizes) / self.zoom
        width = max(size[1] for size in sizes) / self.zoom
        if self.swap_upright:
            height = width = max(height, width)
        return int(np.ceil(height)), int(np.ceil(width))


@dataclass(frozen=True)
class RandomResizedCrop(OnFields):
    """uint8 ``[..., h, w, c]`` → ``[..., height, width, c]``: a crop of random area and aspect.

    The augmentation of ImageNet training (Szegedy et al., Going deeper with convolutions, 2014):
    area and aspect are drawn up to ten times until they fit, then the centre is taken.

    Attributes:
        size: (height, width).
        area: smallest and largest share of the image.
        ratio: smallest and largest width / height of the crop.
        mode: as for ``Resize``.
    """

    size: Size
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mode: str = "bilinear"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw one crop, in shares of the image, and cut it from each field."""
        draws = rng.random((10, 4))
        for pixels, into in self.each(sample):
            height, width = pixels.shape[-3:-1]
            box = self._box(height, width, draws)
            sample[into] = resize(pixels, self.size, box, self.mode)
        return sample

    def _box(self, height: int, width: int, draws: Any) -> Box:
        low, high = np.log(self.ratio)
        for area, ratio, down, right in draws:
            pixels = height * width * (self.area[0] + area * (self.area[1] - self.area[0]))
            aspect = np.exp(low + ratio * (high - low))
            box_height, box_width = round(np.sqrt(pixels / aspect)), round(np.sqrt(pixels * aspect))
            if 0 < box_height <= height and 0 < box_width <= width:
                top, left = round(down * (height - box_height)), round(right * (width - box_width))
                return Box(top, left, box_height, box_width)
        return aspect_box(height, width, self.size)


@dataclass(frozen=True)
class Flip(OnFields):
    """Mirror ``[..., h, w, c]`` left to right, all fields or none, with a probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"probability={self.probability} must be from 0 to 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw once and mirror."""
        is_flipped = rng.random() < self.probability
        for pixels, into in self.each(sample):
            sample[into] = pixels[..., ::-1, :] if is_flipped else pixels
        return sample


@dataclass(frozen=True)
class ToTensor(OnFields):
    """uint8 ``[..., h, w, c]`` → ``[..., c, h, w]``, uint8 or float32.

    Attributes:
        normalize: None keeps uint8; ``"unit"`` gives float32 in [0, 1], ``"signed"`` in [-1, 1];
            (means, deviations) of each channel, on the scale of [0, 1], gives (x - mean) / dev.
        output: ``"torch"`` tensors, ``"numpy"`` arrays, or ``"auto"``: torch where installed.
    """

    normalize: str | tuple[tuple[float, ...], tuple[float, ...]] | None = None
    output: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.normalize, str) and self.normalize not in {"unit", "signed"}:
            raise ConfigError(f'normalize={self.normalize!r}: give "unit", "signed" or two tuples')
        if self.output not in {"auto", "numpy", "torch"}:
            raise ConfigError(f'output={self.output!r}: give "auto", "numpy" or "torch"')

    def __call__(self, sample: Sample) -> Sample:
        """Convert each field."""
        for pixels, into in self.each(sample):
            planes = pixels.swapaxes(-1, -2).swapaxes(-2, -3)
            if self.normalize is not None:
                planes = self._scaled(planes)
            sample[into] = as_output(np.ascontiguousarray(planes), self.output)
        return sample

    def _scaled(self, planes: Any) -> Any:
        parts = self.normalize
        if not isinstance(parts, tuple):
            parts = ((0.5,), (0.5,)) if parts == "signed" else ((0.0,), (1.0,))
        mean, deviation = (np.array(part, np.float32)[:, None, None] for part in parts)
        scaled = np.multiply(planes, np.float32(1) / (255 * deviation), dtype=np.float32)
        scaled -= mean / deviation
        return scaled


@dataclass(frozen=True)
class AsVideo(OnFields):
    """An image ``[a, b, c]`` → a video of one frame ``[1, a, b, c]``.

    Attributes:
        fps: written to the field ``fps_into``, so that images and videos make equal samples.
        fps_into: None: not written.
    """

    fps: float = 0.0
    fps_into: str | None = None

    def __call__(self, sample: Sample) -> Sample:
        """Add the axis."""
        for image, into in self.each(sample):
            sample[into] = image[None]
        if self.fps_into is not None:
            sample[self.fps_into] = self.fps
        return sample


def as_output(array: Any, output: str) -> Any:
    """Return a numpy array as ``"torch"``, ``"numpy"``, or ``"auto"``: torch where installed."""
    if output == "torch" or (output == "auto" and has_module("torch")):
        return need("torch", "tensors").from_numpy(array)
    return array


def _padded(pixels: Any, size: Size, mode: str) -> Any:
    height, width = pixels.shape[-3:-1]
    scale = min(size[0] / height, size[1] / width)
    inner = (
        min(size[0], max(1, round(height * scale))),
        min(size[1], max(1, round(width * scale))),
    )
    out = np.zeros((*pixels.shape[:-3], *size, pixels.shape[-1]), np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out[..., top : top + inner[0], left : left + inner[1], :] = resize(pixels, inner, mode=mode)
    return out
