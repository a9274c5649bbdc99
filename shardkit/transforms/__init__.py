"""Objects to training samples: how transforms are called, and the presets people expect.

A transform is any callable ``transform(sample)`` or ``transform(sample, rng)``:

- ``sample`` is a dict that it may change in place or leave alone;
- ``rng`` is passed if a parameter has that name: a ``numpy.random.Generator`` made from the
  sample's own seed and shared, in order, by all transforms of that sample;
- it returns a dict (one sample), a list, tuple or generator of dicts (several, or none), or None
  (the sample is dropped).

``transforms=[...]`` of a dataset takes such callables, and lists of them nested at will, so a
pipeline is a list: ``transforms=[image_pipeline("jpg", (256, 256)), my_function]``.

For the dataset: ``pipeline = Pipeline(transforms)`` once; ``pipeline(sample, seed)`` gives the
list of samples that come out, where ``seed`` is an integer of at most 64 bits; ``pipeline.decodes``
names the members that the leading presets decode themselves (``Decoders(decode, raw=...)``).
"""

from shardkit.transforms.audio import (
    AudioToTensor,
    CheckAudible,
    DecodeAudio,
    Mono,
    NormalizeLoudness,
    PadOrTrim,
    Resample,
)
from shardkit.transforms.cached import CacheTransform
from shardkit.transforms.fields import (
    Cast,
    CheckFields,
    DropFields,
    FirstNonEmpty,
    Gather,
    KeepFields,
    LoadBytes,
    Rename,
    SetFields,
)
from shardkit.transforms.image import (
    AsVideo,
    DecodeImage,
    Flip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from shardkit.transforms.latents import SampleLatent, SkipLatentFrames
from shardkit.transforms.loudness import loudness
from shardkit.transforms.metadata import ClassToId, MergeFields, OneHot, ParseJson, PickField
from shardkit.transforms.pipeline import Pipeline, Sample, Transform
from shardkit.transforms.pipelines import (
    audio_pipeline,
    audio_video_pipeline,
    image_latent_pipeline,
    image_pipeline,
    metadata_pipeline,
    video_latent_pipeline,
    video_pipeline,
)
from shardkit.transforms.text import ChooseCaption, PadTokens
from shardkit.transforms.video import DecodeClip, Squarify

__all__ = [
    "AsVideo",
    "AudioToTensor",
    "CacheTransform",
    "Cast",
    "CheckAudible",
    "CheckFields",
    "ChooseCaption",
    "ClassToId",
    "DecodeAudio",
    "DecodeClip",
    "DecodeImage",
    "DropFields",
    "FirstNonEmpty",
    "Flip",
    "Gather",
    "KeepFields",
    "LoadBytes",
    "MergeFields",
    "Mono",
    "NormalizeLoudness",
    "OneHot",
    "PadOrTrim",
    "PadTokens",
    "ParseJson",
    "PickField",
    "Pipeline",
    "RandomResizedCrop",
    "Rename",
    "Resample",
    "Resize",
    "Sample",
    "SampleLatent",
    "SetFields",
    "SkipLatentFrames",
    "Squarify",
    "ToTensor",
    "Transform",
    "audio_pipeline",
    "audio_video_pipeline",
    "image_latent_pipeline",
    "image_pipeline",
    "loudness",
    "metadata_pipeline",
    "video_latent_pipeline",
    "video_pipeline",
]
