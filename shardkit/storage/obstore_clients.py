"""obstore's clients from our options: one vocabulary, and no keys but those that were meant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import obstore.exceptions
import obstore.store

from shardkit.errors import ConfigError
from shardkit.storage.options import Options

__all__ = ["DEFAULT_REGION", "open_client"]

DEFAULT_REGION = "us-east-1"
"""What S3-compatible servers take, and where buckets of AWS lie unless made elsewhere."""

_FAMILY = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"} | dict.fromkeys(
    ("az", "abfs", "abfss"), "az"
)


def open_client(scheme: str, bucket: str, options: Options, max_retries: int) -> Any:
    """Return a client of one bucket that retries by itself so often (we resume instead: 0)."""
    patience = options.patience
    arguments: dict[str, Any] = {
        "client_options": {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(10.0, patience.stall_s)),
            "read_timeout": timedelta(seconds=patience.stall_s),
            "timeout": timedelta(days=1),  # of a whole body: big ones may take long
        },
        "retry_config": {
            "max_retries": max_retries,
            "retry_timeout": timedelta(minutes=5),
            "backoff": {
                "init_backoff": timedelta(seconds=patience.first_wait_s),
                "max_backoff": timedelta(seconds=patience.max_wait_s),
                "base": 2,
            },
        },
    }
    family = _FAMILY[scheme]
    try:
        if family == "s3":
            config, provider = _s3_config(options.with_environment())
            if provider is not None:
                arguments["credential_provider"] = provider
            return obstore.store.S3Store(bucket, config=config, **arguments)
        if family == "gs":
            return obstore.store.GCSStore(bucket, config=_gs_config(options), **arguments)
        account, container = _az_place(bucket, options)
        return obstore.store.AzureStore(container, config=_az_config(options, account), **arguments)
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise ConfigError(f"cannot open {scheme}://{bucket}: {error}") from error


def _s3_config(options: Options) -> tuple[Any, Callable[[], dict[str, Any]] | None]:
    region = options.region
    provider: Callable[[], dict[str, Any]] | None = None
    if options.key is not None and options.secret is not None:
        provider = _FixedCredentials(options.key, options.secret, options.token)
    elif not options.anon:
        from shardkit.storage.credentials import find_aws  # noqa: PLC0415 - botocore is heavy

        provider, found = find_aws(options.profile)
        region = region or found
    config = _given(
        endpoint=options.endpoint_url,
        region=region or DEFAULT_REGION,
        skip_signature=options.anon,
    )
    return config, provider


def _gs_config(options: Options) -> Any:
    anon = options.anon or options.token == "anon"  # noqa: S105 - gcsfs' word for no token
    return _given(
        application_credentials=None if anon else options.token,
        base_url=options.endpoint_url,
        skip_signature=anon or None,
    )


def _az_config(options: Options, account: str | None) -> Any:
    return _given(
        account_name=account,
        account_key=options.account_key,
        sas_key=options.sas_token,
        endpoint=options.endpoint_url,
        skip_signature=options.anon,
    )


def _az_place(bucket: str, options: Options) -> tuple[str | None, str]:
    """Return account and container of ``container@account.dfs.core.windows.net`` or a name."""
    container, _, host = bucket.partition("@")
    return (host.split(".", 1)[0] if host else options.account_name), container


def _given(**config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


class _FixedCredentials:
    """Keys that the caller gave, and no others: obstore would add a token of the environment."""

    def __init__(self, key: str, secret: str, token: str | None) -> None:
        self._keys = {"access_key_id": key, "secret_access_key": secret, "token": token}

    def __call__(self) -> dict[str, Any]:
        """Return keys as obstore wants them; they never end."""
        return {**self._keys, "expires_at": None}
