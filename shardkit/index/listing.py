"""Media files by name → rows: files that agree up to the first dot are one sample."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from shardkit.errors import ConfigError, IndexDataError
from shardkit.format.sidecar import KEY
from shardkit.index.names import MEDIA_TYPES, is_hidden, is_meta, media_type_of, path_of, split_key
from shardkit.index.spool import Spool
from shardkit.storage.protocol import ObjectInfo

__all__ = ["Grouping", "listing_tables"]

_ROWS = 8_192
_MAX_EXTS = 256  # a column each; more means that names have dots in their stems

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grouping:
    """How files become rows.

    Attributes:
        root: folder that keys are relative to; ``""``: keys are whole paths without the scheme.
        folder_as: metadata column for the name of the folder that a sample is in (a class).
        data_type: keep samples that have a member of this type (``"image"``, ``"video"``, …).
    """

    root: str
    folder_as: str | None = None
    data_type: str | None = None

    def __post_init__(self) -> None:
        if self.data_type is not None and self.data_type not in MEDIA_TYPES:
            raise ConfigError(
                f"data_type={self.data_type!r}: must be one of {', '.join(MEDIA_TYPES)}"
            )


@dataclass(slots=True)
class _Sample:
    key: str
    members: dict[str, ObjectInfo] = field(default_factory=dict)


def listing_tables(
    files: Iterable[ObjectInfo], grouping: Grouping, spool: Spool
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Group files and return one row a sample: its key, a column of URLs per ext, and sizes.

    Members of a sample are neighbours in a sorted listing (files of folders like ``a.b/`` may lie
    between); in a list, they are lines that follow each other. URLs are relative to the root, so
    that a folder is the same index wherever it lies. Memory does not grow with the number
    of files. Hidden files and ``__meta__`` are left out, and so are names without an ext.
    """
    exts: set[str] = set()
    sized: set[str] = set()
    samples = _samples(files, grouping)
    if grouping.data_type is not None:
        kept = grouping.data_type
        samples = (s for s in samples if any(media_type_of(ext) == kept for ext in s.members))
    count = 0
    while part := list(itertools.islice(samples, _ROWS)):
        count += len(part)
        exts.update(ext for sample in part for ext in sample.members)
        sized.update(e for s in part for e, info in s.members.items() if info.size >= 0)
        if len(exts) > _MAX_EXTS:
            raise IndexDataError(
                f"the files have more than {_MAX_EXTS} different exts "
                f"({', '.join(sorted(exts)[:4])} …): an ext starts at the first dot of a name, so "
                "names must have no other dots; rename the files, or write an index with URLs"
            )
        spool.append(_table(part, grouping))
    if not count:
        raise IndexDataError(
            f"no samples in {grouping.root or 'the list'}: "
            + (
                f"none has a member of type {grouping.data_type}"
                if grouping.data_type
                else "its files have no ext, or are hidden"
            )
        )
    fields = [(KEY, pa.string())]
    if grouping.folder_as is not None:
        fields.append((grouping.folder_as, pa.string()))
    for ext in sorted(exts):
        fields.append((ext, pa.string()))
        if ext in sized:
            fields.append((f"size.{ext}", pa.int64()))
    schema = pa.schema(fields)
    return schema, spool.tables(schema)


def _table(samples: list[_Sample], grouping: Grouping) -> pa.Table:
    columns = {KEY: pa.array([sample.key for sample in samples], pa.string())}
    if grouping.folder_as is not None:
        folders = [sample.key.rpartition("/")[0].rpartition("/")[2] for sample in samples]
        columns[grouping.folder_as] = pa.array([name or None for name in folders], pa.string())
    for ext in sorted({ext for sample in samples for ext in sample.members}):
        found = [sample.members.get(ext) for sample in samples]
        paths = [info and info.url[len(grouping.root) :] for info in found]
        columns[ext] = pa.array(paths, pa.string())
        sizes = [info.size if info and info.size >= 0 else None for info in found]
        columns[f"size.{ext}"] = pa.array(sizes, pa.int64())
    return pa.table(columns)


def _samples(files: Iterable[ObjectInfo], grouping: Grouping) -> Iterator[_Sample]:
    listed = not grouping.root
    open_samples: list[_Sample] = []  # each a folder deeper than the one before
    skipped = 0
    for info in files:
        path = _relative(info.url, grouping.root)
        if not listed and (is_hidden(path) or is_meta(path)):
            continue
        key, ext = split_key(path)
        if not key:
            skipped += 1
            continue
        while open_samples and not path.startswith(f"{open_samples[-1].key}."):
            yield open_samples.pop()
        sample = next((s for s in open_samples if s.key == key), None)
        if sample is None:
            if (
                listed and open_samples
            ):  # lines, not a sorted listing: only neighbours belong together
                yield open_samples.pop()
            sample = _Sample(key)
            open_samples.append(sample)
        if ext in sample.members:
            raise IndexDataError(
                f"{sample.members[ext].url} and {info.url} both are the {ext} of the sample "
                f"{key!r}: rename one"
            )
        sample.members[ext] = info
    yield from reversed(open_samples)
    if skipped:
        logger.warning(
            "%s files of %s have no ext and are left out",
            f"{skipped:,}",
            grouping.root or "the list",
        )


def _relative(url: str, root: str) -> str:
    if root and url.startswith(root):
        return url[len(root) :]
    return path_of(url).partition("://")[2].lstrip("/") if "://" in url else url.lstrip("/")
