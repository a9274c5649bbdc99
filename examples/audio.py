"""One second of sound a sample, mono at 16 kHz, all equally loud; flac, mp3 and wav together.

python examples/audio.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from shardkit import DataLoader, ShardDataset
from shardkit.cli.demo_data import make_demo_data
from shardkit.pack import pack
from shardkit.transforms import FirstNonEmpty, audio_pipeline


def add_length(sample: dict[str, Any]) -> dict[str, Any]:
    """A transform of one's own: from dict to dict."""
    seconds = sample["audio"].shape[-1] / sample["sample_rate"]
    return sample | {"seconds": seconds}


def main(folder: str) -> None:
    """Pack sounds of three formats, and read batches of equal ones."""
    index = make_demo_data(os.path.join(folder, "raw"), 12, num_audio=12, num_videos=0)
    shards = os.path.join(folder, "shards")
    pack(index, shards, files=["audio"])

    dataset = ShardDataset(
        shards,
        decode=None,  # the pipeline decodes, and only the second that it takes
        transforms=[
            FirstNonEmpty(["flac", "mp3", "wav"], into="sound"),
            audio_pipeline(
                "sound", 1.0, sample_rate=16_000, mono=True, start="random_loud", loudness=-20
            ),
            add_length,
        ],
    )
    with DataLoader(dataset, batch_size=4, num_workers=2) as loader:
        for batch in loader:
            print(tuple(batch["audio"].shape), batch["audio"].abs().amax(dim=(1, 2)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
