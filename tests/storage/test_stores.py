from __future__ import annotations

import os
import random
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from shardkit.errors import ConfigError, NotFoundError, StoreError
from shardkit.storage.options import parse_options
from shardkit.storage.signed_store import SignedStore
from shardkit.storage.store import is_local, local_path, open_store
from tests.s3 import Fault, S3Endpoint, serve_http, serve_s3
from tests.storage.contract import Place, ReadOnlyContract, WriteContract


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with serve_s3(folder) as endpoint:
        yield endpoint


def _place(store_client: str, options: dict[str, object], base: str) -> Place:
    store = open_store(options, client=store_client)  # type: ignore[arg-type]
    url = f"{base}/{uuid.uuid4().hex}"
    return Place(store, url, lambda name, data: store.put(f"{url}/{name}", data))


class TestBarePaths(WriteContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return _place("auto", {}, str(tmp_path))


class TestFileUrls(WriteContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        store = open_store()
        url = f"file://{tmp_path}"
        return Place(store, url, lambda n, data: store.put(f"{url}/{quote(n)}", data), quote)


class TestFsspecMemory(WriteContract):
    @pytest.fixture
    def place(self) -> Place:
        return _place("auto", {}, "memory://bucket")


class TestS3ThroughObstore(WriteContract):
    @pytest.fixture
    def place(self, s3: S3Endpoint) -> Place:
        return _place("obstore", s3.storage_options, "s3://bucket")


class TestS3ThroughFsspec(WriteContract):
    @pytest.fixture
    def place(self, s3: S3Endpoint) -> Place:
        return _place("fsspec", s3.storage_options, "s3://bucket")


class TestS3ThroughSignedUrls(WriteContract):
    """As in processes that were forked after their parent had used obstore."""

    @pytest.fixture
    def place(self, s3: S3Endpoint) -> Place:
        store = SignedStore(parse_options(s3.storage_options))
        url = f"s3://bucket/{uuid.uuid4().hex}"
        return Place(store, url, lambda name, data: store.put(f"{url}/{name}", data))


class _Web(ReadOnlyContract):
    @staticmethod
    def _web_place(tmp_path: Path, http: S3Endpoint, client: str) -> Place:
        def write(name: str, data: bytes) -> None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
            time.sleep(0.02)  # the server remembers a folder for 1 ms

        store = open_store(client=client)  # type: ignore[arg-type]
        return Place(store, http.url, write, quote)


class TestHttp(_Web):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with serve_http(tmp_path) as http:
            yield self._web_place(tmp_path, http, "auto")


class TestHttpIgnoringRanges(_Web):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with serve_http(tmp_path, [Fault("ignore_range", times=-1)]) as http:
            yield self._web_place(tmp_path, http, "auto")


class TestHttpAnsweringRangesWith200(_Web):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with serve_http(tmp_path, [Fault("range_as_200", times=-1)]) as http:
            yield self._web_place(tmp_path, http, "auto")


class TestS3IgnoringRanges(WriteContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        (tmp_path / "bucket").mkdir()
        with serve_s3(tmp_path, [Fault("ignore_range", times=-1)], auth=False) as s3:
            yield _place("auto", s3.storage_options, "s3://bucket")


def test_no_range_is_asked_for_twice_and_a_usual_server_is_obstores(tmp_path: Path) -> None:
    """obstore drops ranges that come under status 200, as rclone's S3 gives them."""
    data = random.Random(1).randbytes(6_000_000)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x").write_bytes(data)
    ranges = [(n * 1_000_000, n * 1_000_000 + 1_000) for n in range(6)]
    with serve_s3(tmp_path) as odd, serve_http(tmp_path) as usual:
        for server, agent in (odd, "shardkit"), (usual, "object_store"):
            store = open_store({**odd.storage_options, "endpoint_url": server.url})
            for _ in range(2):
                found = store.get_ranges("s3://bucket/x", ranges)
                assert found == [data[start:stop] for start, stop in ranges]
            assert server.count("GET") == 2 * len(ranges)
            assert server.requests[-1].headers["user-agent"].startswith(agent)


def test_one_store_serves_paths_buckets_and_web_servers_mixed(
    tmp_path: Path, s3: S3Endpoint
) -> None:
    (tmp_path / "w").write_bytes(b"web")
    with serve_http(tmp_path) as http:
        store = open_store(s3.storage_options)
        store.put("s3://bucket/mixed", b"bucket")
        store.put(str(tmp_path / "p"), b"path")
        urls = ["s3://bucket/mixed", str(tmp_path / "p"), f"{http.url}/w"]
        assert [store.get(url) for url in urls] == [b"bucket", b"path", b"web"]


def test_a_web_url_keeps_its_query(tmp_path: Path) -> None:
    (tmp_path / "q").write_bytes(b"x")
    with serve_http(tmp_path) as http:
        assert open_store().get(f"{http.url}/q?token=a%2Fb&v=1") == b"x"
        assert http.requests[-1].query == "token=a%2Fb&v=1"


def test_headers_of_storage_options_reach_the_web_server(tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(b"x")
    with serve_http(tmp_path) as http:
        open_store({"headers": {"Authorization": "Bearer t"}}).get(f"{http.url}/h")
        assert http.requests[-1].headers["authorization"] == "Bearer t"


def test_wrong_keys_are_not_permitted_and_not_retried(s3: S3Endpoint) -> None:
    options = {**s3.storage_options, "key": "wrong", "secret": "wrong"}
    for client in ("obstore", "fsspec"):
        before = len(s3.requests)
        with pytest.raises(StoreError, match=r"s3://bucket/x"):
            open_store(options, client=client).put("s3://bucket/x", b"")  # type: ignore[arg-type]
        assert len(s3.requests) - before <= 2


def test_a_put_that_is_cut_short_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"old")
    with pytest.raises(StoreError):
        open_store().put_file(str(target), str(tmp_path / "missing"))
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_listing_a_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = [info.url.removeprefix(str(tmp_path)) for info in open_store().list(str(tmp_path))]
    assert found == ["/a/x", "/link"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "x").chmod(stat.S_IWUSR)
    with pytest.raises(StoreError, match="not permitted"):
        open_store().get(str(tmp_path / "x"))


def test_what_is_local_and_where() -> None:
    assert is_local("a/b") and is_local("/a") and is_local("file:///a") and is_local("./s3:x")
    assert not is_local("s3://b/a") and not is_local("https://h/a") and not is_local("zip::s3://b")
    assert local_path("a/b %20#?") == "a/b %20#?"
    assert local_path("file:///a%20b/c") == "/a b/c"


def test_unknown_clients_schemes_and_buckets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of auto, obstore, fsspec"):
        open_store(client="curl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nix://"):
        open_store().get("nix://x/y")
    with pytest.raises(ConfigError, match="no bucket"):
        open_store({"key": "k", "secret": "s"}).get("s3://")
    with pytest.raises(NotFoundError):
        open_store().get(str(tmp_path / "x"))


def test_a_key_that_obstore_cannot_spell_goes_through_fsspec(
    tmp_path: Path, s3: S3Endpoint
) -> None:
    store = open_store({**s3.storage_options, "max_attempts": 1})
    with pytest.raises(StoreError):
        store.get("s3://bucket/a//b")
    assert "botocore" in s3.requests[-1].headers["user-agent"].lower()
    with pytest.raises(StoreError, match="obstore can't serve"):
        open_store(s3.storage_options, client="obstore").get("s3://bucket/a//b")
