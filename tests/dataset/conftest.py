"""The packed photos, made once."""

from __future__ import annotations

import pytest

from shardkit.pack import LocalExecutor, PackOptions, pack
from tests.dataset.photos import NUM_SAMPLES, Packed, make_files


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """101 samples in 15 shards of 7; every sample has jpg, cls, npy, json and txt."""
    folder = tmp_path_factory.mktemp("photos")
    index, files = make_files(folder / "source", NUM_SAMPLES)
    out = str(folder / "shards")
    pack(
        index,
        out,
        inline=["caption=txt"],
        options=PackOptions(samples_per_shard=7),
        executor=LocalExecutor(1),
    )
    return Packed(out, index, files)
