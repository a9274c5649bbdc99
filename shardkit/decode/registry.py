"""Which decoder serves which ext: the built-in table, the user's own, resolved once."""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from shardkit.decode.audio import decode_audio
from shardkit.decode.image import decode_image
from shardkit.decode.source import Data, Source, read_all
from shardkit.decode.tensors import (
    decode_msgpack,
    decode_npy,
    decode_npz,
    decode_pt,
    decode_safetensors,
)
from shardkit.decode.text import decode_int, decode_json, decode_jsonl, decode_text
from shardkit.decode.video import open_video
from shardkit.errors import ConfigError, DecodeError, ShardkitError

__all__ = [
    "AUDIO_EXTS",
    "IMAGE_EXTS",
    "VIDEO_EXTS",
    "DecodeOption",
    "Decoder",
    "Decoders",
    "decode_member",
    "register_decoder",
]

Decoder: TypeAlias = Callable[[Any], Any]
DecodeOption: TypeAlias = str | Mapping[str, Decoder | str | None] | None

IMAGE_EXTS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp"),
    *("ppm", "pgm", "pbm", "pnm", "avif", "jp2", "tga", "ico"),
)
VIDEO_EXTS = (
    *("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "wmv", "flv"),
    *("3gp", "3g2", "ts", "mts", "m2ts", "ogv"),
)
AUDIO_EXTS = ("wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aif", "aiff", "wma")
_TEXT_EXTS = (
    *("txt", "text", "transcript", "caption", "md", "html", "htm", "xml"),
    *("csv", "tsv", "srt", "vtt"),
)

_BUILT_IN: Mapping[str, Decoder] = MappingProxyType(
    dict.fromkeys(IMAGE_EXTS, decode_image)
    | dict.fromkeys(VIDEO_EXTS, open_video)
    | dict.fromkeys(AUDIO_EXTS, decode_audio)
    | dict.fromkeys(_TEXT_EXTS, decode_text)
    | dict.fromkeys(("cls", "cls2", "index", "inx", "id"), decode_int)
    | dict.fromkeys(("json", "jsn"), decode_json)
    | dict.fromkeys(("jsonl", "ndjson"), decode_jsonl)
    | dict.fromkeys(("msgpack", "mp"), decode_msgpack)
    | dict.fromkeys(("pt", "pth"), decode_pt)
    | {"npy": decode_npy, "npz": decode_npz, "safetensors": decode_safetensors}
)
_LAZY_EXTS = frozenset(AUDIO_EXTS + VIDEO_EXTS)
_BY_RANGES = frozenset({open_video})  # these take a Source, all others take bytes

# Changed only by register_decoder; every Decoders takes a copy when it is made.
_registered: dict[str, Decoder] = {}

_MAX_GUNZIPPED_BYTES = 1 << 30  # 1 GiB: members are samples' files; a bomb makes this of 1 MB


def register_decoder(*exts: str, decoder: Decoder) -> None:
    """Use ``decoder`` for these exts in every dataset made from now on.

    ``decoder(data: bytes) -> object`` must be a pure function of the bytes, callable from several
    threads at once and picklable (a module's function is) where worker processes are used. A
    dataset's own ``decode={...}`` goes before it, the built-in decoders come after it.
    """
    for ext in exts:
        if not callable(decoder):
            raise ConfigError(f"decoder of {ext!r} is {decoder!r}; give a function of bytes")
        _registered[_canonical(ext)] = decoder


class Decoders:
    """The decoders of one dataset: a look-up by ext, made once.

    Args:
        decode: ``None`` leaves every member as bytes. ``"auto"`` decodes what the built-in table
            (and ``register_decoder``) knows and leaves the rest as bytes. A mapping from ext to a
            function of bytes, to ``"auto"`` or to None (bytes) overrides ``"auto"`` for these
            exts; the key ``"*"`` overrides it for all exts that are not named.
        raw: names of members that the transforms decode themselves (see
            ``transforms.Pipeline.decodes``): under ``"auto"`` these stay undecoded.

    Picklable when the user's functions are; safe to use from several threads.
    """

    def __init__(self, decode: DecodeOption = "auto", *, raw: Iterable[str] = ()) -> None:
        self._table: dict[str, Decoder | None] = dict(_BUILT_IN)
        self._table |= _registered
        self._rest: Decoder | str | None = "auto"
        self._raw = frozenset(name.lower() for name in raw)
        overrides = _overrides(decode)
        if "*" in overrides:
            self._rest = overrides.pop("*")
        if self._rest != "auto":
            self._table = {}
        self._named = frozenset(overrides)
        for ext, decoder in overrides.items():
            self._table[ext] = _auto(ext) if isinstance(decoder, str) else decoder
        self._found: dict[tuple[str, str | None], _Guarded | None] = {}

    def for_ext(self, ext: str, name: str | None = None) -> Callable[[Data | Source], Any] | None:
        """Return the decoder of an ext, or None when the member stays bytes.

        ``name`` is the member's name in the sample, where that is not its ext.

        The whole ext (``seg.png``) is looked for first, then its last suffix (``png``), case-blind.
        The decoder takes ``bytes`` (or a ``memoryview``, or a ``Source`` where ``takes_source``)
        and raises nothing but shardkit's errors: ``DecodeError`` for the bytes,
        ``MissingDependencyError`` for the installation, and the store's own for ranges.
        """
        try:
            return self._found[ext, name]
        except KeyError:
            found = self._find(ext.lower(), name)
            self._found[ext, name] = found
            return found

    def takes_source(self, ext: str, name: str | None = None) -> bool:
        """Is a ``Source`` welcome in place of bytes, since not all of it may be read?

        True for built-in video, and for audio and video that a transform decodes itself.
        """
        found = self.for_ext(ext, name)
        if found is None:
            return self._is_raw(ext.lower(), name) and _last(ext.lower()) in _LAZY_EXTS
        return isinstance(found, _Guarded) and found.takes_source

    def is_named(self, name: str) -> bool:
        """Did the user give a decoder to this very name (an ext, or a column)?"""
        return name.lower() in self._named

    def _is_raw(self, ext: str, name: str | None) -> bool:
        if ext in self._named or _last(ext) in self._named:
            return False
        return ext in self._raw or (name is not None and name.lower() in self._raw)

    def _find(self, ext: str, name: str | None) -> _Guarded | None:
        if self._is_raw(ext, name):
            return None
        decoder = self._look_up(ext)
        return None if decoder is None else _Guarded(ext, decoder)

    def _look_up(self, ext: str) -> Decoder | None:
        for name in (ext, _last(ext)):
            if name in self._table:
                return self._table[name]
        if self._rest == "auto":
            inner, _, last = ext.rpartition(".")
            return _Gunzip(self._look_up(inner)) if last == "gz" and inner else None
        return None if isinstance(self._rest, str) else self._rest

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_found": {}}


def decode_member(ext: str, data: Data | Source, decode: DecodeOption = "auto") -> Any:
    """Decode one member by its ext, as a dataset with this ``decode=`` would.

    >>> decode_member("json", b'{"a": 1}')
    {'a': 1}
    >>> decode_member("unknown", b"as it is")
    b'as it is'
    """
    decoder = Decoders(decode).for_ext(ext)
    return bytes(read_all(data)) if decoder is None else decoder(data)


class _Guarded:
    """A decoder that takes any form of data and raises only shardkit's errors."""

    def __init__(self, ext: str, decoder: Decoder) -> None:
        self.ext = ext
        self.decoder = decoder
        self.takes_source = decoder in _BY_RANGES
        # User functions get real bytes; the built-in ones take a memoryview without a copy.
        self._plain = decoder not in _BUILT_IN.values()

    def __call__(self, data: Data | Source) -> Any:
        try:
            if not self.takes_source:
                data = read_all(data)
                if self._plain and not isinstance(data, bytes):
                    data = bytes(data)
            return self.decoder(data)
        except (ShardkitError, MemoryError) as error:
            if isinstance(error, DecodeError):
                raise DecodeError(self._message(data, error)) from error
            raise
        except Exception as error:
            raise DecodeError(self._message(data, error)) from error

    def _message(self, data: Data | Source, error: Exception) -> str:
        size = data.size if isinstance(data, Source) else len(data)
        text = str(error) or type(error).__name__
        if not isinstance(error, DecodeError | ValueError):
            text = f"{type(error).__name__}: {text}"
        if size == 0:
            text = f"it is empty ({text})"
        return f"cannot decode .{self.ext} ({size} bytes): {text}"

    def __reduce__(self) -> tuple[type[_Guarded], tuple[str, Decoder]]:
        return _Guarded, (self.ext, self.decoder)


class _Gunzip:
    """Decompress, then decode by what the ext says before ``.gz``."""

    def __init__(self, decoder: Decoder | None) -> None:
        self.decoder = decoder

    def __call__(self, data: bytes) -> Any:
        if not data:
            raise DecodeError("there are no bytes")
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            plain = file.read(_MAX_GUNZIPPED_BYTES + 1)
        if len(plain) > _MAX_GUNZIPPED_BYTES:
            raise DecodeError(
                f"it decompresses to more than {_MAX_GUNZIPPED_BYTES} bytes; if it should, "
                f"decompress it in a decoder of your own: decode={{'gz': my_decoder}}"
            )
        return plain if self.decoder is None else self.decoder(plain)


def _overrides(decode: DecodeOption) -> dict[str, Decoder | str | None]:
    if decode is None:
        return {"*": None}
    if isinstance(decode, str):
        if decode != "auto":
            raise ConfigError(f'decode={decode!r}: give "auto", None, or a mapping by ext')
        return {}
    for ext, decoder in decode.items():
        if not (decoder is None or decoder == "auto" or callable(decoder)):
            raise ConfigError(
                f"decode[{ext!r}] is {decoder!r}: give a function of bytes, "
                f'"auto", or None to keep the bytes'
            )
    return {_canonical(ext): decoder for ext, decoder in decode.items()}


def _auto(ext: str) -> Decoder | None:
    known = dict(_BUILT_IN) | _registered
    return known.get(ext, known.get(_last(ext)))


def _canonical(ext: str) -> str:
    return ext.lower().removeprefix(".")


@functools.lru_cache(maxsize=1024)
def _last(ext: str) -> str:
    return ext.rpartition(".")[2]
