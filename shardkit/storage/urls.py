"""URLs as fsspec spells them: which are local, and what is their path."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from shardkit.errors import ConfigError

__all__ = ["given_url", "is_local", "local_path", "place_of", "scheme_of"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def given_url(url: str) -> str:
    """Return the path or URL that a user gave; a leading ``~`` is their home, as in a shell.

    Raises:
        ConfigError: it is empty, which as a path would mean the root of all files.
    """
    if not url.strip():
        raise ConfigError("an empty path was given (an unset variable?): give a path or a URL")
    return os.path.expanduser(url) if url.startswith("~") else url


def scheme_of(url: str) -> str:
    """Return the scheme in lower case; ``file`` for a bare path; ``a::b`` chains count as ``a``."""
    if "::" in url:
        head = url.split("::", 1)[0]
        return scheme_of(head) if "://" in head else head.lower()
    found = _SCHEME.match(url)
    return found.group(1).lower() if found else "file"


def place_of(url: str) -> str:
    """Return scheme and host (or bucket) of a URL, ``"s3://bucket"``; "" for a bare path."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if mark else ""


def is_local(url: str) -> bool:
    """Is this a path of this machine: a bare path or ``file://``?"""
    return scheme_of(url) in ("file", "local")


def local_path(url: str) -> str:
    """Return the path of a local URL: a bare path as it is; ``file://`` decoded."""
    if "://" not in url:
        return url
    if url.startswith("local://"):
        return url.removeprefix("local://")
    path = unquote(urlsplit(url.replace("#", "%23").replace("?", "%3F")).path)
    return path or "/"
