"""The store over obstore: S3, Google and Azure, many objects at once at little cost.

obstore's threads do not survive a fork, and touching its objects in a forked child can hang the
child and the parent too. So a child that was forked after first use gets ``is_usable() == False``
and must go elsewhere; what it inherited is kept unreachable and never freed.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
import obstore.exceptions
import obstore.store

from shardkit.errors import ConfigError, NotFoundError, ShardkitError, StoreError, TransientError
from shardkit.storage.bodies import Body, OpenBody, read_body, read_versioned, stream_body
from shardkit.storage.boundary import short_range, store_error, untrusted
from shardkit.storage.forks import keep_for_ever, start_anew_in_children
from shardkit.storage.http_client import BUFFER, HttpClient, RangePastEndError
from shardkit.storage.obstore_clients import DEFAULT_REGION, open_client
from shardkit.storage.options import Options
from shardkit.storage.plain_get import PlainGetter, PlainRequest, origin_of
from shardkit.storage.protocol import Chunk, ObjectInfo
from shardkit.storage.ranges import fetch_ranges
from shardkit.storage.regions import region_of
from shardkit.storage.retry import Attempts, retried
from shardkit.storage.urls import scheme_of

__all__ = ["ObstoreStore", "is_usable"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Bytes a chunk of a streamed body: 1 MiB was faster than 8 and took less processor time."""

PART = 16 << 20
"""Bytes a part of an upload; S3 wants at least 5 MiB, and at most 10,000 parts."""

