"""URLs of S3 that carry their own signature (AWS Signature Version 4, in the query), by ourselves.

For processes in which obstore can't be used. Source: "Authenticating Requests: Using Query
Parameters" of the S3 API reference.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from shardkit.errors import ConfigError
from shardkit.storage.forks import start_anew_in_children
from shardkit.storage.options import Options

__all__ = ["Signer"]

_SIGNED_FOR_S = 3_600
_DEFAULT_REGION = "us-east-1"


class Signer:
    """Signs URLs by the keys that options, environment or AWS config name. Thread-safe.

    Mutable state, under a lock: who we are, found on first use and asked again when it ends.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._found: Options | None = None
        self._ask: Callable[[], dict[str, Any]] | None = None
        self._keys: dict[str, Any] = {}
        start_anew_in_children(self)

    def forget_parent(self) -> None:
        """Drop the lock, which another thread may have held when the parent forked."""
        self._lock = threading.Lock()

    def sign(self, method: str, url: str, now: datetime | None = None) -> str:
        """Return the address at which an ``s3://`` URL may be asked with ``method`` for an hour.

        Raises:
            ConfigError: it names no bucket.
            StoreError: there are no keys anywhere.
        """
        bucket, _, key = url.split("://", 1)[1].partition("/")
        if not bucket:
            raise ConfigError(f"{url!r} names no bucket")
        options, keys = self._identity()
        region = options.region or _DEFAULT_REGION
        endpoint = options.endpoint_url or f"https://s3.{region}.amazonaws.com"
        place = urlsplit(endpoint)
        path = f"{place.path.rstrip('/')}/{quote(bucket)}/{quote(key)}"
        address = f"{place.scheme}://{place.netloc}{path}"
        if not keys:
            return address
        now = now or datetime.now(UTC)
        day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{day}/{region}/s3/aws4_request"
        fields = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{keys['access_key_id']}/{scope}",
            "X-Amz-Date": moment,
            "X-Amz-Expires": str(_SIGNED_FOR_S),
            **({"X-Amz-Security-Token": keys["token"]} if keys.get("token") else {}),
            "X-Amz-SignedHeaders": "host",
        }
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items())
        asked = f"{method}\n{path}\n{query}\nhost:{place.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(asked.encode()).hexdigest()
        signed = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
        signature = _hmac(_signing_key(keys["secret_access_key"], day, region), signed).hex()
        return f"{address}?{query}&X-Amz-Signature={signature}"

    def _identity(self) -> tuple[Options, dict[str, Any]]:
        """Options with what the environment adds, and keys; none where nothing is signed."""
        with self._lock:
            if self._found is None:
                self._found = self._find()
            ends = self._keys.get("expires_at")
            if self._ask is not None and (not self._keys or (ends and ends < datetime.now(UTC))):
                self._keys = self._ask()
            return self._found, self._keys

    def _find(self) -> Options:
        options = self._options.with_environment()
        if options.key is not None and options.secret is not None:
            self._keys = {
                "access_key_id": options.key,
                "secret_access_key": options.secret,
                "token": options.token,
            }
        elif not options.anon:
            from shardkit.storage.credentials import find_aws  # noqa: PLC0415 - botocore is heavy

            self._ask, region = find_aws(options.profile)
            options = replace(options, region=options.region or region)
        return options


@functools.lru_cache(maxsize=16)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
