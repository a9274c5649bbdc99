"""Clips of packed videos: 8 frames at 12 fps from a random place, as float32 in [-1, 1].

python examples/video.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile

from shardkit import DataLoader, ShardDataset
from shardkit.cli.demo_data import make_demo_data
from shardkit.pack import pack
from shardkit.transforms import video_pipeline


def main(folder: str) -> None:
    """Pack videos, and read random clips of them."""
    index = make_demo_data(os.path.join(folder, "raw"), 6, num_audio=0, num_videos=6)
    shards = os.path.join(folder, "shards")
    pack(index, shards, files=["video"])

    dataset = ShardDataset(
        shards,
        members=["mp4"],
        transforms=[video_pipeline("mp4", 8, (96, 96), fps=12, flip=0.5, normalize="signed")],
    )
    with DataLoader(dataset, batch_size=2, num_workers=2) as loader:
        for batch in loader:
            video = batch["video"]  # [batch, frames, 3, height, width]
            print(tuple(video.shape), video.dtype, batch["timestamps"][:, 0])

    for sample in ShardDataset(shards, members=["mp4"], shuffle="none"):
        film = sample["mp4"]  # opens nothing until it is asked for something
        print(sample["__key__"], film.info())
        middle = film.clip(4, start="middle", min_size=(64, 64))
        print(middle.frames.shape, f"from {middle.start:.2f} s for {middle.duration:.2f} s")
        break


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
