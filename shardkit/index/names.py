"""What names say: exts, keys, media types, and where a relative path leads. Pure."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping

from shardkit.storage.urls import given_url

__all__ = [
    "INDEX_EXTS",
    "MEDIA_TYPES",
    "base_name",
    "folder_of",
    "index_ext",
    "is_hidden",
    "is_meta",
    "is_tar",
    "join",
    "known_ext",
    "last_ext",
    "media_type_of",
    "resolve",
    "split_key",
]

_IMAGE = (
    "jpg jpeg jpe jfif png gif webp bmp tif tiff avif heic heif jxl jp2 ppm pgm pbm pnm tga exr"
)
_VIDEO = "mp4 webm mov mkv avi m4v mpg mpeg mpe wmv flv 3gp 3g2 ts m2ts ogv"
_AUDIO = "wav flac mp3 ogg oga opus m4a aac aif aiff wma amr"
_TEXT = (
    "txt text json jsonl csv tsv xml md html htm pdf doc docx rtf yaml yml srt vtt cls id caption"
)
_LATENT = "npy npz pt pth pkl pickle ckpt h5 hdf5 safetensors bin msgpack mp ten tensor"

MEDIA_TYPES: Mapping[str, frozenset[str]] = {
    "image": frozenset(_IMAGE.split()),
    "video": frozenset(_VIDEO.split()),
    "audio": frozenset(_AUDIO.split()),
    "text": frozenset(_TEXT.split()),
    "latent": frozenset(_LATENT.split()),
}
"""Exts by kind of content, as ``data_type=`` names them."""

_KNOWN = frozenset().union(*MEDIA_TYPES.values()) | frozenset(
    [
        "svg",
        "psd",
        "dng",
        "cr2",
        "nef",
        "arw",
        "nii",
        "dcm",
        "mid",
        "midi",
        "ply",
        "obj",
        "stl",
        "glb",
        "gltf",
        "las",
        "laz",
        "zip",
        "parquet",
        "mat",
    ]
)
_PACKED = frozenset({"gz", "bz2", "xz", "zst"})
_USUAL = _KNOWN - _PACKED
_KEY_AND_EXT = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_SUFFIX = re.compile(r"(?=[^.]*[a-z])[a-z0-9_\-]{1,16}", re.ASCII)

INDEX_EXTS: Mapping[str, str] = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "tsv": "csv",
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
    "arrow": "arrow",
    "feather": "arrow",
    "ipc": "arrow",
    "arrows": "arrow",
}
"""Ext of an index file → who reads it."""


def path_of(url: str) -> str:
    """Return a URL without its query and fragment; of a bare path nothing is cut."""
    if "://" not in url:
        return url
    return url.partition("?")[0].partition("#")[0]


def base_name(url: str) -> str:
    """Return what follows the last slash of a URL's path."""
    return path_of(url).rpartition("/")[2]


def folder_of(url: str) -> str:
    """Return the folder of a file, with its slash (``""`` for a bare name)."""
    return url[: len(url) - len(url.rpartition("/")[2])]


def last_ext(url: str) -> str:
    """Return the ext of a file named by a cell of a table: its last suffix (``nii.gz`` is one).

    Dots earlier in the name are part of it (``IMG.2020.01.jpg``): a table says by its columns what
    belongs together. ``""`` where there is none, or where a web address has one that names no
    medium (``photo.php``).
    """
    front, _, ext = url.rpartition(".")
    if ext in _USUAL and front and front[-1] != "/" and "?" not in url:
        return ext  # nearly always, and several times faster
    base = path_of(url).rpartition("/")[2]
    stem, dot, ext = base.rpartition(".")
    ext = ext.lower()
    if not dot or not stem or not _SUFFIX.fullmatch(ext):
        return ""
    if ext in _PACKED:
        inner = stem.rpartition(".")[2].lower()
        return f"{inner}.{ext}" if inner in _KNOWN or inner == "tar" else ext
    if ext not in _KNOWN and url[:4].lower() == "http":
        return ""
    return ext


def split_key(path: str) -> tuple[str, str]:
    """Return the key and ext of a file in a folder or tar: parted at the basename's first dot.

    The rule of webdataset, Energon and DALI, to the letter of their regular expression (of a
    basename that starts with a dot, the folder is the key). ``("", "")`` for names that belong to
    no sample.

    >>> split_key("cat/x.seg.PNG")
    ('cat/x', 'seg.png')
    """
    folder, slash, base = path.rpartition("/")
    stem, dot, ext = base.partition(".")
    if not dot:
        return "", ""
    if not stem or "\n" in path:
        found = _KEY_AND_EXT.match(path)
        return (found.group(1), found.group(2).lower()) if found else ("", "")
    return f"{folder}{slash}{stem}", ext.lower()


def known_ext(url: str) -> bool:
    """Does this name end like a file of a kind that people train on?"""
    return last_ext(url).partition(".")[0] in _KNOWN


def media_type_of(ext: str) -> str | None:
    """Return the kind in ``MEDIA_TYPES`` that an ext's last suffix belongs to, or None."""
    last = ext.rpartition(".")[2]
    return next((name for name, exts in MEDIA_TYPES.items() if last in exts), None)


def index_ext(url: str) -> str | None:
    """Return the ext under which ``INDEX_EXTS`` knows this file (compression left out), or None."""
    base = base_name(url).lower()
    for packed in _PACKED:
        base = base.removesuffix(f".{packed}")
    ext = base.rpartition(".")[2] if "." in base else ""
    return ext if ext in INDEX_EXTS else None


def is_tar(url: str) -> bool:
    """Does this name end like a tar, compressed perhaps?"""
    return re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)$", base_name(url).lower()) is not None


def is_hidden(path: str) -> bool:
    """Is any part of this relative path hidden?"""
    return path.startswith(".") or "/." in path


def is_meta(path: str) -> bool:
    """Does webdataset skip this name: a first part like ``__meta__``?"""
    head, slash, _ = path.partition("/")
    return head.startswith("__") and head.endswith("__") and (len(head) >= 4 or not slash)


def join(folder: str, path: str) -> str:
    """Return a path below a folder; ``..`` is worked off, as a shell would."""
    if "://" in folder:
        scheme, _, rest = folder.partition("://")
        root, slash, below = rest.partition("/")
        return f"{scheme}://{root}{slash or '/'}{posixpath.normpath(posixpath.join(below, path))}"
    return os.path.normpath(os.path.join(folder, path))


def resolve(path: str, folder: str) -> str:
    """Return the full URL of what a cell or a line names: itself, or below ``folder``."""
    if path.startswith("/") or "://" in path:
        return path
    if path.startswith("~/"):
        return given_url(path)
    if "./" not in path and folder.endswith("/"):
        return folder + path
    return join(folder, path)
