"""Our signatures are those that obstore makes."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import obstore
import obstore.store
import pytest

from shardkit.errors import ConfigError, StoreError
from shardkit.storage.options import Options
from shardkit.storage.signing import Signer

KEYS = [
    "a.jpg",
    "deep/er/b c.jpg",
    "umläut/√.tar",
    "x=1&y=2+3.json",
    "per%20cent/100%.txt",
    "a:b@c,d;e!f*g(h)'i~j-k_l.m",
    'quote"<>[]{}|^`#?.bin',
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("token", [None, "a/token+of==many/characters"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9000", "https://minio.example"])
def test_a_signed_url_is_the_one_that_obstore_signs(
    key: str, token: str | None, method: str, endpoint: str | None
) -> None:
    options = Options("an-access-key", "a secret/key+", token, endpoint, "eu-west-3")
    given = {"endpoint": endpoint} if endpoint else {}
    client = obstore.store.S3Store(
        "the.bucket",
        access_key_id="an-access-key",
        secret_access_key="a secret/key+",
        region="eu-west-3",
        client_options={"allow_http": True},
        **({"session_token": token} if token else {}),
        **given,
    )
    theirs = urlsplit(obstore.sign(client, method, key, timedelta(hours=1)))  # type: ignore[call-overload]
    signed_at = parse_qs(theirs.query)["X-Amz-Date"][0]
    now = datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ours = urlsplit(Signer(options).sign(method, f"s3://the.bucket/{key}", now))
    assert (ours.scheme, ours.netloc, ours.path) == (theirs.scheme, theirs.netloc, theirs.path)
    assert parse_qs(ours.query) == parse_qs(theirs.query)


def test_public_buckets_are_asked_without_a_signature() -> None:
    options = Options(anon=True, region="us-west-2")
    found = Signer(options).sign("GET", "s3://open/a b.jpg")
    assert found == "https://s3.us-west-2.amazonaws.com/open/a%20b.jpg"


def test_who_has_no_keys_is_told_where_they_were_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(StoreError, match=r"no AWS credentials.*anon"):
        Signer(Options()).sign("GET", "s3://bucket/a")
    with pytest.raises(ConfigError, match="names no bucket"):
        Signer(Options(anon=True)).sign("GET", "s3:///a")


def test_a_child_does_not_wait_for_a_lock_that_was_held_when_it_was_forked() -> None:
    signer = Signer(Options("k", "s", None, "http://h", "r"))
    with signer._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            signer.sign("GET", "s3://bucket/x")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
