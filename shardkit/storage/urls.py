"""URLs as fsspec spells them: which are local, and what is their path."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

__all__ = ["is_local", "local_path", "scheme_of"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(url: str) -> str:
    """Return the scheme in lower case; ``file`` for a bare path; ``a::b`` chains count as ``a``."""
    if "::" in url:
        head = url.split("::", 1)[0]
        return scheme_of(head) if "://" in head else head.lower()
    found = _SCHEME.match(url)
    return found.group(1).lower() if found else "file"


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
