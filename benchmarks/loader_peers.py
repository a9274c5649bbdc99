"""webdataset's way to batches of pictures, for ``loader_d1.py``; runs in the peers' environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import peers
from harness import Result, Task

SIZE = (224, 224)


def resized(sample: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    picture = sample["jpg"].resize(SIZE[::-1], 2)  # bilinear
    return {"image": np.asarray(picture), "key": sample["__key__"]}


def decoded_webdataset(task: Task) -> Result:
    from torch.utils.data import DataLoader

    dataset = peers.webdataset_over(task).decode("pil").map(resized)
    count, began = 0, time.perf_counter()
    for batch in DataLoader(dataset, 64, num_workers=2):
        assert batch["image"].shape[1:] == (*SIZE, 3)
        count += len(batch["key"])
    return Result(time.perf_counter() - began, count)


CONTESTANTS: dict[str, Callable[[Task], Result]] = {"decoded_webdataset": decoded_webdataset}
