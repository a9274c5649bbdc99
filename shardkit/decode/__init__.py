"""Bytes to objects, by ext.

``decode="auto"`` (the default of a dataset) gives:

=============================================  ===================================================
ext (case-blind; the last suffix of several)   object
=============================================  ===================================================
jpg png webp gif tiff bmp …                    uint8 array ``[height, width, 3]`` (EXIF turned)
mp4 mkv webm mov …                             ``Video``: opens nothing until a clip is asked for
wav flac mp3 ogg m4a …                         ``Audio(samples float32 [channels, time], rate)``
txt md csv srt …                               ``str``
cls id index                                   ``int``
json; jsonl                                    the value; a list of values
npy; npz; safetensors                          array; dict of arrays by name
pt pth                                         what ``torch.load(weights_only=True)`` gives
msgpack                                        the value
…gz                                            decompressed, then by the suffix before it
anything else (also pkl)                       ``bytes``
=============================================  ===================================================

``decode=None`` leaves bytes. ``decode={"jpg": my_function, "seg.png": image_decoder(mode="L"),
"pkl": pickle.loads, "json": None}`` overrides by ext: a function of bytes, ``"auto"``, or None
for bytes; ``"*"`` stands for all others. ``register_decoder("heic", decoder=fn)`` adds one for
every dataset.

For the dataset: ``decoders = Decoders(decode, raw=pipeline.decodes)`` once; then for each member
``decoder = decoders.for_ext(ext)`` is None (leave bytes) or a callable of bytes; where
``decoders.takes_source(ext)`` hand it (or, if it is None, the transforms) a ``Source`` instead:
``BytesSource``, ``FileSource(path, start, size)`` or ``StoreSource(store, url, size, start)``.
A decoder raises ``DecodeError`` naming the ext; who knows the sample adds dataset, shard and key.
"""

from shardkit.decode.audio import Audio, decode_audio
from shardkit.decode.image import decode_image, image_decoder
from shardkit.decode.registry import (
    AUDIO_EXTS,
    IMAGE_EXTS,
    VIDEO_EXTS,
    Decoders,
    decode_member,
    register_decoder,
)
from shardkit.decode.source import BytesSource, FileSource, Source, StoreSource
from shardkit.decode.video import Video, open_video

__all__ = [
    "AUDIO_EXTS",
    "IMAGE_EXTS",
    "VIDEO_EXTS",
    "Audio",
    "BytesSource",
    "Decoders",
    "FileSource",
    "Source",
    "StoreSource",
    "Video",
    "decode_audio",
    "decode_image",
    "decode_member",
    "image_decoder",
    "open_video",
    "register_decoder",
]
