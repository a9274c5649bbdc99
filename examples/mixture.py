"""Three streams in one loader: photos, stills as videos of one frame, and clips.

    python examples/mixture.py [FOLDER]

Each global batch is of one stream, so that shapes agree; weights are met closely at every point
of the run, and the state of the loader holds the place in every stream.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter

from shardkit import DataLoader, Mix, ShardDataset, Stream
from shardkit.cli.demo_data import make_demo_data
from shardkit.pack import pack
from shardkit.transforms import KeepFields, image_pipeline, video_pipeline


def main(folder: str) -> None:
    """Pack photos and videos, and read them by weight."""
    photos, clips = os.path.join(folder, "photos"), os.path.join(folder, "clips")
    index = make_demo_data(
        os.path.join(folder, "raw"), 32, num_audio=0, num_videos=8, image_formats=("jpg",)
    )
    pack(index, photos, files=["image"])
    pack(index, clips, files=["video"], where="video IS NOT NULL")

    images = ShardDataset(
        photos,
        members=["jpg"],
        where="aspect < 1.3",
        transforms=[image_pipeline("jpg", (64, 64), flip=0.5), KeepFields("image")],
    )
    stills = ShardDataset(
        photos,
        members=["jpg"],
        where="aspect >= 1.3",
        transforms=[
            image_pipeline("jpg", (64, 64), as_video=True, into="video"),
            KeepFields(["video", "fps"]),
        ],
    )
    videos = ShardDataset(
        clips,
        members=["mp4"],
        transforms=[video_pipeline("mp4", 8, (64, 64), fps=8), KeepFields(["video", "fps"])],
    )
    mixture = Mix(
        {
            "images": Stream(images, weight=0.3),
            "stills": Stream(stills, weight=0.2),
            "videos": Stream(videos, weight=0.5, batch_size=2),  # clips are large
        },
        by="batch",
        ends="never",
    )
    seen: Counter[str] = Counter()
    with DataLoader(mixture, batch_size=4, num_workers=2) as loader:
        for batch in loader:
            name = batch["__stream__"]
            pixels = batch["image" if name == "images" else "video"]
            print(name, tuple(pixels.shape))
            seen[name] += 1
            if seen.total() == 20:
                break
    print(dict(seen))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
