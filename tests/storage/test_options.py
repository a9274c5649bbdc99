from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit.errors import ConfigError, StoreError
from shardkit.storage.options import Options, parse_options
from shardkit.storage.store import open_store
from tests.s3 import KEY, SECRET, S3Endpoint, serve_s3

AWS = [
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT",
]  # fmt: skip


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS variables, no config files, no instance to ask."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Endpoint]:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x").write_bytes(b"data")
    with serve_s3(tmp_path) as endpoint:
        yield endpoint


CLIENTS = pytest.mark.parametrize("client", ["obstore", "fsspec"])


@CLIENTS
def test_the_environment_alone_is_enough(
    s3: S3Endpoint, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    assert open_store(client=client).get("s3://bucket/x") == b"data"  # type: ignore[arg-type]


@CLIENTS
def test_a_profile_of_the_config_files_is_enough(
    s3: S3Endpoint, client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(
        f"[work]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    options = {"endpoint_url": s3.url}
    by_option = open_store({**options, "profile": "work"}, client=client)  # type: ignore[arg-type]
    assert by_option.get("s3://bucket/x") == b"data"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert open_store(options, client=client).get("s3://bucket/x") == b"data"  # type: ignore[arg-type]


@CLIENTS
def test_given_options_win_and_never_mix_with_keys_of_the_environment(
    s3: S3Endpoint, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token of someone else")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store(s3.storage_options, client=client)  # type: ignore[arg-type]
    assert store.get("s3://bucket/x") == b"data"
    assert "x-amz-security-token" not in s3.requests[-1].headers


@CLIENTS
def test_options_as_s3fs_spells_them_are_understood(s3: S3Endpoint, client: str) -> None:
    options = {
        "key": KEY,
        "secret": SECRET,
        "client_kwargs": {"endpoint_url": s3.url, "region_name": "us-east-1"},
    }
    assert open_store(options, client=client).get("s3://bucket/x") == b"data"  # type: ignore[arg-type]


@CLIENTS
def test_anon_asks_without_a_signature(tmp_path: Path, client: str) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "x").write_bytes(b"open")
    with serve_s3(tmp_path, auth=False) as s3:
        options = {"anon": True, "endpoint_url": s3.url}
        store = open_store(options, client=client)  # type: ignore[arg-type]
        assert store.get("s3://public/x") == b"open"
        assert "authorization" not in s3.requests[-1].headers


def test_without_any_keys_the_error_names_the_ways_to_give_them() -> None:
    with pytest.raises(StoreError, match=r"no AWS credentials.*AWS_ACCESS_KEY_ID.*'anon': True"):
        open_store({"endpoint_url": "http://127.0.0.1:9"}).get("s3://bucket/x")


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="key and secret come together"):
        open_store({"key": "k"})
    with pytest.raises(ConfigError, match="anon=True and a key"):
        open_store({"key": "k", "secret": "s", "anon": True})
    with pytest.raises(ConfigError, match="max_attempts=0"):
        _ = parse_options({"max_attempts": 0}).patience
    with pytest.raises(ConfigError, match="stall_s=0"):
        _ = parse_options({"stall_s": 0}).patience


def test_an_option_only_s3fs_knows_goes_to_s3fs_and_obstore_refuses_it(s3: S3Endpoint) -> None:
    options = {**s3.storage_options, "requester_pays": True}
    assert open_store(options).get("s3://bucket/x") == b"data"
    assert s3.requests[-1].headers.get("x-amz-request-payer") == "requester"
    with pytest.raises(ConfigError, match=r"requester_pays.*client='fsspec'"):
        open_store(options, client="obstore").get("s3://bucket/x")


def test_secrets_are_not_printed() -> None:
    shown = repr(Options(key="visible", secret="hidden", token="hidden"))
    assert "visible" in shown
    assert "hidden" not in shown
