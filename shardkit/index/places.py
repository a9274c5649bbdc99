"""Where the files of a packed dataset are: tars, sidecars and offsets, beside each other or not."""

from __future__ import annotations

from dataclasses import dataclass

from shardkit.errors import CorruptError, NotFoundError
from shardkit.format.manifest import MANIFEST_NAME, SHARDS_NAME, Manifest, ShardTable, idx_name
from shardkit.storage.protocol import Store
from shardkit.storage.urls import given_url

__all__ = ["ShardPlaces", "is_adopted"]


@dataclass(frozen=True)
class ShardPlaces:
    """URLs of the files of every shard, and whether a tar is still the one that was adopted.

    Attributes:
        url: of the folder with the manifest.
        manifest: of it.
        shards: the shard table.
        store: reads it.
    """

    url: str
    manifest: Manifest
    shards: ShardTable
    store: Store

    @classmethod
    def open(cls, url: str, store: Store) -> ShardPlaces:
        """Load manifest and shard table; nothing else is read.

        Raises:
            NotFoundError: there is no manifest: not a packed dataset, or its pack has not ended.
            CorruptError: the shard table is missing, or not the manifest's.
        """
        url = given_url(url).rstrip("/").removesuffix(f"/{MANIFEST_NAME}")
        manifest_url = f"{url}/{MANIFEST_NAME}"
        try:
            manifest = Manifest.decode(store.get(manifest_url), manifest_url)
        except NotFoundError as error:
            raise NotFoundError(
                f"{url} has no {MANIFEST_NAME}: it is no packed dataset, or packing it has not "
                "ended; run the same `shardkit pack` again to end it"
            ) from error
        shards_url = f"{url}/{SHARDS_NAME}"
        try:
            shards = store.get(shards_url)
        except NotFoundError as error:
            raise CorruptError(
                f"{shards_url} is missing, without which the dataset can't be read: copy it again, "
                "or pack anew into a new folder"
            ) from error
        return cls(url, manifest, manifest.check_shards(shards, shards_url), store)

    @property
    def tars(self) -> str:
        """URL of the folder that the names of tars are relative to, with ``/`` at its end."""
        adopted = self.manifest.adopted
        return f"{self.url}/" if adopted is None or not adopted.tars else adopted.tars

    def tar(self, shard: int) -> str:
        """URL of a shard's tar."""
        return self.tars + self.shards.name(shard)

    def sidecar(self, shard: int) -> str:
        """URL of a shard's sidecar."""
        return f"{self.url}/{self.shards.sidecar(shard)}"

    def idx(self, shard: int) -> str:
        """URL of a shard's offsets."""
        return f"{self.url}/{idx_name(self.shards.name(shard))}"

    def checksum(self, shard: int) -> int | None:
        """XXH3-64 of the whole tar; None where it was adopted by its headers alone."""
        adopted = self.shards.adopted
        if adopted is not None and not adopted.proved[shard]:
            return None
        return int(self.shards.tar_xxh3[shard])

    def version(self, shard: int) -> str:
        """Text that changes when a shard's contents do."""
        known = self.checksum(shard)
        if known is not None or self.shards.adopted is None:
            return f"xxh3:{known or 0:016x}"
        return str(self.shards.adopted.versions[shard].as_py())

    def check_unchanged(self, shard: int) -> None:
        """Ask the store whether a tar that nothing else proves is the one that was adopted.

        Raises:
            CorruptError: it is another.
        """
        if self.checksum(shard) is not None:
            return
        url = self.tar(shard)
        found = self.store.stat(url)
        known = (int(self.shards.num_bytes[shard]), self.version(shard))
        if (found.size, found.version) != known:
            raise CorruptError(
                f"{url} has changed since it was adopted: {found.size:,} bytes, version "
                f"{found.version!r}; then it was {known[0]:,} bytes, {known[1]!r}. Run the same "
                "`shardkit index` again: what has not changed is taken over"
            )


def is_adopted(url: str, store: Store) -> bool:
    """Whether a folder's manifest is of tars that were adopted."""
    manifest_url = f"{url.rstrip('/')}/{MANIFEST_NAME}"
    return Manifest.decode(store.get(manifest_url), manifest_url).adopted is not None
