"""A bucket of another region: the error says which region to give."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shardkit.errors import StoreError
from shardkit.storage.store import Store, open_store


class _Elsewhere(BaseHTTPRequestHandler):
    """Answers as S3 does for a bucket of another region: 301 with its region, and no Location."""

    region: str | None = "eu-west-1"

    def do_GET(self) -> None:
        self.send_response(301)
        if self.region is not None:
            self.send_header("x-amz-bucket-region", self.region)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_PUT = do_GET

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class _Silent(_Elsewhere):
    region = None


@pytest.fixture(params=[_Elsewhere, _Silent])
def server(request: pytest.FixtureRequest) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("s3://bucket/a"),
    "get_range": lambda store: store.get_range("s3://bucket/a", 0, 3),
    "get_chunks": lambda store: list(store.get_chunks("s3://bucket/a")),
    "stream_to": lambda store: store.stream_to("s3://bucket/a", bytes),
    "stat": lambda store: store.stat("s3://bucket/a"),
    "list": lambda store: list(store.list("s3://bucket/")),
    "put": lambda store: store.put("s3://bucket/a", b"x"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_bucket_of_another_region_is_an_error_at_once_that_says_which_region_to_give(
    server: ThreadingHTTPServer, call: str
) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    store = open_store({"key": "k", "secret": "s", "endpoint_url": url})
    known = server.RequestHandlerClass is _Elsewhere
    said = "but in 'eu-west-1'; give that one" if known else "find its region and give it"
    with pytest.raises(StoreError, match=f"bucket does not lie in region 'us-east-1'.*{said}"):
        CALLS[call](store)
