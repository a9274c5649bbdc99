"""The standard pipelines: lists of presets, to be used as they are or cut apart.

Each returns a plain list, so ``[*image_pipeline("jpg", (256, 256)), mine]`` adds to one and
``image_pipeline(...)[:2]`` takes a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardkit.transforms.audio import (
    AudioToTensor,
    CheckAudible,
    DecodeAudio,
    Mono,
    NormalizeLoudness,
    PadOrTrim,
    Resample,
)
from shardkit.transforms.fields import DropFields
from shardkit.transforms.image import AsVideo, DecodeImage, Flip, Resize, ToTensor
from shardkit.transforms.latents import SampleLatent, SkipLatentFrames
from shardkit.transforms.metadata import ClassToId, OneHot, ParseJson, PickField
from shardkit.transforms.onfields import Names, names_of
from shardkit.transforms.pipeline import Transform
from shardkit.transforms.video import DecodeClip, Squarify

__all__ = [
    "audio_pipeline",
    "audio_video_pipeline",
    "image_latent_pipeline",
    "image_pipeline",
    "metadata_pipeline",
    "video_latent_pipeline",
    "video_pipeline",
]

Size = tuple[int, int]
_STILL_FPS = 960.0  # tells a model that a one-frame video stands still


def image_pipeline(
    fields: Names,
    size: Size | Mapping[Size, float],
    *,
    into: Names = "image",
    crop: str = "center",
    zoom: float = 1.0,
    flip: float = 0.0,
    normalize: str | None = None,
    as_video: bool = False,
    output: str = "auto",
    **resize_options: Any,
) -> list[Transform]:
    """Images → uint8 (or float32) ``[3, height, width]``; one size and crop for all fields.

    Args:
        fields: members with images, such as ``"jpg"``, or several that belong together.
        size: (height, width), or sizes with their probabilities.
        into: names to write to, as many as ``fields``; the members are dropped.
        crop: ``"center"`` or ``"random"``.
        zoom: share of the largest crop; 224 / 256 after a resize of the shorter side to 256.
        flip: probability of mirroring, all fields together.
        normalize: None: uint8; ``"unit"``: [0, 1]; ``"signed"``: [-1, 1].
        as_video: give ``[1, 3, height, width]``, and ``fps`` of 960.
        output: ``"torch"``, ``"numpy"``, ``"auto"``.
        resize_options: further ones of ``Resize``: ``aspect``, ``swap_upright``, ``mode``.
    """
    resize = Resize(into, size, crop=crop, zoom=zoom, **resize_options)
    steps: list[Transform] = [DecodeImage(fields, min_size=resize.min_size, into=into), resize]
    if flip:
        steps.append(Flip(into, flip))
    steps.append(ToTensor(into, normalize=normalize, output=output))
    if as_video:
        steps.append(AsVideo(into, fps=_STILL_FPS, fps_into="fps"))
    return steps + _dropped(fields, into)


def video_pipeline(
    fields: Names,
    num_frames: int | None,
    size: Size | Mapping[Size, float],
    *,
    into: Names = "video",
    fps: float | None = None,
    start: str | float = "random",
    crop: str = "center",
    flip: float = 0.0,
    normalize: str | None = None,
    true_size_from: tuple[str, str] | None = None,
    output: str = "auto",
    clip_options: Mapping[str, Any] | None = None,
    **resize_options: Any,
) -> list[Transform]:
    """Videos → uint8 (or float32) ``[t, 3, height, width]``: the same moments and crop for all.

    Args:
        fields: members with videos, such as ``"mp4"``.
        num_frames: ``t``; None: all.
        size: (height, width), or sizes with their probabilities.
        into: names to write to, as many as ``fields``; the members are dropped.
        fps: of the clip; None: the video's own.
        start: ``"random"``, ``"start"``, ``"middle"`` or seconds.
        crop: ``"center"`` or ``"random"``, the same for all frames.
        flip: probability of mirroring.
        normalize: None: uint8; ``"unit"``: [0, 1]; ``"signed"``: [-1, 1].
        true_size_from: fields with the true (height, width) of stretched videos.
        output: ``"torch"``, ``"numpy"``, ``"auto"``.
        clip_options: further ones of ``DecodeClip``: ``interval``, ``speed``, ``seek`` …
        resize_options: further ones of ``Resize``.

    Also writes ``fps``, ``duration`` and ``timestamps`` of the clip.
    """
    resize = Resize(into, size, crop=crop, **resize_options)
    options = {
        "min_size": None if true_size_from else resize.min_size,
        "timestamps_into": "timestamps",
        "duration_into": "duration",
        "fps_into": "fps",
    } | dict(clip_options or {})
    steps: list[Transform] = [
        DecodeClip(fields, num_frames, fps=fps, start=start, into=into, **options)
    ]
    if true_size_from:
        steps.append(Squarify(into, size_from=true_size_from))
    steps.append(resize)
    if flip:
        steps.append(Flip(into, flip))
    steps.append(ToTensor(into, normalize=normalize, output=output))
    return steps + _dropped(fields, into)


def audio_pipeline(
    field: str,
    duration: float | None,
    *,
    into: str = "audio",
    sample_rate: int = 44_100,
    start: str | float = "random",
    mono: bool = False,
    loudness: float | None = -24.0,
    output: str = "auto",
    **decode_options: Any,
) -> list[Transform]:
    """Sound → float32 ``[channels, duration * sample_rate]``.

    Args:
        field: member with sound (or a video), such as ``"flac"``.
        duration: seconds; shorter sounds are padded with silence. None: all of it.
        into: name to write to; the member is dropped.
        sample_rate: to resample to, in Hz.
        start: as for ``DecodeAudio``.
        mono: mix to one channel.
        loudness: to bring it to, in LUFS; None: left as it is.
        output: ``"torch"``, ``"numpy"``, ``"auto"``.
        decode_options: further ones of ``DecodeAudio``.

    Also writes ``sample_rate``.
    """
    options = {"allow_shorter": True} | decode_options
    steps: list[Transform] = [DecodeAudio(field, duration, start=start, into=into, **options)]
    steps += _shaped(into, sample_rate, mono=mono, loudness=loudness)
    if duration is not None:
        steps.append(PadOrTrim(into, duration=duration))
    steps.append(AudioToTensor(into, rate_into="sample_rate", output=output))
    return steps + _dropped(field, into)


def audio_video_pipeline(
    field: str,
    num_frames: int,
    size: Size | Mapping[Size, float],
    *,
    video_into: str = "video",
    audio_into: str = "audio",
    fps: float | None = None,
    start: str | float = "random",
    sample_rate: int = 16_000,
    num_samples: int | None = None,
    mono: bool = True,
    loudness: float | None = -24.0,
    silence_below: float | None = None,
    normalize: str | None = None,
    output: str = "auto",
    clip_options: Mapping[str, Any] | None = None,
    **resize_options: Any,
) -> list[Transform]:
    """A video with sound → ``[t, 3, height, width]`` and float32 ``[channels, time]``, in step.

    Args:
        field: member with the video, such as ``"mp4"``; it is dropped.
        num_frames: ``t``.
        size: (height, width), or sizes with their probabilities.
        video_into: name for the frames.
        audio_into: name for the sound.
        fps: of the clip; None: the video's own.
        start: ``"random"``, ``"start"``, ``"middle"`` or seconds.
        sample_rate: to resample to, in Hz.
        num_samples: to pad or trim to; None: as long as the clip.
        mono: mix to one channel.
        loudness: to bring it to, in LUFS; None: left as it is.
        silence_below: samples whose sound peaks below it are an error.
        normalize: of the frames: None, ``"unit"`` or ``"signed"``.
        output: ``"torch"``, ``"numpy"``, ``"auto"``.
        clip_options: further ones of ``DecodeClip``.
        resize_options: further ones of ``Resize``.

    Also writes ``fps``, ``duration``, ``timestamps`` and ``sample_rate``.
    """
    options = {"audio_into": audio_into} | dict(clip_options or {})
    steps = video_pipeline(
        field,
        num_frames,
        size,
        into=video_into,
        fps=fps,
        start=start,
        normalize=normalize,
        output=output,
        clip_options=options,
        **resize_options,
    )
    if silence_below is not None:
        steps.append(CheckAudible(audio_into, silence_below))
    steps += _shaped(audio_into, sample_rate, mono=mono, loudness=loudness)
    length = {"duration": "duration"} if num_samples is None else {"num_samples": num_samples}
    steps.append(PadOrTrim(audio_into, **length))
    steps.append(AudioToTensor(audio_into, rate_into="sample_rate", output=output))
    return steps


def image_latent_pipeline(
    field: str, *, into: str = "image_latent", as_video: bool = False, **options: Any
) -> list[Transform]:
    """A dict of mean and log-variance ``[c, h, w]`` → one draw, float32 ``[c, h, w]``.

    Args:
        field: member such as ``"npz"`` or ``"safetensors"``; it is dropped.
        into: name to write to.
        as_video: give ``[1, c, h, w]``, and ``fps`` of 960.
        options: those of ``SampleLatent``.
    """
    steps: list[Transform] = [SampleLatent(field, into=into, **options)]
    if as_video:
        steps.append(AsVideo(into, fps=_STILL_FPS, fps_into="fps"))
    return steps + _dropped(field, into)


def video_latent_pipeline(
    field: str,
    *,
    into: str = "video_latent",
    fps: float | None = None,
    source_fps: float | str = "fps",
    offset: str = "random",
    **options: Any,
) -> list[Transform]:
    """A dict of mean and log-variance ``[c, t, h, w]`` → one draw, float32, at a lower rate.

    Args:
        field: member such as ``"npz"`` or ``"safetensors"``; it is dropped.
        into: name to write to.
        fps: to come to by leaving out frames; None: all frames.
        source_fps: a number, or the field that holds it.
        offset: ``"random"`` or ``"start"``.
        options: those of ``SampleLatent``.
    """
    steps: list[Transform] = [SampleLatent(field, into=into, **options)]
    if fps is not None:
        steps.append(SkipLatentFrames(into, fps, source_fps, offset=offset, fps_into="fps"))
    return steps + _dropped(field, into)


def metadata_pipeline(
    field: str = "json",
    *,
    label: str | None = None,
    label_into: str = "class_label",
    classes: Mapping[str, int] | Callable[[str], int] | None = None,
    one_hot: int | None = None,
    keep: bool = True,
) -> list[Transform]:
    """Metadata → a dict, and a class label out of it.

    Args:
        field: member with JSON.
        label: entry that holds the class (``"a.b"`` leads deeper); None: no label.
        label_into: name to write the label to.
        classes: numbers of class names; None: the label is a number already.
        one_hot: number of classes, to give float32 ``[one_hot]``; None: the number.
        keep: keep the dict.
    """
    steps: list[Transform] = [ParseJson(field)]
    if label is not None:
        steps.append(PickField(field, label, into=label_into))
        if classes is not None:
            steps.append(ClassToId(label_into, classes))
        if one_hot is not None:
            steps.append(OneHot(label_into, one_hot))
    return steps if keep else [*steps, DropFields(field)]


def _shaped(field: str, sample_rate: int, *, mono: bool, loudness: float | None) -> list[Transform]:
    steps: list[Transform] = [Mono(field)] if mono else []
    steps.append(Resample(field, sample_rate))
    if loudness is not None:
        steps.append(NormalizeLoudness(field, loudness))
    return steps


def _dropped(fields: Names, into: Names) -> list[Transform]:
    rest = tuple(name for name in names_of(fields) if name not in names_of(into))
    return [DropFields(rest)] if rest else []
