"""The store that everyone uses: picks who serves a URL, and opens it on first use.

obstore speaks to object stores and web servers, fsspec to every other scheme and to whoever asks
for it; paths of this machine are plain files. Bare paths and URLs of any scheme may be mixed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from shardkit.errors import ConfigError, StoreError
from shardkit.storage.forks import importing, start_anew_in_children
from shardkit.storage.local import LocalStore
from shardkit.storage.options import Options, parse_options
from shardkit.storage.protocol import Chunk, ObjectInfo, Store
from shardkit.storage.urls import is_local, local_path, scheme_of

if TYPE_CHECKING:
    from shardkit.storage.plain_get import PlainRequest

__all__ = ["Client", "ObjectInfo", "Store", "is_local", "local_path", "open_store"]

Client = Literal["auto", "obstore", "fsspec"]

_OBSTORE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_HTTP = frozenset({"http", "https"})
_SIGNED = frozenset({"s3", "s3a"})


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
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_RoutedStore], tuple[Options, Client]]:
        return _RoutedStore, (self._options, self._client)

    def __repr__(self) -> str:
        return f"open_store({self._options}, client={self._client!r})"

    def stat(self, url: str) -> ObjectInfo:
        return self._of(url).stat(url)

    def get(self, url: str) -> bytes:
        return self._of(url).get(url)

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        return self._of(url).get_versioned(url)

    def requests(self, urls: Sequence[str]) -> Sequence[PlainRequest | None]:
        stores = [self._of(url) for url in urls]
        found: list[PlainRequest | None] = [None] * len(urls)
        for store in {id(store): store for store in stores}.values():
            numbers = [n for n, one in enumerate(stores) if one is store]
            requests = store.requests([urls[n] for n in numbers])
            for n, request in zip(numbers, requests, strict=True):
                found[n] = request
        return found

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        return self._of(url).get_range(url, start, stop)

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return self._of(url).get_ranges(url, ranges)

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return self._of(url).get_chunks(url, start, stop)

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        self._of(url).stream_to(url, write, start, stop)

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
        scheme = scheme_of(url)
        if self._client == "fsspec" or (scheme not in _OBSTORE and scheme not in _HTTP):
            return self._far_store("fsspec")
        if scheme in _HTTP:
            return self._far_store("http")
        if self._options.extra:
            return self._refuse_extra(url)
        if not _obstore_is_usable() or not _obstore_can_spell(url):
            if self._client == "obstore":
                raise StoreError(
                    f"{url}: obstore can't serve it here (an odd key, or a process forked after "
                    "the parent used obstore); use client='auto', or spawn processes"
                )
            return self._far_store("signed" if self._may_sign(url) else "fsspec")
        return self._far_store("obstore")

    def _may_sign(self, url: str) -> bool:
        return scheme_of(url) in _SIGNED and _obstore_can_spell(url)

    def _refuse_extra(self, url: str) -> Store:
        if self._client == "obstore":
            raise ConfigError(
                f"storage_options {sorted(self._options.extra)} are unknown to obstore ({url}); "
                "drop them or use client='fsspec'"
            )
        return self._far_store("fsspec")

    def _far_store(self, name: str) -> Store:
        with self._lock:
            if name not in self._far:
                self._far[name] = _open_far(name, self._options)
            return self._far[name]


def _open_far(name: str, options: Options) -> Store:
    """Import and make a store; each brings a heavy library that local use never needs."""
    with importing:
        return _import_far(name, options)


def _import_far(name: str, options: Options) -> Store:
    if name == "obstore":
        from shardkit.storage.obstore_store import ObstoreStore  # noqa: PLC0415 - heavy

        return ObstoreStore(options)
    if name == "http":
        from shardkit.storage.http_store import HttpStore  # noqa: PLC0415 - heavy

        return HttpStore(options)
    if name == "signed":
        from shardkit.storage.signed_store import SignedStore  # noqa: PLC0415 - heavy

        return SignedStore(options)
    from shardkit.storage.fsspec_store import FsspecStore  # noqa: PLC0415 - heavy

    return FsspecStore(options)


def _obstore_is_usable() -> bool:
    return _imported_check()()


@functools.cache
def _imported_check() -> Callable[[], bool]:
    with importing:
        from shardkit.storage.obstore_store import is_usable  # noqa: PLC0415 - heavy

        return is_usable


def _obstore_can_spell(url: str) -> bool:
    """Can obstore name this key? Its paths have no empty and no dot segments."""
    _, _, key = url.split("://", 1)[1].partition("/")
    return not key or not any(part in ("", ".", "..") for part in key.rstrip("/").split("/"))
