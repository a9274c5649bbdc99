"""What stacking a batch costs: fresh memory or kept, numpy or torch.

    python benchmarks/loader_collate.py

Each figure is the median over 20 batches of 64 pictures, in milliseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from shardkit.decode import memory

BATCH = 64
SHAPES = ((64, 64), (224, 224, 3), (480, 640, 3))


def median_ms(stack: Callable[[], object]) -> float:
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        stack()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def main() -> None:
    print("| shape | numpy | numpy, kept | torch | torch, kept |")
    print("|---|---:|---:|---:|---:|")
    for shape in SHAPES:
        figures = " | ".join(f"{cell:.2f}" for cell in cells(shape))
        print(f"| {'x'.join(map(str, shape))} | {figures} |")


def cells(shape: tuple[int, ...]) -> list[float]:
    arrays = [np.ones(shape, np.uint8) for _ in range(BATCH)]
    tensors = [torch.from_numpy(array) for array in arrays]
    whole = (BATCH, *shape)
    return [
        median_ms(lambda: np.stack(arrays)),
        median_ms(lambda: np.stack(arrays, out=memory.empty(whole))),
        median_ms(lambda: torch.stack(tensors)),
        median_ms(lambda: torch.stack(tensors, out=torch.from_numpy(memory.empty(whole)))),
    ]


if __name__ == "__main__":
    main()
