"""Train on packed photos: pack, read shuffled batches of 224x224, stop, go on where it stopped.

python examples/images.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile

from shardkit import DataLoader, ShardDataset
from shardkit.cli.demo_data import make_demo_data
from shardkit.pack import pack
from shardkit.transforms import image_pipeline

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def main(folder: str) -> None:
    """Pack photos, read some batches, and go on from a saved state."""
    index = make_demo_data(
        os.path.join(folder, "raw"), 40, num_audio=0, num_videos=0, image_formats=("jpg",)
    )
    shards = os.path.join(folder, "shards")
    pack(index, shards)  # or: shardkit pack index.parquet shards/

    dataset = ShardDataset(
        shards,
        shuffle="buffer",
        members=["jpg"],
        transforms=[image_pipeline("jpg", (224, 224), crop="random", flip=0.5, normalize=IMAGENET)],
        where="aspect >= 1",
    )
    print(f"{dataset.num_samples} landscape photos")
    loader = DataLoader(dataset, batch_size=8, num_workers=2)
    for step, batch in enumerate(loader):
        print(step, tuple(batch["image"].shape), batch["caption"][0])
        if step == 1:
            state = loader.state_dict()  # plain values, the same on every rank
            break
    loader.close()

    resumed = DataLoader(dataset, batch_size=8, num_workers=1)
    resumed.load_state_dict(state)
    for batch in resumed:
        print("resumed", tuple(batch["image"].shape), batch["caption"][0])
    resumed.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
