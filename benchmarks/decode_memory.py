"""What page faults cost: JPEGs decoded into fresh memory and into kept memory.

python benchmarks/decode_memory.py
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable

import numpy as np
import simplejpeg

from shardkit.cli.demo_data import encode_image, photo
from shardkit.decode import decode_image

BATCH = 64


def fresh(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, "RGB")


def work(decode: Callable[[bytes], np.ndarray], photos: list[bytes]) -> None:
    batch: list[np.ndarray] = []
    for data in photos:
        batch.append(decode(data))
        if len(batch) == BATCH:
            batch = []


def measure(decode: Callable[[bytes], np.ndarray], photos: list[bytes], num_threads: int) -> str:
    threads = [threading.Thread(target=work, args=(decode, photos)) for _ in range(num_threads)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    count = len(photos) * num_threads
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return (
        f"{count / seconds:6.0f} images/s, {1000 * cpu / count:.2f} ms of processor, "
        f"{faults / count:4.0f} page faults an image"
    )


def main() -> None:
    distinct = [
        encode_image(photo(np.random.default_rng(seed), 375, 500), "jpg") for seed in range(16)
    ]
    photos = distinct * 24
    ways = {"fresh memory, simplejpeg": fresh, "kept memory, decode_image": decode_image}
    for num_threads in (1, 2):
        for name, decode in ways.items():
            work(decode, photos)
            print(f"{num_threads} thread(s), {name}: {measure(decode, photos, num_threads)}")


if __name__ == "__main__":
    main()
