"""The store over fsspec: every scheme that has a file system there, and s3fs for whoever asks."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

import fsspec

from shardkit.errors import (
    ConfigError,
    MissingDependencyError,
    NotFoundError,
    ShardkitError,
    StoreError,
    TransientError,
)
from shardkit.storage.boundary import short_range, store_error
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.options import Options
from shardkit.storage.protocol import Chunk, ObjectInfo
from shardkit.storage.ranges import fetch_ranges
from shardkit.storage.retry import retried
from shardkit.storage.urls import scheme_of

__all__ = ["FsspecStore"]

T = TypeVar("T")

CHUNK = 8 << 20
"""Bytes a request when streaming: fsspec has no open-ended bodies that could be resumed."""

_S3 = frozenset({"s3", "s3a"})
_HTTP = frozenset({"http", "https"})
_WHOLE_OR_NOT = frozenset({*_S3, *_HTTP, "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"})
"""Schemes whose writes appear whole or not at all; elsewhere we write aside and move."""

_FINAL = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FsspecStore:
    """Any URL that ``fsspec`` opens. See ``Store`` for the contract.

    File systems are made once a process and scheme, never taken from fsspec's own instance
    cache, so that nobody else's options or listings are met here.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._opened: dict[tuple[int, str], Any] = {}  # guarded by _lock
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        """Open file systems anew; the parent's belong to its event loop."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[FsspecStore], tuple[Options]]:
        return FsspecStore, (self._options,)

    def stat(self, url: str) -> ObjectInfo:
        """Return size and version, from the file system's ``info``."""
        info = self._call("stat", url, lambda fs, path: fs.info(path))
        if info.get("type") == "directory":
            raise store_error("stat", url, IsADirectoryError(url))
        return _object_info(url, info)

    def get(self, url: str) -> bytes:
        """Return a whole object."""
        return bytes(self._call("read", url, lambda fs, path: fs.cat_file(path)))

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        """Return a whole object, and its version as it was before: two requests.

        "" where the file system knows nothing of its files.
        """
        try:
            version = self.stat(url).version
        except (NotFoundError, TransientError):
            raise
        except StoreError:
            version = ""
        return self.get(url), version

    def requests(self, urls: Sequence[str]) -> Sequence[None]:
        """Nothing comes from here over plain HTTP."""
        return [None] * len(urls)

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``, also from a server that sends the whole object instead."""
        if start == stop:
            return b""
        try:
            data = self._call(
                "read", url, lambda fs, path: fs.cat_file(path, start=start, end=stop)
            )
        except (NotFoundError, TransientError):
            raise
        except StoreError as error:  # some servers refuse a range past the end, each its own way
            size = self.stat(url).size
            if stop > size >= 0:
                raise short_range(url, start, stop, size) from error
            raise
        if len(data) > stop - start:
            data = data[start:stop]
        if len(data) < stop - start:
            size = self.stat(url).size
            if size >= stop:
                raise TransientError(
                    f"{url}: got {len(data)} bytes for the range {start} to {stop}"
                )
            raise short_range(url, start, stop, size)
        return bytes(data)

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return each range; near ones in one request."""
        return fetch_ranges(ranges, lambda start, stop: self.get_range(url, start, stop))

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Stream ``[start, stop)``, a request for every 8 MiB."""
        if stop is None:
            stop = self.stat(url).size
            if stop < 0:  # a web server that tells no size
                yield self.get(url)[start:]
                return
        while start < stop:
            end = min(start + CHUNK, stop)
            yield self.get_range(url, start, end)
            start = end

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        """Hand ``[start, stop)`` to ``write``, chunk by chunk."""
        for chunk in self.get_chunks(url, start, stop):
            write(chunk)

    def put(self, url: str, data: bytes) -> None:
        """Write an object."""
        self._write(url, lambda fs, path: fs.pipe_file(path, data))

    def put_file(self, url: str, path: str) -> None:
        """Write a local file's content."""
        self._write(url, lambda fs, target: fs.put_file(path, target))

    def list(self, url: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder, sorted by URL."""
        scheme = scheme_of(url)
        found = self._call("list", url, _find)
        infos = [(_full_url(scheme, name), info) for name, info in found.items()]
        for full, info in sorted(infos, key=lambda pair: pair[0]):
            yield _object_info(full, info)

    def delete(self, url: str) -> None:
        """Delete one object if it is there."""
        try:
            self._call("delete", url, lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            return

    def _write(self, url: str, write: Callable[[Any, str], None]) -> None:
        def whole(fs: Any, path: str) -> None:
            if scheme_of(url) in _WHOLE_OR_NOT:
                write(fs, path)
                return
            folder = path.rsplit("/", 1)[0]
            fs.makedirs(folder, exist_ok=True)
            aside = f"{folder}/.shardkit-aside-{secrets.token_hex(8)}"
            try:
                write(fs, aside)
                fs.mv(aside, path)
            except BaseException:
                if fs.exists(aside):
                    fs.rm_file(aside)
                raise

        self._call("write", url, whole)

    def _call(self, verb: str, url: str, ask: Callable[[Any, str], T]) -> T:
        fs = self._file_system(url)
        path = fs._strip_protocol(url)  # noqa: SLF001 - fsspec's documented hook for paths

        def once() -> T:
            try:
                return ask(fs, path)
            except ShardkitError:
                raise
            except Exception as error:
                raise _mapped(verb, url, error) from error

        return retried(self._options.patience, url, once)

    def _file_system(self, url: str) -> Any:
        scheme = url.split("://", 1)[0] if "::" in url else scheme_of(url)
        key = (os.getpid(), scheme)
        with self._lock:
            if key not in self._opened:
                self._opened[key] = _open_file_system(url, scheme, self._options)
            return self._opened[key]


def _open_file_system(url: str, scheme: str, options: Options) -> Any:
    arguments = {"skip_instance_cache": True, "use_listings_cache": False, **options.extra}
    if scheme in _S3:
        arguments |= _s3_arguments(options.with_environment())
    elif scheme in _HTTP:
        import aiohttp  # noqa: PLC0415 - fsspec brings it, for http alone

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=options.stall_s)
        arguments["client_kwargs"] = {
            "timeout": timeout,
            "headers": dict(options.headers),
            **arguments.get("client_kwargs", {}),
        }
    elif scheme in ("gs", "gcs"):
        token = "anon" if options.anon else options.token
        arguments |= _given(token=token, endpoint_url=options.endpoint_url)
    elif scheme in ("az", "abfs", "abfss"):
        arguments |= _given(
            account_name=options.account_name,
            account_key=options.account_key,
            sas_token=options.sas_token,
            anon=options.anon,
        )
    try:
        if "::" in url:
            fs, _ = fsspec.core.url_to_fs(url, **options.extra)
            return fs
        fs = fsspec.filesystem(scheme, **arguments)
    except ImportError as error:
        raise MissingDependencyError(f"{scheme}:// needs a library: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot open {scheme}://: {error}; see fsspec's list of known file systems"
        ) from error
    if scheme in _S3:
        fs.retries = 1  # ours is the one retry policy
    return fs


def _s3_arguments(options: Options) -> dict[str, Any]:
    config = {
        "connect_timeout": 10,
        "read_timeout": options.stall_s,
        "retries": {"max_attempts": 1},  # ours is the one retry policy
        "max_pool_connections": 32,
        # S3-compatible servers send the whole object's checksum with a range, or know none
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **options.extra.get("config_kwargs", {}),
    }
    client = _given(region_name=options.region) | dict(options.extra.get("client_kwargs", {}))
    return {"client_kwargs": client, "config_kwargs": config} | _given(
        key=options.key,
        secret=options.secret,
        token=options.token,
        endpoint_url=options.endpoint_url,
        profile=options.profile,
        anon=options.anon,
    )


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _mapped(verb: str, url: str, error: Exception) -> Exception:
    """Map what a file system raised: what is neither final nor a full disk may be retried."""
    if isinstance(error, _FINAL) or getattr(error, "errno", None) in _FULL:
        return store_error(verb, url, error)
    if getattr(error, "status", None) in (401, 403):
        return store_error(verb, url, PermissionError(str(error)))
    if getattr(error, "errno", None) == errno.EINVAL or getattr(error, "status", None) == 416:
        return store_error(verb, url, error)
    if isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return store_error(verb, url, error)
    return TransientError(f"cannot {verb} {url}: {type(error).__name__}: {error}")


def _find(fs: Any, path: str) -> dict[str, Any]:
    found = fs.find(path, detail=True)
    return {name: info for name, info in found.items() if name.rstrip("/") != path.rstrip("/")}


def _full_url(scheme: str, name: str) -> str:
    return name if "://" in name else f"{scheme}://{name.lstrip('/')}"


def _object_info(url: str, info: dict[str, Any]) -> ObjectInfo:
    size = info.get("size")
    size = -1 if size is None else int(size)
    etag = next((info[n] for n in ("ETag", "etag", "e_tag", "blob_id") if info.get(n)), None)
    if etag is not None:
        return ObjectInfo(url, size, str(etag).strip('"'))
    names = ("mtime", "LastModified", "last_modified", "last_commit", "updated", "created")
    changed = next((info[n] for n in names if info.get(n)), None)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return ObjectInfo(url, size, "" if changed is None else f"{size}-{changed}")
