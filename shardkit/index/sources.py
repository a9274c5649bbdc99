"""What a source's name means: index files, media files, tars, a folder, a packed dataset.

A name may be a file, a folder, a wildcard (``*``, ``**``, ``?``, ``[…]``), a brace expression
(``{000..146}``), several of these joined by ``::``, or a list file with one of these a line.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from braceexpand import braceexpand

from shardkit.errors import IndexDataError, NotFoundError
from shardkit.format.manifest import MANIFEST_NAME
from shardkit.index.names import (
    INDEX_EXTS,
    base_name,
    folder_of,
    index_ext,
    is_hidden,
    is_tar,
    known_ext,
    resolve,
)
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.urls import given_url, is_local, local_path, scheme_of

__all__ = ["Source", "identify"]

Kind = Literal["index", "media", "tars", "folder", "packed"]

_WILD = re.compile(r"[*?\[]")
_BRACE = re.compile(r"\{[^{}]*(?:\.\.|,)[^{}]*\}")
_LIST_EXTS = ("txt", "list", "lst")
_LOOKED_AT = 2_000  # files of a folder that are looked at to tell what it is
_ROWS_FILES = frozenset(
    {"parquet", "pq", "arrow", "feather", "ipc", "csv", "tsv", "jsonl", "ndjson"}
)


@dataclass(frozen=True)
class Source:
    """A source and its files.

    Attributes:
        kind: ``"index"`` files hold rows; ``"media"`` files are members, grouped by name;
            ``"tars"``; a ``"folder"`` holds media files; ``"packed"`` is a folder with a manifest.
        files: of it, in order; [] for folders, which are listed as they are read.
        root: folder that media files' keys are relative to; ``""`` for lists.
    """

    kind: Kind
    files: Sequence[ObjectInfo] = ()
    root: str = ""


def identify(store: Store, given: str | Sequence[str]) -> Source:
    """Say what a name means, or several together: by them and, for a folder, by what is in it.

    Raises:
        NotFoundError: nothing is there.
        IndexDataError: the files can't be taken together (index files beside media files).
    """
    source = "::".join(map(given_url, [given] if isinstance(given, str) else given))
    names = [part for name in source.split("::") for part in _braces(name)]
    if len(names) == 1 and not _is_wild(names[0]):
        return _one(store, names[0])
    files = _expand(store, names)
    if not files:
        raise NotFoundError(f"no file matches {source}; check the path and the wildcard")
    return _classify(files, source, _fixed_folder(names[0]))


def _braces(name: str) -> list[str]:
    return list(braceexpand(name)) if _BRACE.search(name) and not _exists(name) else [name]


def _is_wild(name: str) -> bool:
    """Is this a wildcard? Web addresses have ``?`` for their queries; a file may have ``[``."""
    if scheme_of(name) in ("http", "https"):
        return False
    return _WILD.search(name) is not None and not _exists(name)


def _exists(name: str) -> bool:
    return is_local(name) and os.path.exists(local_path(name))


def _one(store: Store, name: str) -> Source:
    ext = index_ext(name)
    if _is_folder(store, name, sure=name.endswith("/")):
        return _folder(store, name.rstrip("/") + "/")
    if base_name(name).lower().rpartition(".")[2] in _LIST_EXTS:
        return _list_file(store, name)
    info = _stat(store, name)
    if is_tar(name):
        return Source("tars", [info])
    if ext is not None:
        return Source("index", [info])
    if known_ext(name):
        return Source("media", [info], folder_of(name))
    raise IndexDataError(
        f"{name} is no index: one ends in {', '.join(INDEX_EXTS)}, txt (a list of files) or tar, "
        "or is a folder"
    )


def _stat(store: Store, name: str) -> ObjectInfo:
    """The one file of this name; what looks like a wildcard of the web is told what it is."""
    try:
        return store.stat(name)
    except NotFoundError as error:
        if scheme_of(name) in ("http", "https") and "*" in name.partition("?")[0]:
            raise NotFoundError(
                f"{name} is no file, and a web server lists none that a wildcard could match: name "
                "them by braces ({000..146}), as a list, or in a list file"
            ) from error
        raise


def _is_folder(store: Store, name: str, *, sure: bool) -> bool:
    if is_local(name):
        return os.path.isdir(local_path(name))
    if sure:
        return True
    base = base_name(name)
    if index_ext(base) or is_tar(base) or base.lower().endswith(tuple(f".{e}" for e in _LIST_EXTS)):
        return False
    if scheme_of(name) in ("http", "https"):  # which list no folders: only a packed one is seen
        return _is_packed(store, name.rstrip("/") + "/")
    return next(iter(store.list(name.rstrip("/") + "/")), None) is not None


def _is_packed(store: Store, folder: str) -> bool:
    try:
        store.stat(folder + MANIFEST_NAME)
    except NotFoundError:
        return False
    return True


def _folder(store: Store, folder: str) -> Source:
    if _is_packed(store, folder):
        return Source("packed", root=folder)
    files = store.list(folder)
    seen = [
        info
        for info in itertools.islice(files, _LOOKED_AT)
        if not is_hidden(info.url[len(folder) :]) and not base_name(info.url).startswith("_")
    ]
    if not seen:
        raise NotFoundError(f"there are no files in {folder}; check the path")
    exts = {index_ext(info.url) for info in seen}
    rest = (info for info in files if not is_hidden(info.url[len(folder) :]))
    if exts <= _ROWS_FILES and len(exts) == 1:
        return Source("index", [*seen, *(i for i in rest if index_ext(i.url) in exts)])
    tars = [info for info in seen if is_tar(info.url)]
    if tars and not any(
        known_ext(info.url) and index_ext(info.url) is None for info in seen if info not in tars
    ):
        return Source("tars", [*tars, *(info for info in rest if is_tar(info.url))])
    return Source("folder", root=folder)


def _list_file(store: Store, url: str) -> Source:
    folder = folder_of(url)
    try:
        lines = store.get(url).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise IndexDataError(
            f"{url} is no list of files: it is not UTF-8 text ({error})"
        ) from error
    wanted = [line.strip() for line in lines]
    wanted = [line for line in wanted if line and not line.startswith("#")]
    if not wanted:
        raise IndexDataError(f"{url} lists nothing; a list has one file a line")
    urls = [part for line in wanted for part in _braces(resolve(line, folder))]
    if len(urls) == 1 and not _is_wild(urls[0]):
        return _one(store, urls[0])
    files = _expand(store, urls)
    if not files:
        raise NotFoundError(f"no file matches the lines of {url}")
    return _classify(files, url, "")


def _expand(store: Store, names: Sequence[str]) -> list[ObjectInfo]:
    """Return the files that names without braces mean; a wildcard may mean none.

    Where some are media files, all are: members are looked for when they are read.
    """
    plain = [name for name in names if not _is_wild(name)]
    media = any(known_ext(n) and index_ext(n) is None and not is_tar(n) for n in plain)
    found: list[ObjectInfo] = []
    for name in names:
        if _is_wild(name):
            found.extend(_matches(store, name))
        else:
            found.append(ObjectInfo(name, -1, "") if media else _stat(store, name))
    return found


def _matches(store: Store, name: str) -> Iterator[ObjectInfo]:
    if is_local(name):
        path = local_path(name)
        for found in sorted(glob.glob(path, recursive=True)):
            if os.path.isfile(found):
                yield store.stat(found)
        return
    pattern = re.compile(_glob_regex(name))
    for info in store.list(_fixed_folder(name)):
        if pattern.fullmatch(info.url):
            yield info


def _fixed_folder(name: str) -> str:
    """The part of a wildcard before its first wild folder."""
    wild = _WILD.search(name)
    return folder_of(name[: wild.start()] if wild else name)


def _glob_regex(pattern: str) -> str:
    """A wildcard as a regular expression: ``*`` stays within a folder, ``**`` does not."""
    parts = []
    for piece in re.split(r"(\*\*/?|\*|\?|\[[^\]]*\])", pattern):
        if piece == "**/":
            parts.append(r"(?:[^/]+/)*")
        elif piece == "**":
            parts.append(r".*")
        elif piece == "*":
            parts.append(r"[^/]*")
        elif piece == "?":
            parts.append(r"[^/]")
        elif piece.startswith("["):
            parts.append(fnmatch.translate(piece).removeprefix("(?s:").removesuffix(r")\Z"))
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def _classify(files: Sequence[ObjectInfo], source: str, root: str) -> Source:
    """Say what many files are together: all tars, all index files, or else media."""
    if all(is_tar(info.url) for info in files):
        return Source("tars", files)
    exts = {index_ext(info.url) for info in files}
    kinds = {INDEX_EXTS.get(ext) if ext else None for ext in exts}
    if None not in kinds:
        return Source("index", files)
    odd = exts & (_ROWS_FILES - {"csv", "tsv"})
    if odd:
        raise IndexDataError(
            f"{source} has index files ({', '.join(sorted(e for e in odd if e))}) beside media "
            "files; name either"
        )
    return Source("media", files, root)
