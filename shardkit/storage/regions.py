"""Which region an S3 bucket lies in: the server says so even to who asks in the wrong one."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

__all__ = ["region_of"]

_WAIT_S = 10.0


def region_of(bucket: str, endpoint_url: str | None) -> str | None:
    """Return what ``x-amz-bucket-region`` says of a bucket; ``None`` if nobody says anything.

    Source: the S3 API reference, HeadBucket; the header comes with status 200, 301, 400 and 403.
    """
    url = urlsplit(endpoint_url or "https://s3.amazonaws.com")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=_WAIT_S)
    try:
        connection.request("HEAD", f"{url.path.rstrip('/')}/{bucket}")
        return connection.getresponse().headers.get("x-amz-bucket-region")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
