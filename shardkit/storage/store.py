"""The store that everyone uses: picks who serves a URL, and opens it on first use.

obstore speaks to object stores and web servers, fsspec to every other scheme and to whoever asks
for it; paths of this machine are plain files. Bare paths and URLs of any scheme may be mixed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from shardkit.errors import ConfigError
from shardkit.storage.local import LocalStore
from shardkit.storage.options import Options, parse_options
from shardkit.storage.protocol import ObjectInfo, Store
from shardkit.storage.urls import is_local, local_path, scheme_of

__all__ = ["Client", "ObjectInfo", "Store", "is_local", "local_path", "open_store"]

Client = Literal["auto", "obstore", "fsspec"]

_OBSTORE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https"})


def open_store(
    storage_options: Mapping[str, Any] | None = None, *, client: Client = "auto"
) -> Store:
    """Return the store for URLs of any scheme; nothing is contacted or imported yet.

    Args:
        storage_options: see ``Options`` for the names; for s3 what is left open comes from the
            ``AWS_*`` environment and the AWS config files.
        client: ``"auto"`` is obstore where it can serve the scheme and process, else fsspec.
            ``"fsspec"`` (that is s3fs for s3) and ``"obstore"`` insist.

    Raises:
        ConfigError: an option contradicts another, or ``client`` is unknown.
    """
    if client not in get_args(Client):
        raise ConfigError(f"client={client!r}: must be one of {', '.join(get_args(Client))}")
    return _RoutedStore(parse_options(storage_options), client)


class _RoutedStore:
    """Sends each URL to the local, the obstore or the fsspec store. See ``Store``."""

    def __init__(self, options: Options, client: Client) -> None:
        self._options = options
        self._client = client
        self._local = LocalStore()
        self._lock = threading.Lock()
        self._far: dict[str, Store] = {}  # by client; guarded by _lock

    def __reduce__(self) -> tuple[type[_RoutedStore], tuple[Options, Client]]:
        return _RoutedStore, (self._options, self._client)

    def __repr__(self) -> str:
        return f"open_store({self._options}, client={self._client!r})"

    def stat(self, url: str) -> ObjectInfo:
        return self._of(url).stat(url)

    def get(self, url: str) -> bytes:
        return self._of(url).get(url)

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        return self._of(url).get_range(url, start, stop)

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return self._of(url).get_ranges(url, ranges)

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return self._of(url).get_chunks(url, start, stop)

    def put(self, url: str, data: bytes) -> None:
        self._of(url).put(url, data)

    def put_file(self, url: str, path: str) -> None:
        self._of(url).put_file(url, path)

    def list(self, url: str) -> Iterator[ObjectInfo]:
        return self._of(url).list(url)

    def delete(self, url: str) -> None:
        self._of(url).delete(url)

    def _of(self, url: str) -> Store:
        if is_local(url):
            return self._local
        return self._far_store("fsspec")

    def _far_store(self, client: str) -> Store:
        with self._lock:
            if client not in self._far:
                from shardkit.storage.fsspec_store import FsspecStore  # noqa: PLC0415 - heavy

                self._far[client] = FsspecStore(self._options)
            return self._far[client]