_UPLOADS = 4
_SIGNED_FOR = timedelta(hours=1)
_NOT_PARTIAL = re.compile(r"NotPartial|RangeNotSupported|non-partial response")
_PAST_END = re.compile(
    r"status code: 416\b|\(416 [A-Z]|InvalidRange|InvalidGetRange|greater than the length|"
    r"StartTooLarge"
)
_ELSEWHERE = re.compile(
    r"redirect without LOCATION|PermanentRedirect|AuthorizationHeaderMalformed|"
    r"IllegalLocationConstraint"
)
_UNTRUSTED = re.compile(r"InvalidCertificate\(\s*(\w+)")
_STATUS = re.compile(r"status code: (\d{3})|\((\d{3}) [A-Z][A-Za-z ]+\)")
_REASON = re.compile(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", re.DOTALL)


class _Inheritance:
    """What this process was born with: clients of a parent that must not be touched or freed."""

    def __init__(self) -> None:
        self.used = False
        self.usable = True
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        self.usable = self.usable and not self.used


_inheritance = _Inheritance()


def is_usable() -> bool:
    """May obstore run in this process? Not if a parent had used it before it forked us."""
    return _inheritance.usable


class ObstoreStore:
    """``s3://``, ``gs://`` and ``az://`` URLs. See ``Store`` for the contract."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._patience = options.patience
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str, int], Any] = {}  # guarded by _lock
        self._signed = HttpClient({}, options.stall_s)
        self._plain = PlainGetter({}, options.stall_s)
        # Buckets whose objects can't be had plainly: set once, only grows.
        self._not_plain: set[str] = set()
        # Buckets whose objects can't be asked for together: set once, only grows.
        self._not_together: set[str] = set()
        # Buckets whose server was seen to answer ranges as obstore wants it: set once, only grows.
        self._partial: set[str] = set()
        # Buckets whose server answers ranges in a way that obstore refuses: set once, only grows.
        self._refused: set[str] = set()
        # Buckets that give nothing for a signed URL: set once, only grows.
        self._unsigned: set[str] = set()
        start_anew_in_children(self)

    def __reduce__(self) -> tuple[type[ObstoreStore], tuple[Options]]:
        return ObstoreStore, (self._options,)

    def forget_parent(self) -> None:
        """Bury the parent's clients: to free them here would touch the parent's sockets."""
        keep_for_ever(self._clients)
        self._lock = threading.Lock()
        self._clients = {}

    def stat(self, url: str) -> ObjectInfo:
        """Return size and etag."""
        client, key, _ = self._reader(url)
        meta = self._retried("stat", url, lambda: obstore.head(client, key))
        return _object_info(url, meta)

    def get(self, url: str) -> bytes:
        """Return a whole object."""
        return self.get_versioned(url)[0]

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        """Return a whole object, and its version as the answer tells it.

        Plainly where the server takes that; else by one call into obstore unless something breaks.
        """
        client, key, bucket = self._reader(url)
        try:
            if (plain := self._get_plainly(client, key, bucket, url)) is not None:
                return plain
            found = obstore.get(client, key)
            return bytes(found.bytes()), _version(found.meta)
        except Exception as error:
            mapped = self._mapped("read", url, error)
            if not isinstance(mapped, TransientError):
                raise mapped from error
        return read_versioned(url, self._opener(url), self._patience)

    def requests(self, urls: Sequence[str]) -> Sequence[PlainRequest | None]:
        """Return what asks plainly for each object; those of one bucket are signed together."""
        found: list[PlainRequest | None] = [None] * len(urls)
        places = [self._reader(url) for url in urls]
        for bucket in {bucket for _, _, bucket in places} - self._not_together:
            numbers = [n for n, place in enumerate(places) if place[2] == bucket]
            client, keys = places[numbers[0]][0], [places[n][1] for n in numbers]
            for n, url in zip(numbers, self._signed_together(client, keys, bucket), strict=True):
                found[n] = self._plain.request(url) if url else None
        return found

    def _signed_together(self, client: Any, keys: list[str], bucket: str) -> Sequence[str]:
        """URLs, "" where that is not the way: to sign may cost a request elsewhere than on S3."""
        if bucket.startswith(("s3:", "s3a:")):
            try:
                signed = obstore.sign(client, "GET", keys, _SIGNED_FOR)
            except obstore.exceptions.BaseError as error:
                logger.debug("%s is not read plainly: %s", bucket, error)
            else:
                if self._plain.is_worthwhile(origin_of(signed[0])):
                    return signed
        self._not_together.add(bucket)
        return [""] * len(keys)

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``."""
        if start == stop:
            return b""
        client, key, bucket = self._reader(url)
        if self._is_for_obstore(bucket):
            try:
                data = bytes(obstore.get_range(client, key, start=start, end=stop))
                if len(data) == stop - start:
                    return data
                raise short_range(url, start, stop, start + len(data))
            except Exception as error:
                if not self._note_refusal(bucket, error):
                    mapped = self._mapped_range(url, start, stop, error)
                    if not isinstance(mapped, TransientError):
                        raise mapped from error
        return read_body(url, self._opener(url), self._patience, start, stop)

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return each range; near ones in one request, several requests at once."""
        return fetch_ranges(ranges, lambda start, stop: self.get_range(url, start, stop))

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Stream ``[start, stop)``."""
        return map(bytes, stream_body(url, self._opener(url), self._patience, start, stop))

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        """Hand ``[start, stop)`` to ``write``, through a signed URL where that can be had.

        obstore signs and our plain client receives into one small buffer: with as few copies as
        Python can.
        """
        opener = self._opener(url, memoryview(bytearray(BUFFER)))
        for chunk in stream_body(url, opener, self._patience, start, stop):
            write(chunk)

    def put(self, url: str, data: bytes) -> None:
        """Write an object with one PUT, or in parts if it is big."""
        client, key, _ = self._reader(url) if len(data) <= PART else self._writer(url)
        self._retried(
            "write",
            url,
            lambda: obstore.put(client, key, data, chunk_size=PART, max_concurrency=_UPLOADS),
        )

    def put_file(self, url: str, path: str) -> None:
        """Write a local file's content in parts, a few at once."""
        client, key, _ = self._writer(url)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
        part = max(PART, math.ceil(size / 9_000))
        self._retried(
            "write",
            url,
            lambda: obstore.put(client, key, Path(path), chunk_size=part, max_concurrency=_UPLOADS),
        )

    def list(self, url: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder, as the far end lists them: sorted by key."""
        client, prefix, _ = self._reader(url)
        base = url[: len(url) - len(prefix)] if prefix else url.rstrip("/") + "/"
        folder = prefix.rstrip("/") or None
        last: str | None = None

        def open_after() -> Iterator[Any]:
            return iter(obstore.list(client, folder, offset=last, chunk_size=1000))

        stream = open_after()
        attempts = Attempts(self._patience, url)
        while True:
            try:
                batch = next(stream, None)
            except Exception as error:
                mapped = self._mapped("list", url, error)
                if not isinstance(mapped, TransientError):
                    raise mapped from error
                attempts.failed(mapped)
                stream = open_after()
                continue
            if batch is None:
                return
            attempts.succeeded()
            for meta in batch:
                last = str(meta["path"])
                yield _object_info(base + last, meta)

    def delete(self, url: str) -> None:
        """Delete one object if it is there."""
        client, key, _ = self._reader(url)
        try:
            self._retried("delete", url, lambda: obstore.delete(client, key))
        except FileNotFoundError:
            return

    def _get_plainly(
        self, client: Any, key: str, bucket: str, url: str
    ) -> tuple[bytes, str] | None:
        """Return an object through a signed URL, if its server speaks plain HTTP.

        Raises:
            NotFoundError, TransientError: as obstore would.
        """
        if bucket in self._not_plain:
            return None
        try:
            signed = obstore.sign(client, "GET", key, _SIGNED_FOR)
        except obstore.exceptions.BaseError as error:
            logger.debug("%s is not read plainly: %s", bucket, error)
            signed = ""
        if not signed.startswith("http://") or not self._plain.is_worthwhile(origin_of(signed)):
            self._not_plain.add(bucket)
            return None
        try:
            return self._plain.get(signed, url)
        except (NotFoundError, TransientError):
            raise
        except StoreError as error:
            logger.debug("%s is not read plainly: %s", url, error)
            return None

    def _opener(self, url: str, buffer: memoryview | None = None) -> OpenBody:
        """Return what asks for a body: plainly if there is a buffer to use, or no other way."""
        client, key, bucket = self._reader(url)

        def open_body(start: int, stop: int | None) -> Body:
            is_range = start > 0 or stop is not None
            if bucket in self._refused and is_range:
                return self._open_signed(url, start, stop, buffer)
            is_ours = buffer is not None or (is_range and not self._is_for_obstore(bucket))
            if is_ours and bucket not in self._unsigned:
                try:
                    return self._open_signed(url, start, stop, buffer)
                except (NotFoundError, TransientError):
                    raise
                except StoreError:  # keys that cannot sign, servers that take no signed URL
                    self._unsigned.add(bucket)
            try:
                found = obstore.get(client, key, options=_range_options(start, stop))
            except Exception as error:
                if self._note_refusal(bucket, error):
                    return open_body(start, stop)
                raise self._mapped_range(url, start, stop or start, error) from error
            size = int(found.meta["size"])
            if stop is not None and stop > size:
                raise short_range(url, start, stop, size)
            end = size if stop is None else stop
            return Body(_version(found.meta), end, _chunks(url, found))

        return open_body

    def _open_signed(
        self, url: str, start: int, stop: int | None, buffer: memoryview | None
    ) -> Body:
        client, key, bucket = self._reader(url)
        try:
            signed = obstore.sign(client, "GET", key, _SIGNED_FOR)
        except Exception as error:
            raise StoreError(f"cannot sign a URL for {url}: {_first_line(error)}") from error

        def size_of() -> int:
            return self.stat(url).size

        try:
            body = self._signed.open(signed, url, start, stop, size_of, buffer=buffer)
        except RangePastEndError as error:
            end = start if stop is None else stop
            raise short_range(url, start, end, size_of()) from error
        if body.is_partial:
            self._partial.add(bucket)
        return body

    def _is_for_obstore(self, bucket: str) -> bool:
        """Whether obstore is to ask for ranges.

        It drops the answer of a server that gives them under status 200, and all would be asked for
        twice. So servers that may be like that are asked by our own client, until they have shown
        that they are not.
        """
        if bucket in self._refused:
            return False
        may_be_odd = bucket.startswith(("s3:", "s3a:")) and bucket not in self._unsigned
        return bucket in self._partial or not may_be_odd

    def _mapped_range(self, url: str, start: int, stop: int, error: Exception) -> Exception:
        """Map an error of a ranged read; one past the end of the object is its own kind."""
        if _PAST_END.search(str(error)):
            return short_range(url, start, stop, self.stat(url).size)
        return self._mapped("read", url, error)

    def _mapped(self, verb: str, url: str, error: Exception) -> Exception:
        """Map what obstore raised; a bucket of another region is asked which that is."""
        if _ELSEWHERE.search(str(error)) is None:
            return _mapped(verb, url, error)
        bucket = url.split("://", 1)[1].partition("/")[0]
        options = self._options.with_environment()
        region = region_of(bucket, options.endpoint_url)
        told = f"the bucket {bucket} does not lie in region {options.region or DEFAULT_REGION!r}"
        if region is None:
            advice = "find its region and give it"
        else:
            told, advice = f"{told} but in {region!r}", "give that one"
        return StoreError(
            f"cannot {verb} {url}: {told}; {advice} in storage_options={{'region': …}}, "
            "or as AWS_REGION"
        )

    def _note_refusal(self, bucket: str, error: BaseException) -> bool:
        """Was a range answered in a way that obstore refuses? Then sign URLs and fetch plainly."""
        if _NOT_PARTIAL.search(str(error)) is None:
            return False
        self._refused.add(bucket)
        return True

    def _retried(self, verb: str, url: str, ask: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return ask()
            except Exception as error:
                raise self._mapped(verb, url, error) from error

        return retried(self._patience, url, once)

    def _reader(self, url: str) -> tuple[Any, str, str]:
        """Return a client that does not retry by itself (we do instead), key and bucket."""
        return self._client(url, 0)

    def _writer(self, url: str) -> tuple[Any, str, str]:
        """Return a client that retries each part of an upload by itself."""
        return self._client(url, self._patience.max_attempts)

    def _client(self, url: str, max_retries: int) -> tuple[Any, str, str]:
        scheme = scheme_of(url)
        bucket, _, key = url.split("://", 1)[1].partition("/")
        if not bucket:
            raise ConfigError(f"{url!r} names no bucket")
        place = (scheme, bucket, max_retries)
        with self._lock:
            if place not in self._clients:
                _inheritance.used = True
                self._clients[place] = open_client(scheme, bucket, self._options, max_retries)
            return self._clients[place], key, f"{scheme}://{bucket}"


def _range_options(start: int, stop: int | None) -> Any:
    if stop is not None:
        return {"range": (start, stop)}
    return {"range": {"offset": start}} if start > 0 else {}


def _chunks(url: str, found: Any) -> Iterator[bytes]:
    try:
        for chunk in found.stream(min_chunk_size=CHUNK):
            yield bytes(chunk)
    except obstore.exceptions.BaseError as error:
        raise TransientError(f"{url}: the body broke: {_first_line(error)}") from error


def _version(meta: Any) -> str:
    if etag := meta["e_tag"]:
        return str(etag).removeprefix("W/").strip('"')
    return f"{meta['size']}-{meta['last_modified'].timestamp()}"


def _object_info(url: str, meta: Any) -> ObjectInfo:
    return ObjectInfo(url, int(meta["size"]), _version(meta))


def _first_line(error: BaseException) -> str:
    return str(error).split("\n\nDebug source", 1)[0].strip().replace("\n", " ")[:500]


def _mapped(verb: str, url: str, error: Exception) -> Exception:
    """Map what obstore raised. Its one ``GenericError`` holds the network's and the server's."""
    if isinstance(error, ShardkitError):
        return error
    if (found := _UNTRUSTED.search(str(error))) is not None:
        return untrusted(verb, url, found[1])
    status, reason = _STATUS.search(str(error)), _REASON.search(str(error))
    code = int(status[1] or status[2]) if status else 0
    said = ": ".join(filter(None, reason.groups())) if reason else _first_line(error)
    if reason and reason[1] == "NoSuchBucket":
        return NotFoundError(
            f"cannot {verb} {url}: {said}; check its name, and endpoint_url of storage_options"
        )
    if isinstance(error, FileNotFoundError):
        return store_error(verb, url, error)
    denied = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)
    if isinstance(error, denied) or code in (401, 403):
        return StoreError(f"cannot {verb} {url}: not permitted; check rights and keys ({said})")
    passes = not 400 <= code < 500 or code in (408, 425, 429)
    if passes and isinstance(error, obstore.exceptions.GenericError):
        return TransientError(f"cannot {verb} {url}: {said}")
    return StoreError(f"cannot {verb} {url}: {said}")
