"""Photos on this machine, behind S3 and behind http, served once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3 import S3Endpoint, serve_http, serve_s3
from tests.streaming.build import Photos, make_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("photos") / "bucket"
    return Photos(folder, str(folder), {}, make_photos(folder))


@pytest.fixture(scope="session")
def s3(photos: Photos) -> Iterator[S3Endpoint]:
    with serve_s3(photos.folder.parent) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def http(photos: Photos) -> Iterator[S3Endpoint]:
    with serve_http(photos.folder.parent) as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "file", "s3", "http"])
def anywhere(request: pytest.FixtureRequest, photos: Photos) -> Photos:
    """The photos, as seen from each kind of place."""
    if request.param == "local":
        return photos
    if request.param == "file":
        return Photos(photos.folder, f"file://{photos.folder}", {}, photos.data)
    endpoint = request.getfixturevalue(request.param)
    root = "s3://bucket" if request.param == "s3" else f"{endpoint.url}/bucket"
    return Photos(photos.folder, root, endpoint.storage_options, photos.data)


@pytest.fixture
def far(photos: Photos, s3: S3Endpoint) -> Photos:
    """The photos on S3."""
    return Photos(photos.folder, "s3://bucket", s3.storage_options, photos.data)
