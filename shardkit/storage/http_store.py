"""The store for web servers: reads only, through our own plain client."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence

from shardkit.errors import NotFoundError, StoreError
from shardkit.storage.bodies import Body, OpenBody, read_body, read_versioned, stream_body
from shardkit.storage.boundary import short_range
from shardkit.storage.http_client import BUFFER, HttpClient, RangePastEndError, plain_url
from shardkit.storage.options import Options
from shardkit.storage.plain_get import PlainGetter, PlainRequest, origin_of
from shardkit.storage.protocol import Chunk, ObjectInfo
from shardkit.storage.ranges import fetch_ranges
from shardkit.storage.retry import retried

__all__ = ["HttpStore"]

logger = logging.getLogger(__name__)

_USUAL = re.compile(r"https?://[^/?#@]+/")


class HttpStore:
    """``http://`` and ``https://`` URLs, queries included. See ``Store`` for the contract."""

    def __init__(self, options: Options, address: Callable[[str, str], str] | None = None) -> None:
        """``address`` says where a URL is asked with a method; as it is, if nothing is given."""
        self._options = options
        self._address = address or _as_it_is
        self._patience = options.patience
        self._client = HttpClient(options.headers, options.stall_s)
        self._plain = PlainGetter(options.headers, options.stall_s)

    def __reduce__(self) -> tuple[type[HttpStore], tuple[Options]]:
        return HttpStore, (self._options,)

    def stat(self, url: str) -> ObjectInfo:
        """Return what HEAD tells: size, and etag or time of the last change."""
        size, version = retried(
            self._patience, url, lambda: self._client.head(self._address("HEAD", url), url)
        )
        return ObjectInfo(url, size, version)

    def get(self, url: str) -> bytes:
        """Return a whole object."""
        return self.get_versioned(url)[0]

    def get_versioned(self, url: str) -> tuple[bytes, str]:
        """Return a whole object, and its version as the answer tells it.

        Plainly where the server takes that and nothing breaks.
        """
        address = _without_fragment(self._address("GET", url))
        if address.startswith("http://") and self._is_plain(address):
            try:
                return self._plain.get(address, url)
            except NotFoundError:
                raise
            except StoreError as error:
                logger.debug("%s is not read plainly: %s", url, error)
        return read_versioned(url, self._opener(url), self._patience)

    def requests(self, urls: Sequence[str]) -> Sequence[PlainRequest | None]:
        """Return what asks plainly for each object."""
        return [self._request(url) for url in urls]

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``."""
        if start == stop:
            return b""
        return read_body(url, self._opener(url), self._patience, start, stop)

    def get_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return each range; near ones in one request, several requests at once."""
        return fetch_ranges(ranges, lambda start, stop: self.get_range(url, start, stop))

    def get_chunks(self, url: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Stream ``[start, stop)``."""
        opener = self._opener(url)
        return map(bytes, stream_body(url, opener, self._patience, start, stop))

    def stream_to(
        self, url: str, write: Callable[[Chunk], None], start: int = 0, stop: int | None = None
    ) -> None:
        """Hand ``[start, stop)`` to ``write`` through one small buffer."""
        opener = self._opener(url, memoryview(bytearray(BUFFER)))
        for chunk in stream_body(url, opener, self._patience, start, stop):
            write(chunk)

    def put(self, url: str, data: bytes) -> None:
        """Web servers are read only."""
        del data
        raise _read_only(url)

    def put_file(self, url: str, path: str) -> None:
        """Web servers are read only."""
        del path
        raise _read_only(url)

    def list(self, url: str) -> Iterator[ObjectInfo]:
        """Web servers tell no list of their objects."""
        raise StoreError(
            f"cannot list {url}: http has no folders; name the objects in an index or a list file"
        )

    def delete(self, url: str) -> None:
        """Web servers are read only."""
        raise _read_only(url)

    def _request(self, url: str) -> PlainRequest | None:
        address = _without_fragment(self._address("GET", url))
        return self._plain.request(address) if self._is_plain(address) else None

    def _is_plain(self, address: str) -> bool:
        return _USUAL.match(address) is not None and self._plain.is_worthwhile(origin_of(address))

    def _opener(self, url: str, buffer: memoryview | None = None) -> OpenBody:
        def size_of() -> int:
            return self.stat(url).size

        def open_body(start: int, stop: int | None) -> Body:
            try:
                address = self._address("GET", url)
                return self._client.open(address, url, start, stop, size_of, buffer=buffer)
            except RangePastEndError as error:
                end = start if stop is None else stop
                raise short_range(url, start, end, size_of()) from error

        return open_body


def _as_it_is(method: str, url: str) -> str:
    del method
    return url


def _without_fragment(url: str) -> str:
    return plain_url(url.partition("#")[0])


def _read_only(url: str) -> StoreError:
    return StoreError(f"cannot write {url}: web servers are read only; write to s3:// or a folder")
