"""Frames and the sound of the same span, in step: a second of video, a second of sound.

python examples/audio_video.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile

from shardkit import DataLoader, ShardDataset
from shardkit.cli.demo_data import make_demo_data
from shardkit.pack import pack
from shardkit.transforms import KeepFields, audio_video_pipeline


def main(folder: str) -> None:
    """Pack videos with sound, and read both in step."""
    index = make_demo_data(os.path.join(folder, "raw"), 6, num_audio=0, num_videos=6)
    shards = os.path.join(folder, "shards")
    pack(index, shards, files=["video"])

    dataset = ShardDataset(
        shards,
        members=["mp4"],
        metadata=["caption"],
        transforms=[
            audio_video_pipeline("mp4", 12, (96, 128), fps=12, sample_rate=16_000),
            KeepFields(["video", "audio", "timestamps", "caption"]),
        ],
        on_error="skip",  # videos without sound are counted and left out
    )
    with DataLoader(dataset, batch_size=3, num_workers=2) as loader:
        for batch in loader:
            print(tuple(batch["video"].shape), tuple(batch["audio"].shape), batch["caption"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
