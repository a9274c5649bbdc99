"""Image to image: two members of a sample, with the same crop and flip for both.

    python examples/image_pairs.py [FOLDER]

The pairs lie in a folder as ``0001.source.jpg`` and ``0001.target.png``: what comes before the
first dot groups them, what comes after it names the member.
"""

from __future__ import annotations

import os
import sys
import tempfile

import numpy as np

from shardkit import DataLoader, ShardDataset
from shardkit.cli.demo_data import encode_image, photo
from shardkit.pack import pack
from shardkit.transforms import image_pipeline


def make_pairs(folder: str, count: int) -> None:
    """Write photos and their edges."""
    os.makedirs(folder, exist_ok=True)
    for number in range(count):
        source = photo(np.random.default_rng(number), 120, 160)
        edges = np.abs(np.diff(source.astype(int), axis=1, append=0)).clip(0, 255).astype(np.uint8)
        for name, pixels in (("source.jpg", source), ("target.png", edges)):
            with open(os.path.join(folder, f"{number:04d}.{name}"), "wb") as file:
                file.write(encode_image(pixels, name[-3:]))


def main(folder: str) -> None:
    """Pack a folder of pairs, and read them with equal crops."""
    raw, shards = os.path.join(folder, "raw"), os.path.join(folder, "shards")
    make_pairs(raw, 12)
    pack(raw, shards)

    pairs = image_pipeline(
        ("source.jpg", "target.png"),
        {(64, 64): 0.5, (96, 64): 0.5},  # a size for each sample, by these probabilities
        into=("source", "target"),
        crop="random",
        flip=0.5,
        normalize="unit",
    )
    dataset = ShardDataset(shards, transforms=[pairs])
    with DataLoader(dataset, batch_size=1, num_workers=2) as loader:
        for batch in loader:
            assert batch["source"].shape == batch["target"].shape
            print(tuple(batch["source"].shape), batch["__key__"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
