"""``reshard`` as people call it: shards anywhere → shards anywhere, in another order and size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from shardkit.errors import ConfigError, IndexDataError
from shardkit.executors import WHOLE, Executor, LocalExecutor, Part, Report, nothing
from shardkit.format.keys import fit_key
from shardkit.format.sidecar import KEY
from shardkit.index.chosen import keys_fit
from shardkit.index.findings import Choices, Findings, find
from shardkit.index.groups import Groups
from shardkit.index.index import Index
from shardkit.index.mapped import map_groups
from shardkit.index.scratch import Scratch
from shardkit.index.selection import Selection
from shardkit.index.shards import PackedDataset, ShardSet, open_shards
from shardkit.pack.output import WORK_FOLDER, Output
from shardkit.pack.plan import PackOptions
from shardkit.pack.reshard_rows import (
    Chosen,
    Parts,
    choose_rows,
    first_without_members,
    split_rows,
)
from shardkit.pack.reshard_run import Reshard, ReshardSummary, Target
from shardkit.storage.store import Store, is_local, local_path, open_store
from shardkit.storage.urls import given_url

__all__ = ["open_reshard", "reshard"]


def reshard(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: PackOptions | None = None,
    where: str | None = None,
    exclude: Iterable[str] = (),
    max_samples: int | None = None,
    members: Sequence[str] | None = None,
    parts: Mapping[str, float] | None = None,
    parts_by: Literal["key", "count"] = "key",
    part_column: str | None = None,
    way: Literal["auto", "ranges", "spill"] = "auto",
    scratch: str | None = None,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    report: Report = nothing,
) -> ReshardSummary:
    """Write the samples of a packed dataset, or of plain tars, into new shards.

    By default in a random order of all samples. Every member is proved by its checksum on the way.
    Run again after a kill, it continues and ends in the same bytes; run again after its end, it
    finds nothing to do.

    Args:
        source: folder or URL of a packed dataset, or tars by their names; as ``ShardDataset``.
        out: folder for the shards, local or any URL; empty, or of the same reshard. With parts,
            each is a dataset in a folder of its own there.
        options: sizes and order, by default ``PackOptions(shuffle="global")``. The seed chooses
            ``max_samples`` and parts by count too; ``metadata_member="auto"`` does as the source.
        where: condition in DuckDB's SQL; it selects what ``ShardDataset(where=…)`` selects.
        exclude: keys to leave out.
        max_samples: take so many of what is left, chosen at random.
        members: exts to keep; default all.
        parts: name → fraction; the fractions sum to 1.
        parts_by: ``"key"``: the hash of a sample's key decides, so that its part stays the same
            whatever else is in the dataset; ``"count"``: sizes are exact.
        part_column: metadata column whose values name the parts.
        way: how bytes are moved; by default whichever costs less, see ``docs/reshard.md``.
        scratch: local folder for what is made of the source's index and for spill files. By
            default the user's own below the system's for temporary files, and ``out`` if it is
            local.
        executor: who works; default one process per core.
        part: ``(i, n)`` makes only every n-th shard from shard i on, as in ``pack``.
        storage_options: of the stores of both ends.
        report: called with samples and bytes as they are done.

    Raises:
        ConfigError: an option is wrong, or ``out`` holds something else.
        NotFoundError: there is no such source.
        IndexDataError: no sample is left, or a key repeats.
        CorruptError: a member fails its checksum; names shard and key.
        StoreError: a file can't be read or written.
    """
    job = open_reshard(
        source,
        out,
        options=options,
        where=where,
        exclude=exclude,
        max_samples=max_samples,
        members=members,
        parts=parts,
        parts_by=parts_by,
        part_column=part_column,
        scratch=scratch,
        storage_options=storage_options,
    )
    return job.run(
        executor=executor or LocalExecutor(),
        way=way,
        part=WHOLE if part is None else Part(*part),
        report=report,
    )


def open_reshard(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: PackOptions | None = None,
    where: str | None = None,
    exclude: Iterable[str] = (),
    max_samples: int | None = None,
    members: Sequence[str] | None = None,
    parts: Mapping[str, float] | None = None,
    parts_by: Literal["key", "count"] = "key",
    part_column: str | None = None,
    scratch: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Reshard:
    """Find out what ``reshard`` with these arguments is to do; nothing is written to ``out``."""
    source, out = given_url(os.fspath(source)), given_url(os.fspath(out))
    options = options or PackOptions(shuffle="global")
    if options.on_error != "raise":
        raise ConfigError(
            f"on_error={options.on_error!r}: a reshard loses no sample unasked; leave damaged ones "
            "out by name (exclude)"
        )
    if scratch is not None:
        if not is_local(scratch):
            raise ConfigError(f"scratch={scratch!r} must be a local folder")
        scratch = local_path(given_url(scratch))
    if isinstance(exclude, str):
        raise ConfigError(f"exclude={exclude!r} is one text; give a list of keys")
    excluded = frozenset(fit_key(key) for key in exclude)
    chosen = Chosen(where, excluded, max_samples, options.seed)
    split = Parts(parts, parts_by, part_column)
    store, kept = open_store(storage_options), Scratch(scratch)
    shards = open_shards(source, store, kept)
    exts = _exts(shards, members)
    groups = shards.groups()
    if not groups.in_memory:
        groups = map_groups(groups, groups.schema.names, kept)
    selection = choose_rows(groups, chosen, source, kept)
    if members is not None:
        _check_members(groups, selection, exts)
    if options.metadata_member == "auto":
        options = replace(options, metadata_member=_metadata_member(shards, exts))
    selections: Mapping[str, Selection | None] = {"": selection}
    if not split.is_whole:
        selections = split_rows(groups, selection, split, options.seed, kept)
    findings = _findings(shards, groups, exts, store)
    return Reshard(
        source=shards,
        groups=groups,
        exts=exts,
        targets=tuple(
            Target(
                name,
                Index(source, groups, findings, selection=rows, scratch=kept),
                Output(f"{out.rstrip('/')}/{name}" if name else out, store),
            )
            for name, rows in selections.items()
        ),
        options=options,
        url=out,
        store=store,
        spill_folder=_spill_folder(out, scratch, kept),
    )


def _exts(shards: ShardSet, members: Sequence[str] | None) -> tuple[str, ...]:
    """The members to keep, in the order of names, whatever the order in which they were given."""
    if members is None:
        return tuple(sorted(shards.default_exts))
    wanted = {ext.lower().lstrip(".") for ext in members}
    unknown = sorted(wanted - set(shards.exts))
    if unknown or not wanted:
        raise ConfigError(
            f"members: {shards.url} has no member {', '.join(map(repr, unknown)) or 'of no name'}; "
            f"it has {', '.join(shards.exts)}"
        )
    return tuple(sorted(wanted))


def _check_members(groups: Groups, selection: Selection | None, exts: tuple[str, ...]) -> None:
    key = first_without_members(groups, selection, exts)
    if key is not None:
        condition = " OR ".join(f'"{ext}" IS NOT NULL' for ext in exts)
        raise IndexDataError(
            f"the sample with key {key!r} has none of the members {', '.join(exts)}; leave such "
            f"samples out (where='{condition}'), or keep more members"
        )


def _metadata_member(shards: ShardSet, exts: Sequence[str]) -> str:
    """The ext under which the source's tars hold the metadata, ``"none"`` if they don't."""
    hidden = set(shards.exts) - set(shards.default_exts)
    if hidden == {"meta.json" if "json" in exts else "json"} or not shards.metadata:
        return "auto"  # comes to the same, and is what a pack of these samples would say
    return min(hidden) if hidden else "none"


def _findings(shards: ShardSet, groups: Groups, exts: Sequence[str], store: Store) -> Findings:
    """Members and metadata as the source has them; keys that tars can't hold stay as metadata."""
    findings = find(groups, Choices(files={ext: ext for ext in exts}), store)
    if isinstance(shards, PackedDataset):
        keeps_key = shards.manifest.adopted is not None
    else:
        keeps_key = not keys_fit(groups)
    return replace(findings, metadata=(KEY, *findings.metadata)) if keeps_key else findings


def _spill_folder(out: str, scratch: str | None, kept: Scratch) -> str:
    if scratch is not None:
        return scratch
    if is_local(out):
        return os.path.join(local_path(out), WORK_FOLDER)
    return kept.folder
