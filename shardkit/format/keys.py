"""Which keys and exts the tar dialect holds, and how any other key is rewritten.

Every reader must find the same samples, so a key has no dot (the ext starts at the first one),
no slash, no blank, is ASCII, not too long, and does not look like ``__meta__``, which readers skip.
"""

from __future__ import annotations

import re

from xxhash import xxh3_64_hexdigest

from shardkit.errors import ConfigError

__all__ = ["MAX_EXT", "MAX_KEY", "check_ext", "fit_key", "fits", "split_name", "tar_name"]

MAX_KEY = 70
"""Bytes of a key: with a dot and an ext of ``MAX_EXT`` they fill a USTAR name of 100 bytes."""
MAX_EXT = 29

_KEY = re.compile(r"(?!__)[!-\-0-\[\]-~]{1,70}", re.ASCII)  # printable, but not . / \
_EXT = re.compile(r"[!-\-0-\[\]-~]+(?:\.[!-\-0-\[\]-~]+)*", re.ASCII)
_OTHER = re.compile(r"[^!-\-0-\[\]-~]+", re.ASCII)


def fits(key: str) -> bool:
    """Whether the dialect holds ``key`` as it is."""
    return _KEY.fullmatch(key) is not None


def fit_key(key: str) -> str:
    """``key`` itself where the dialect holds it, else a readable name made unique by a hash.

    A pure function of the key alone, so that packing in any order and streaming without packing
    give the same ``__key__``: ``cat/000`` becomes ``cat_000-`` and 16 hex digits of its XXH3-64.
    """
    if _KEY.fullmatch(key):
        return key
    digest = xxh3_64_hexdigest(key.encode("utf-8", "surrogatepass"))
    readable = _OTHER.sub("_", key).strip("_")[: MAX_KEY - 1 - len(digest)]
    return f"{readable or 'key'}-{digest}"


def check_ext(ext: str) -> str:
    """``ext`` itself where it can name members.

    Raises:
        ConfigError: the ext is empty, too long, or has characters that names can't hold.
    """
    if len(ext) > MAX_EXT or not _EXT.fullmatch(ext):
        raise ConfigError(
            f"the ext {ext!r} can't name a member: exts have 1 to {MAX_EXT} printable ASCII "
            "characters without blanks and slashes; rename it in the index (--files COLUMN=EXT)"
        )
    return ext


def tar_name(key: str, ext: str) -> bytes:
    """The member name of a fitted key and a checked ext."""
    return f"{key}.{ext}".encode("ascii")


def split_name(name: str) -> tuple[str, str]:
    """Key and ext of a member name: the first dot after the last slash parts them.

    The ext is lower case; "" where there is no dot. (webdataset's and Energon's rule.)
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return folder + slash + stem, ext.lower()
