"""A folder of pairs in a bucket, streamed as it is: no index, no packing step.

    python examples/pairs_on_s3.py FOLDER s3://bucket/pairs/ [ENDPOINT_URL]

``0001.source.jpg`` and ``0001.target.png`` are one sample with two members. Credentials come from
the environment (``AWS_ACCESS_KEY_ID``, …). Without a URL the pairs are made and read in FOLDER.
"""

from __future__ import annotations

import os
import sys
import tempfile

import numpy as np

from shardkit import DataLoader, StreamingDataset
from shardkit.cli.demo_data import encode_image, photo
from shardkit.transforms import image_pipeline


def make_pairs(folder: str, count: int) -> None:
    """Write photos and what they look like in the dark."""
    os.makedirs(folder, exist_ok=True)
    for number in range(count):
        bright = photo(np.random.default_rng(number), 120, 160)
        for name, pixels in (("source.jpg", bright), ("target.png", bright // 4)):
            with open(os.path.join(folder, f"{number:04d}.{name}"), "wb") as file:
                file.write(encode_image(pixels, name[-3:]))


def main(folder: str, url: str | None = None, endpoint: str | None = None) -> None:
    """Stream pairs through a cache of 100 MB, with equal crops for both of a pair."""
    if url is None:
        url = os.path.join(folder, "pairs")
        make_pairs(url, 8)
    pairs = image_pipeline(
        ("source.jpg", "target.png"),
        (64, 64),
        into=("source", "target"),
        crop="random",
        flip=0.5,
        normalize="unit",
    )
    dataset = StreamingDataset(
        url,
        os.path.join(folder, "cache"),
        cache_limit="100mb",
        transforms=[pairs],
        storage_options={"endpoint_url": endpoint} if endpoint else None,
    )
    with DataLoader(dataset, batch_size=4, num_workers=2) as loader:
        for batch in loader:
            assert batch["source"].shape == batch["target"].shape
            print(tuple(batch["source"].shape), batch["__key__"])


if __name__ == "__main__":
    main(*(sys.argv[1:] or [tempfile.mkdtemp()]))
