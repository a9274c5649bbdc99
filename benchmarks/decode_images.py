"""JPEGs to arrays, against bare decoders, webdataset and torchvision, as ratios in one run.

    python benchmarks/decode_images.py [--photos 192] [--large 12]

Photos are about 500x375 and 95 KB, large ones 4000x3000 and 2.6 MB. All contestants of a line
take turns for five rounds, in one process; the median of each is shown. "bare" is a loop of the
fastest decoder over bytes that are in memory already. What runs on one thread is timed by the
processor's clock, so that it can be compared on a busy machine; two threads by the wall's.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import simplejpeg
import torch
import webdataset
from PIL import Image

from shardkit import DataLoader, ShardDataset
from shardkit.cli.demo_data import encode_image, photo
from shardkit.pack.api import pack
from shardkit.transforms import image_pipeline

ROUNDS = 5
LOADER_REPEATS = 16  # 48 batches: opening the data set and the last batches weigh little


def make_photos(count: int, height: int, width: int, quality: int, distinct: int) -> list[bytes]:
    made = [
        encode_image(photo(np.random.default_rng(seed), height, width), "jpg", quality=quality)
        for seed in range(distinct)
    ]
    return [made[number % distinct] for number in range(count)]


def write_and_pack(photos: Sequence[bytes], folder: str) -> str:
    os.makedirs(os.path.join(folder, "photos"))
    paths = []
    for number, data in enumerate(photos):
        paths.append(os.path.join(folder, "photos", f"{number:06d}.jpg"))
        with open(paths[-1], "wb") as file:
            file.write(data)
    index = pd.DataFrame({"id": [f"{number:06d}" for number in range(len(paths))], "jpg": paths})
    out = os.path.join(folder, "shards")
    pack(index, out)
    return out


def bare(photos: Sequence[bytes]) -> None:
    for data in photos:
        simplejpeg.decode_jpeg(data, "RGB")


def bare_with_pillow(photos: Sequence[bytes]) -> None:
    for data in photos:
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def bare_in_threads(photos: Sequence[bytes]) -> None:
    halves = photos[::2], photos[1::2]
    threads = [threading.Thread(target=bare, args=(half,)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def walk(dataset: object) -> None:
    for _ in dataset:
        pass


def walk_loader(shards: str) -> None:
    dataset = ShardDataset(shards, shuffle="none", cache_dir=os.path.join(shards, "..", "cache"))
    with DataLoader(dataset, batch_size=64, num_workers=2, collate_fn=list) as loader:
        walk(loader)


def decoded_by_webdataset(shards: str) -> None:
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        image = sample["jpg"]
        scale = 256 / min(image.size)
        size = tuple(round(side * scale) for side in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
        np.asarray(image.crop((left, top, left + 224, top + 224)))


def compare(
    title: str,
    count: int,
    contestants: dict[str, Callable[[], object]],
    clock: Callable[[], float] = time.process_time,
) -> None:
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(ROUNDS + 1):
        for name, run in contestants.items():
            start = clock()
            run()
            if round_number:
                rates[name].append(count / (clock() - start))
    first, *_ = contestants
    print(title)
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[first], values, strict=True))
        print(
            f"  {name:34} {statistics.median(values):7.0f} images/s   shardkit / it = {ratio:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=192)
    parser.add_argument("--large", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = make_photos(arguments.photos, 375, 500, 95, 32)
    large = make_photos(arguments.large, 3000, 4000, 88, 3)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_and_pack(photos, os.path.join(folder, "small"))
        large_shards = write_and_pack(large, os.path.join(folder, "large"))
        tars = os.path.join(shards, "shard-000000.tar")
        large_tars = os.path.join(large_shards, "shard-000000.tar")
        cache = os.path.join(folder, "cache")
        full = ShardDataset(shards, shuffle="none", cache_dir=cache)
        cropped = [image_pipeline("jpg", (224, 224), zoom=224 / 256)]
        small = ShardDataset(shards, shuffle="none", transforms=cropped, cache_dir=cache)
        from_large = ShardDataset(large_shards, shuffle="none", transforms=cropped, cache_dir=cache)
        compare(
            "full size, one thread",
            len(photos),
            {
                "ShardDataset": lambda: walk(full),
                "bare simplejpeg": lambda: bare(photos),
                "bare Pillow": lambda: bare_with_pillow(photos),
            },
        )
        compare(
            "256, centre 224, one thread",
            len(photos),
            {
                "ShardDataset": lambda: walk(small),
                'webdataset .decode("pil")': lambda: decoded_by_webdataset(tars),
            },
        )
        compare(
            "256, centre 224, 12 megapixels, one thread",
            len(large),
            {
                "ShardDataset": lambda: walk(from_large),
                'webdataset .decode("pil")': lambda: decoded_by_webdataset(large_tars),
            },
        )
        many = photos * LOADER_REPEATS
        shards = write_and_pack(many, os.path.join(folder, "many"))
        compare(
            "full size, two threads",
            len(many),
            {
                "DataLoader(num_workers=2)": lambda: walk_loader(shards),
                "bare simplejpeg, two threads": lambda: bare_in_threads(many),
            },
            clock=time.perf_counter,
        )


if __name__ == "__main__":
    main()
