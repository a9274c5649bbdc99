"""``storage_options``: one vocabulary for all clients, completed from the ``AWS_*`` environment.

This is the only module besides ``world.py`` that reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from shardkit.errors import ConfigError
from shardkit.storage.retry import Patience

__all__ = ["Options", "parse_options"]

_USUAL = Patience()


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose, by the names of fsspec and s3fs.

    Args:
        key: access key id (s3).
        secret: secret access key (s3).
        token: session token (s3); path of a service-account file, or ``"anon"`` (gs).
        endpoint_url: of an S3-compatible server; also for Azurite and fake-gcs.
        region: of the bucket (s3).
        profile: of the AWS config files (s3).
        anon: True asks without a signature, for public buckets.
        account_name: storage account (az).
        account_key: its key (az).
        sas_token: shared access signature (az).
        headers: extra headers of every request (http).
        max_attempts: see ``Patience``.
        stall_s: see ``Patience``.
        extra: any other option, as the named fsspec file system takes it; only fsspec knows
            what it means, so ``client="fsspec"`` or another scheme is needed.
    """

    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anon: bool | None = None
    account_name: str | None = None
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_attempts: int = _USUAL.max_attempts
    stall_s: float = _USUAL.stall_s
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.key is None) != (self.secret is None):
            raise ConfigError("storage_options: key and secret come together; one is missing")
        if self.anon and self.key is not None:
            raise ConfigError("storage_options: anon=True and a key contradict each other")

    @property
    def patience(self) -> Patience:
        """How often and how long to retry."""
        return Patience(max_attempts=self.max_attempts, stall_s=self.stall_s)

    def with_environment(self) -> Options:
        """Return these options with what they leave open taken from ``AWS_*``.

        Keys are taken all together or not at all: a session token of the environment never
        joins a key that the caller gave.
        """
        found: dict[str, Any] = {}
        if self.endpoint_url is None:
            found["endpoint_url"] = _first(
                "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"
            )
        if self.region is None:
            found["region"] = _first("AWS_REGION", "AWS_DEFAULT_REGION")
        if self.key is None and not self.anon and self.profile is None:
            found["key"] = _first("AWS_ACCESS_KEY_ID")
            found["secret"] = _first("AWS_SECRET_ACCESS_KEY")
            found["token"] = _first("AWS_SESSION_TOKEN")
            if found["key"] is None or found["secret"] is None:
                found["key"] = found["secret"] = found["token"] = None
                found["profile"] = _first("AWS_PROFILE")
            if self.token is not None:
                del found["token"]
        return replace(self, **found)


def parse_options(storage_options: Mapping[str, Any] | None) -> Options:
    """Return the options of a mapping; ``client_kwargs`` is understood as s3fs does."""
    given = dict(storage_options or {})
    client = dict(given.pop("client_kwargs", None) or {})
    for ours, theirs in (("endpoint_url", "endpoint_url"), ("region", "region_name")):
        if theirs in client:
            given.setdefault(ours, client.pop(theirs))
    if client:
        given["client_kwargs"] = client
    names = {f.name for f in fields(Options)} - {"extra"}
    known = {name: value for name, value in given.items() if name in names}
    extra = {name: value for name, value in given.items() if name not in names}
    return Options(**known, extra=extra)


def _first(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
