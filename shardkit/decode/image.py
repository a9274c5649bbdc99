"""Images to uint8 arrays: JPEG by the fastest decoder installed, everything else by Pillow."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode import memory
from shardkit.decode.extras import has_module, need
from shardkit.decode.jpeg import JpegHeader, read_jpeg_header
from shardkit.decode.source import Data
from shardkit.errors import ConfigError, DecodeError

__all__ = ["MAX_PIXELS", "decode_image", "image_decoder"]

Pixels = npt.NDArray[Any]

# Where Pillow itself refuses: a quarter of a gibibyte as RGB. Larger ones are mostly bombs.
MAX_PIXELS = 178_956_970

_MODES = ("RGB", "RGBA", "L", "unchanged")
_CHANNELS = {"RGB": 3, "RGBA": 4, "L": 1}

# What to do with an array [h, w, c] for each EXIF orientation but 1 (Exif 2.32, tag 0x0112).
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def decode_image(
    data: Data,
    *,
    mode: str = "RGB",
    min_size: tuple[int, int] | None = None,
    out: Pixels | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode one image (the first frame of an animated one), upright as its EXIF tag says.

    Args:
        data: the file's bytes.
        mode: ``"RGB"`` drops alpha, resolves palettes and brings 16-bit greys to 8 bits;
            ``"RGBA"`` and ``"L"`` likewise; ``"unchanged"`` gives what the file has (palette
            indices, uint16, alpha).
        min_size: (height, width) that is enough. A JPEG of at least twice that is decoded at the
            smallest of its reduced scales that still has it: for a 12-megapixel photo to 256
            pixels, half the time. Only sides of ``min_size`` or more come back. In what is to be
            scaled down next, colour is upsampled by the faster method, which then shows by a third
            of a level on average.
        out: memory to decode into: a flat, contiguous uint8 array that is large enough (its head
            is used), or one of exactly the image's shape. Default: kept memory, as good as new.
        max_pixels: larger images are refused before anything is allocated.

    Returns:
        uint8 ``[height, width, channels]``, with 3 (RGB), 4 (RGBA) or 1 (L) channels; for
        ``"unchanged"`` what numpy makes of it: ``[height, width]`` or ``[height, width, c]``.

    Raises:
        DecodeError: not an image, cut short, or larger than ``max_pixels``.
        MissingDependencyError: Pillow is needed and not installed.
    """
    if mode not in _MODES:
        raise ConfigError(f"mode={mode!r}: give one of {', '.join(_MODES)}")
    header = read_jpeg_header(data)
    if header is not None and mode in {"RGB", "L"} and has_module("simplejpeg"):
        _check_pixels(header.height, header.width, max_pixels)
        if header.num_components in {1, 3} and header.bits == 8:
            pixels = _decode_jpeg(data, header, mode, min_size, out)
            if pixels is not None:
                return pixels
    return _decode_with_pillow(data, mode, min_size, out, max_pixels=max_pixels)


def image_decoder(
    *,
    mode: str = "RGB",
    min_size: tuple[int, int] | None = None,
    layout: str = "HWC",
    output: str = "numpy",
    max_pixels: int = MAX_PIXELS,
) -> Callable[[Data], Any]:
    """Make a decoder with options, to be named in a dataset's ``decode={"jpg": …}``.

    Args:
        mode: see ``decode_image``; so are ``min_size`` and ``max_pixels``.
        min_size: (height, width) that is enough.
        layout: ``"HWC"`` or ``"CHW"``.
        output: ``"numpy"`` or ``"torch"`` (tensors over the same memory).
        max_pixels: larger images are refused.
    """
    for name, value, known in (
        ("mode", mode, _MODES),
        ("layout", layout, ("HWC", "CHW")),
        ("output", output, ("numpy", "torch")),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r}: give one of {', '.join(known)}")
    return functools.partial(
        _decode_as,
        layout=layout,
        output=output,
        options=_Options(mode, min_size, max_pixels),
    )


@dataclass(frozen=True, slots=True)
class _Options:
    mode: str
    min_size: tuple[int, int] | None
    max_pixels: int


def _decode_as(data: Data, *, layout: str, output: str, options: _Options) -> Any:
    pixels = decode_image(
        data, mode=options.mode, min_size=options.min_size, max_pixels=options.max_pixels
    )
    if layout == "CHW" and pixels.ndim == 3:
        pixels = memory.copy(pixels.transpose(2, 0, 1))
    if output == "torch":
        return need("torch", "images as tensors").from_numpy(pixels)
    return pixels


