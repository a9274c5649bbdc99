"""``verify``: prove every byte of a packed dataset, or of lone tars; and make bad shards again."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import ConfigError, CorruptError, NotFoundError
from shardkit.executors import WHOLE, Executor, Part, Report, nothing
from shardkit.format.manifest import FAILED_NAME
from shardkit.format.parquet_bytes import parquet_table
from shardkit.format.sidecar import Failure, ShardRecord, sidecar_record
from shardkit.index.index import Index
from shardkit.index.open import open_index
from shardkit.index.shards import PackedDataset
from shardkit.pack.check import Problem, check_lone_tar, check_shard
from shardkit.pack.check_adopted import check_adopted
from shardkit.pack.output import Output
from shardkit.pack.plan import Plan
from shardkit.pack.write import shard_task
from shardkit.storage.boundary import map_os_errors
from shardkit.storage.protocol import Store
from shardkit.storage.urls import is_local, local_path

__all__ = ["VerifyReport", "repair_shards", "verify_dataset", "verify_tars"]


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found."""

    url: str
    num_shards: int
    num_samples: int
    num_bytes: int
    problems: tuple[Problem, ...] = field(default=())
    is_lone_tars: bool = False
    num_unproved: int = 0
    """Tars adopted by their headers alone: of their members' data nothing is known."""

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return not self.problems

    @property
    def bad_shards(self) -> list[str]:
        """Names of the shards with a problem, each once."""
        return sorted({problem.shard for problem in self.problems if problem.shard is not None})


@dataclass(frozen=True)
class _ShardResult:
    shard: int
    num_samples: int
    num_bytes: int
    problems: tuple[Problem, ...]
    packed: ShardRecord | None = None
    """What the sidecar says of its shard, where that can be read."""


def verify_dataset(
    url: str,
    store: Store,
    executor: Executor,
    *,
    part: Part = WHOLE,
    report: Report = nothing,
) -> VerifyReport:
    """Check every checksum, offset, count and key of a packed dataset, or of a part's shards.

    That keys differ between shards is for the first part to see.

    Raises:
        NotFoundError: there is no packed dataset.
        CorruptError: manifest or shard table are broken, so that nothing else can be checked.
    """
    dataset = PackedDataset.open(url, store)
    items = part.items(len(dataset.shards))
    results = list(executor.run(_VerifyShard(dataset), items, report))
    problems = [problem for result in results for problem in result.problems]
    adopted = dataset.manifest.adopted
    keys_may_repeat = adopted is not None and not adopted.unique_keys
    if adopted is None and not problems and part == WHOLE:
        problems += _check_totals(dataset, results)
    if not (problems or part.index or keys_may_repeat):  # the sidecars, with the keys, are right
        try:
            open_index(dataset.url, store=store).check_keys()
        except (ValueError, NotFoundError) as error:
            problems.append(Problem(None, None, str(error)))
    return VerifyReport(
        url=dataset.url,
        num_shards=len(results),
        num_samples=sum(result.num_samples for result in results),
        num_bytes=sum(result.num_bytes for result in results),
        problems=_in_order(problems),
        num_unproved=sum(dataset.tar_checksum(result.shard) is None for result in results),
    )


def _check_totals(dataset: PackedDataset, results: Sequence[_ShardResult]) -> Iterator[Problem]:
    """What manifest and ``failed.parquet`` say of all shards, against what their sidecars say."""
    manifest = dataset.manifest
    by_shard = sorted(results, key=lambda result: result.shard)
    records = [result.packed for result in by_shard if result.packed is not None]
    members: Counter[str] = Counter()
    for record in records:
        members.update(record.members)
    if dict(members) != dict(manifest.members):
        text = f"the manifest counts members {dict(manifest.members)}, the sidecars {dict(members)}"
        yield Problem(None, None, text)
    failures = [failure for record in records for failure in record.failures]
    if len(failures) != manifest.num_failed:
        text = f"the manifest counts {manifest.num_failed} skipped rows, the sidecars "
        yield Problem(None, None, f"{text}{len(failures)}")
    output = Output(dataset.url, dataset.store)
    found = output.read(FAILED_NAME)
    if found is None and failures:
        text = f"{FAILED_NAME} is missing, which lists the {len(failures)} rows that were skipped"
        yield Problem(None, None, text)
    elif found is not None and not _lists(found, failures):
        text = f"{FAILED_NAME} does not list the {len(failures)} rows that were skipped"
        yield Problem(None, None, text)


def _lists(data: bytes, failures: Sequence[Failure]) -> bool:
    """Whether these are the bytes of a ``failed.parquet`` with these rows, whoever wrote it."""
    try:
        found = parquet_table(data)
    except pa.ArrowException:
        return False
    return bool(found.to_pylist() == [asdict(failure) for failure in failures])


def verify_tars(
    urls: Sequence[str],
    store: Store,
    executor: Executor,
    *,
    part: Part = WHOLE,
    report: Report = nothing,
) -> VerifyReport:
    """Check lone tars by the checksums in their headers, all or a part's."""
    items = part.items(len(urls))
    results = list(executor.run(_VerifyTar(tuple(urls), store), items, report))
    problems = [problem for result in results for problem in result.problems]
    return VerifyReport(
        url=urls[0] if len(urls) == 1 else f"{len(urls)} tars",
        num_shards=len(results),
        num_samples=sum(result.num_samples for result in results),
        num_bytes=sum(result.num_bytes for result in results),
        problems=_in_order(problems),
        is_lone_tars=True,
    )


