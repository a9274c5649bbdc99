"""``pack`` and ``verify`` as people call them: any source, any URL, sensible defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from braceexpand import braceexpand

from shardkit.executors import WHOLE, Executor, LocalExecutor, Part, Report, nothing
from shardkit.index.index import Index
from shardkit.index.open import open_index
from shardkit.pack.output import Output, check_writable
from shardkit.pack.plan import PackOptions
from shardkit.pack.run import PackSummary, pack_index
from shardkit.pack.verify import VerifyReport, verify_dataset, verify_tars
from shardkit.pack.write import ShardTask
from shardkit.storage.store import open_store

__all__ = ["open_for_pack", "pack", "verify"]


def pack(
    source: Any,
    out: str | os.PathLike[str],
    *,
    key: str | None = None,
    files: Sequence[str] | Mapping[str, str] | str | None = None,
    inline: Sequence[str] | Mapping[str, str] | str | None = None,
    metadata: Sequence[str] | str | None = None,
    where: str | None = None,
    data_type: str | None = None,
    folder_as: str | None = None,
    options: PackOptions | None = None,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
    scratch: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    report: Report = nothing,
) -> PackSummary:
    """Pack the samples of any index into WebDataset shards.

    Run again after a kill, it continues and ends in the same bytes; run again after its end, it
    finds nothing to do. Parts may run at the same time, on machines that see the same ``out``; the
    last one to end publishes the dataset. If one was lost, a run without ``part`` does the rest.

    Args:
        source: a path or URL (index file, wildcard, list, folder, tars, packed dataset), an Arrow
            table or a DataFrame; see ``open_index``.
        out: folder for the shards, local or any URL; empty, or of the same pack.
        key: the column that names samples; found by itself if not given, like all these.
        files: columns that hold files, ``"column"`` or ``"column=ext"``.
        inline: columns whose values become members, ``"caption=txt"``.
        metadata: metadata columns to keep; default all others.
        where: SQL condition; rows for which it is not true are left out.
        data_type: of folders of files: keep samples that have a file of this type.
        folder_as: of folders of files: metadata column for the name of a sample's folder.
        options: sizes, order and policies; see ``PackOptions``.
        executor: who packs; default one process per core.
        part: ``(i, n)`` packs only every n-th shard from shard i on, ``i`` from 0 to ``n - 1``.
        scratch: local folder for what is made of the index; see ``open_index``. Executors on other
            machines must see it too if that is more than 16 MB.
        storage_options: of the stores of both ends.
        report: called with samples and bytes as they are packed.

    Raises:
        ConfigError: an option is wrong, or ``out`` holds something else.
        IndexDataError: the index is empty, lacks a column, or repeats a key.
        NotFoundError: a file that the index names does not exist (``on_error="raise"``).
        StoreError: a file can't be read or a shard can't be written.
    """
    chosen = WHOLE if part is None else Part(*part)
    runner = executor or LocalExecutor()
    with runner.ready(ShardTask):
        index, output = open_for_pack(
            source,
            out,
            key=key,
            files=files,
            inline=inline,
            metadata=metadata,
            where=where,
            data_type=data_type,
            folder_as=folder_as,
            scratch=scratch,
            storage_options=storage_options,
        )
        return pack_index(
            index,
            output,
            options or PackOptions(),
            executor=runner,
            part=chosen,
            report=report,
        )


def verify(
    dataset: str | os.PathLike[str] | Sequence[str],
    *,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    report: Report = nothing,
) -> VerifyReport:
    """Check every byte of a packed dataset, or lone tars by the checksums in their headers.

    Args:
        dataset: folder or URL of a packed dataset; or tars, one or several, braces expanded.
        executor: who verifies; default one process per core.
        part: ``(i, n)`` verifies only every n-th shard from shard i on; part 0 looks at the keys of
            all of them besides.
        storage_options: of the store.
        report: called with samples and bytes as they are verified.

    Raises:
        NotFoundError: there is no packed dataset.
        CorruptError: its manifest or shard table are broken.
    """
    several = [dataset] if isinstance(dataset, str | os.PathLike) else list(dataset)
    urls = [os.fspath(url) for url in several]
    urls = [expanded for url in urls for expanded in braceexpand(url, escape=False)]
    store, runner = open_store(storage_options), executor or LocalExecutor()
    chosen = WHOLE if part is None else Part(*part)
    if len(urls) == 1 and not urls[0].endswith(".tar"):
        return verify_dataset(urls[0], store, runner, part=chosen, report=report)
    return verify_tars(urls, store, runner, part=chosen, report=report)


def open_for_pack(
    source: Any,
    out: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    **choices: Any,
) -> tuple[Index, Output]:
    """Open the index and the folder of a pack; ``choices`` are ``open_index``'s."""
    store = open_store(storage_options)
    output = Output(os.fspath(out), store)
    check_writable(output)
    return open_index(source, store=store, **choices), output
