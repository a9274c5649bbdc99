"""Where third-party and system errors become ours: the message names the URL and the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from shardkit.errors import (
    CorruptError,
    NotFoundError,
    ShardkitError,
    StoreError,
    TransientError,
)

__all__ = ["map_os_errors", "short_range", "store_error", "untrusted"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PASSING = (errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH)


def store_error(verb: str, url: str, error: BaseException) -> ShardkitError:
    """Return our error for what the system or a library raised while doing ``verb`` to ``url``."""
    if isinstance(error, ShardkitError):
        return error
    number = getattr(error, "errno", None)
    mapped: StoreError
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        mapped = NotFoundError(f"cannot {verb} {url}: there is no such object")
    elif isinstance(error, IsADirectoryError):
        mapped = NotFoundError(f"cannot {verb} {url}: it is a folder, not an object")
    elif isinstance(error, PermissionError):
        mapped = StoreError(f"cannot {verb} {url}: not permitted ({error}); check rights and keys")
    elif number in _FULL:
        mapped = StoreError(f"cannot {verb} {url}: the disk is full; make room and run again")
    elif isinstance(error, (TimeoutError, ConnectionError)) or number in _PASSING:
        mapped = TransientError(f"cannot {verb} {url}: {type(error).__name__}: {error}")
    else:
        mapped = StoreError(f"cannot {verb} {url}: {type(error).__name__}: {error}")
    mapped.errno = number
    return mapped


def untrusted(verb: str, url: str, reason: str) -> StoreError:
    """Return the error for a server whose certificate nobody vouches for."""
    return StoreError(
        f"cannot {verb} {url}: the certificate of the server is not trusted ({reason}); "
        "SSL_CERT_FILE may name a file of authorities that are (AWS_CA_BUNDLE for s3fs)"
    )


@contextmanager
def map_os_errors(verb: str, url: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``StoreError`` that names the URL."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise store_error(verb, url, error) from error


def short_range(url: str, start: int, stop: int, size: int) -> CorruptError:
    """Return the error for a range that reaches past the end of its object."""
    return CorruptError(
        f"{url} has {size} bytes, but bytes {start} to {stop} were asked for: it was cut or "
        "replaced since it was indexed; verify it, then fetch or pack it again"
    )
