"""Who we are to AWS where nobody said so: profiles, config files, SSO, roles, as botocore finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.exceptions  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]

from shardkit.errors import StoreError

__all__ = ["AwsCredentials", "find_aws"]

_TTL = timedelta(minutes=10)
"""How long keys are used before botocore is asked again; it refreshes 10-15 min before they end."""


class AwsCredentials:
    """What obstore calls for keys, again and again. Thread-safe, as botocore's objects are."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        """Return keys as obstore wants them, good for some minutes."""
        keys = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + _TTL,
        }


def find_aws(profile: str | None) -> tuple[AwsCredentials, str | None]:
    """Return credentials, and the region that the same sources name.

    Raises:
        StoreError: there are none, anywhere.
    """
    try:
        session = botocore.session.Session(profile=profile)
        credentials = session.get_credentials()
        region = session.get_config_variable("region")
    except botocore.exceptions.BotoCoreError as error:
        raise StoreError(f"AWS credentials: {error}") from error
    if credentials is None:
        raise StoreError(
            "no AWS credentials: neither storage_options (key, secret), nor AWS_ACCESS_KEY_ID, nor "
            "a profile, role or instance has any; for a public bucket pass "
            "storage_options={'anon': True}"
        )
    return AwsCredentials(credentials), region
