"""``shardkit cat OUT KEY [EXT]``: one sample, or the bytes of one of its members."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow.compute as pc

from shardkit.cli.arguments import add_storage_arguments, storage_options
from shardkit.cli.echo import echo, echo_bytes
from shardkit.errors import CorruptError, NotFoundError
from shardkit.format.keys import fit_key
from shardkit.format.metadata import jsonable
from shardkit.format.parquet_bytes import parquet_table
from shardkit.format.sidecar import KEY, member_exts
from shardkit.format.sizes import show_size
from shardkit.format.tar import checksum
from shardkit.index.shards import PackedDataset
from shardkit.storage.store import open_store

__all__ = ["add_arguments", "run"]

_READERS = 16  # sidecars looked through at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="OUT", help="folder or URL of a packed dataset")
    parser.add_argument("key", metavar="KEY", help="key of the sample, as in the index")
    parser.add_argument("ext", metavar="EXT", nargs="?", help="write this member's bytes")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Find the sample by the sidecars' keys, then read one range."""
    dataset = PackedDataset.open(args.dataset, open_store(storage_options(args)))
    adopted = dataset.manifest.adopted is not None  # keys are then as the tars spell them
    key = args.key if adopted else fit_key(args.key)
    num_shards = len(dataset.shards)
    with ThreadPoolExecutor(_READERS, "shardkit-cat") as pool:
        found = pool.map(lambda shard: _rows(dataset.sidecar(shard), key), range(num_shards))
        for shard, table in enumerate(found):
            if table:
                pool.shutdown(wait=False, cancel_futures=True)
                exts, row = table
                return _show(dataset, shard, exts, row, args.ext)
    raise NotFoundError(f"{dataset.url} has no sample with key {args.key!r}")


def _rows(sidecar: bytes, key: str) -> tuple[list[str], dict[str, object]] | None:
    table = parquet_table(sidecar)
    row = pc.index(table[KEY], key).as_py()
    if row < 0:
        return None
    return member_exts(table.schema), table.slice(row, 1).to_pylist()[0]


def _show(
    dataset: PackedDataset, shard: int, exts: list[str], row: dict[str, object], ext: str | None
) -> int:
    url = dataset.shard_url(shard)
    dataset.places.check_unchanged(shard)
    places = {name: place for name in exts if isinstance(place := row[name], dict)}
    if ext is not None:
        place = places.get(ext.lower().lstrip("."))
        if place is None:
            raise NotFoundError(f"key {row[KEY]!r} has no member {ext!r}; it has {sorted(places)}")
        start = place["offset"]
        data = dataset.store.get_range(url, start, start + place["size"])
        if place["xxh3"] not in (None, checksum(data)):
            raise CorruptError(f"{url}: key {row[KEY]!r}: {ext!r} fails its checksum")
        echo_bytes(data)
        return 0
    echo(f"{row[KEY]} in {url}")
    for name, place in places.items():
        size = show_size(place["size"])
        proof = "" if place["xxh3"] is None else f"  xxh3 {place['xxh3']:016x}"
        echo(f"  {name:<16} {size:>10} at {place['offset']:,}{proof}")
    metadata = {name: value for name, value in row.items() if name != KEY and name not in exts}
    echo(json.dumps(jsonable(metadata), ensure_ascii=False, indent=2))
    return 0