def repair_shards(
    index: Index, output: Output, names: Sequence[str], executor: Executor, report: Report = nothing
) -> list[str]:
    """Make the named shards again from the index, byte for byte; returns their names.

    Raises:
        ConfigError: the index is not the one that was packed, or nothing was packed.
        CorruptError: a shard came out otherwise, so that it was left as it is: source files have
            changed since.
    """
    dataset = PackedDataset.open(output.url, output.store)
    if dataset.manifest.adopted is not None:
        raise ConfigError(
            f"{output.url} was adopted, not packed: nobody here can make its tars again. Get them "
            "from where they came from, then run the same `shardkit index` again"
        )
    plan = Plan.from_manifest(dataset.manifest, dataset.shards)
    if plan.index != index.fingerprint:
        raise ConfigError(
            f"{output.url} was packed from another index (or this one has changed since): repair "
            "needs the same index and the same --key, --files, --inline, --meta and --where"
        )
    records = [shard_record(dataset, shard) for shard in range(len(dataset.shards))]
    wanted = {shard: record for shard, record in enumerate(records) if record.name in set(names)}
    task = replace(shard_task(index, plan, output), expected=wanted)
    made = [record.name for record in executor.run(task, wanted, report)]
    output.finish()
    return sorted(made)


def _in_order(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda p: (p.shard or "", p.key or "")))


@dataclass(frozen=True)
class _VerifyShard:
    dataset: PackedDataset

    def __call__(self, item: int, report: Report) -> _ShardResult:
        Output(self.dataset.url, self.dataset.store).check_begun()
        record = shard_record(self.dataset, item)
        packed = None if self.dataset.shards.adopted is not None else self._packed(item)
        problems = list(self._problems(item, record, packed))
        report(record.samples, record.num_bytes)
        return _ShardResult(item, record.samples, record.num_bytes, tuple(problems), packed)

    def _packed(self, shard: int) -> ShardRecord | None:
        try:
            schema = pq.read_schema(pa.BufferReader(self.dataset.sidecar(shard)))
            return sidecar_record(schema, self.dataset.shards.name(shard))[0]
        except (CorruptError, NotFoundError, pa.ArrowException):
            return None  # looking at the shard tells what is wrong with it

    def _problems(
        self, shard: int, record: ShardRecord, packed: ShardRecord | None
    ) -> Iterator[Problem]:
        name = record.name
        if self.dataset.shards.adopted is not None:
            yield from check_adopted(self.dataset, shard)
            return
        try:
            with _mapped(self.dataset.shard_url(shard), self.dataset.store) as tar:
                try:
                    offsets = self.dataset.offsets(shard)
                    exts = self.dataset.manifest.members if packed is None else packed.members
                    layout = self.dataset.layout(shard, exts=tuple(exts))
                except (CorruptError, NotFoundError, pa.ArrowException) as error:
                    yield Problem(name, None, str(error))
                    yield from check_lone_tar(tar, name)[1]
                    return
                yield from check_shard(tar, record, offsets, layout)
        except NotFoundError as error:
            yield Problem(name, None, str(error))


@dataclass(frozen=True)
class _VerifyTar:
    urls: tuple[str, ...]
    store: Store

    def __call__(self, item: int, report: Report) -> _ShardResult:
        url = self.urls[item]
        try:
            with _mapped(url, self.store) as tar:
                num_samples, problems = check_lone_tar(tar, url)
                size = len(tar)
        except NotFoundError as error:
            num_samples, size, problems = 0, 0, [Problem(url, None, str(error))]
        report(num_samples, size)
        return _ShardResult(item, num_samples, size, tuple(problems))


def shard_record(dataset: PackedDataset, shard: int) -> ShardRecord:
    """A shard's row of the shard table."""
    table = dataset.shards
    return ShardRecord(
        name=table.name(shard),
        rows=int(table.rows[shard]),
        samples=int(table.samples[shard]),
        num_bytes=int(table.num_bytes[shard]),
        tar_xxh3=int(table.tar_xxh3[shard]),
        idx_xxh3=int(table.idx_xxh3[shard]),
        sidecar_xxh3=int(table.sidecar_xxh3[shard]),
    )


@contextlib.contextmanager
def _mapped(url: str, store: Store) -> Iterator[memoryview]:
    """A whole file as memory: a local one in place, a remote one through a temporary."""
    if is_local(url):
        with contextlib.ExitStack() as stack:
            with map_os_errors("read", url):
                file = stack.enter_context(open(local_path(url), "rb"))
            yield stack.enter_context(_mapped_file(file))
        return
    with tempfile.TemporaryFile() as copy:
        for chunk in store.get_chunks(url):
            with map_os_errors("write", f"a copy of {url} in {tempfile.gettempdir()}"):
                copy.write(chunk)
        copy.flush()
        with _mapped_file(copy) as view:
            yield view


@contextlib.contextmanager
def _mapped_file(file: IO[bytes]) -> Iterator[memoryview]:
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        yield memoryview(b"")
        return
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        with memoryview(mapped) as view:
            yield view