def _decode_jpeg(
    data: Data,
    header: JpegHeader,
    mode: str,
    min_size: tuple[int, int] | None,
    out: Pixels | None,
) -> Pixels | None:
    """Decode by libjpeg-turbo; None where Pillow is to judge (it forgives small faults)."""
    simplejpeg = need("simplejpeg", "decoding .jpg")
    is_turned = header.orientation != 1
    height, width = min_size or (0, 0)
    if header.orientation >= 5:
        height, width = width, height
    will_shrink = bool(min_size) and height < header.height and width < header.width
    num_bytes = header.height * header.width * _CHANNELS[mode]
    given = out if out is not None and not is_turned else None
    buffer = memory.empty((num_bytes,)) if given is None else _flat(given)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if mode == "RGB" else "GRAY",
            fastupsample=will_shrink,
            min_height=height if height * 2 <= header.height else 0,
            min_width=width if width * 2 <= header.width else 0,
            min_factor=2 if min_size and _halves(header, height, width) else 1,
            buffer=buffer,
        )
    except ValueError as error:
        if "too small" in str(error):
            raise _wrong_buffer(out, header.height, header.width, _CHANNELS[mode]) from error
        return None
    pixels = buffer[: pixels.size].reshape(pixels.shape)  # the same memory, owned by the pool
    if given is not None:
        return _fitted(given, pixels)
    if is_turned:
        return _into(_TURNS[header.orientation](pixels), out)
    return pixels


def _halves(header: JpegHeader, height: int, width: int) -> bool:
    return height * 2 <= header.height and width * 2 <= header.width


def _decode_with_pillow(
    data: Data,
    mode: str,
    min_size: tuple[int, int] | None,
    out: Pixels | None,
    *,
    max_pixels: int,
) -> Pixels:
    pil = need("PIL.Image", "decoding images")
    ops = need("PIL.ImageOps", "decoding images")
    try:
        with pil.open(io.BytesIO(data)) as image:
            _check_pixels(image.height, image.width, max_pixels)
            if min_size and mode == "RGB" and image.mode == "RGB":
                longest = max(min_size)  # on its side or not: enough both ways
                image.draft("RGB", (longest, longest))
            image.load()
            ops.exif_transpose(image, in_place=True)
            return _into(_channels_last(_converted(image, mode)), out, flat=mode == "unchanged")
    except pil.DecompressionBombError as error:
        raise DecodeError(f"it is larger than Pillow allows: {error}") from error
    except pil.UnidentifiedImageError as error:
        start = bytes(data[:12])
        raise DecodeError(f"no image format known to Pillow (it starts with {start!r})") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise DecodeError(str(error) or type(error).__name__) from error


def _converted(image: Any, mode: str) -> Pixels:
    """Bring a loaded Pillow image to ``mode``, as an array."""
    if mode == "unchanged":
        return np.asarray(image)
    if image.mode.startswith("I"):
        return _from_wide_grey(np.asarray(image), mode)
    if image.mode == "F":
        raise DecodeError(
            "its pixels are floats, which have no scale; "
            "decode it with image_decoder(mode='unchanged')"
        )
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _from_wide_grey(grey: Pixels, mode: str) -> Pixels:
    """Bring 16-bit greys to 8 bits (Pillow would cut them off at 255)."""
    if grey.size and (grey.min() < 0 or grey.max() > 65_535):
        raise DecodeError(
            "its pixels need more than 16 bits; decode it with image_decoder(mode='unchanged')"
        )
    small = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    planes = [small] * min(_CHANNELS[mode], 3)
    if mode == "RGBA":
        planes.append(np.full_like(small, 255))
    return np.stack(planes, axis=-1)


def _channels_last(pixels: Pixels) -> Pixels:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DecodeError(
            f"it has {width} x {height} = {width * height} pixels, more than "
            f"max_pixels={max_pixels}; if it should, decode it with image_decoder(max_pixels=...)"
        )


def _into(pixels: Pixels, out: Pixels | None, *, flat: bool = False) -> Pixels:
    """Copy pixels to ``out``, or to kept memory; ``flat`` drops a single channel's axis."""
    if out is None:
        copy = memory.copy(pixels)
        return copy[..., 0] if flat and copy.shape[-1] == 1 else copy
    if out.dtype != pixels.dtype or _flat(out).size < pixels.size:
        raise _wrong_buffer(out, *pixels.shape)
    head = _flat(out)[: pixels.size].reshape(pixels.shape)
    head[...] = pixels
    return _fitted(out, head)


def _fitted(out: Pixels, pixels: Pixels) -> Pixels:
    """Check that ``out`` is flat or has the shape of the pixels that now lie in it."""
    if out.ndim != 1 and out.shape != pixels.shape:
        raise _wrong_buffer(out, *pixels.shape)
    return pixels if out.ndim == 1 else out


def _flat(out: Pixels) -> Pixels:
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ConfigError("out= must be a contiguous and writable array")
    return out.reshape(-1)


def _wrong_buffer(out: Pixels | None, *shape: int) -> ConfigError:
    has = "nothing" if out is None else f"{out.dtype} {out.shape}"
    return ConfigError(f"out= is {has}, but the image has the shape {shape}, uint8")
