"""Set-up, seek, memory and speed of the order at 10^9 and 10^10 samples.

python benchmarks/order_scale.py

Each line is a process of its own: seconds to make an EpochOrder, to get the first 256 ids in the
middle of the epoch (a seek, all lanes included), samples ordered per second over the next two
million, and the growth of resident memory over the counts themselves.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from shardkit.order.batches import iterate_blocks
from shardkit.order.epoch import EpochOrder, ShuffleOptions
from shardkit.order.split import Split

CASES = [  # shards, rows per shard
    (100_000, 10_000),
    (1_000_000, 10_000),
    (100_000, 50),
    (50, 20_000_000),
]
SETTINGS = [  # mode, buffer_size, lanes
    ("none", 10_000, 1),
    ("shard", 10_000, 64),
    ("buffer", 10_000, 1),
    ("buffer", 10_000, 64),
    ("buffer", 1_000_000, 64),
    ("global", 10_000, 1),
    ("global", 10_000, 64),
]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(num_shards, rows, mode, buffer_size, num_lanes):
    counts = np.full(num_shards, rows)
    warm = EpochOrder(np.full(10, 1000), ShuffleOptions(mode, 100, 0, 2))
    warm.at(np.arange(10_000))
    before = resident()
    started = time.perf_counter()
    order = EpochOrder(counts, ShuffleOptions(mode, buffer_size, 0, num_lanes), 1)
    made = time.perf_counter()
    middle = order.num_samples // 2
    order.at(np.arange(middle, middle + 256))
    sought = time.perf_counter()
    split = Split(order.num_samples, 256, "pad", num_lanes=num_lanes)
    num_ids = 0
    for block in iterate_blocks(order, split, middle):
        num_ids += len(block.ids)
        if num_ids >= 2_000_000:
            break
    done = time.perf_counter()
    return {
        "setup_s": made - started,
        "seek_s": sought - made,
        "per_s": num_ids / (done - sought),
        "rss_bytes": resident() - before,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="one case, as the parent calls it")
    arguments = parser.parse_args()
    if arguments.case:
        shards, rows, mode, buffer_size, lanes = arguments.case
        print(json.dumps(measure(int(shards), int(rows), mode, int(buffer_size), int(lanes))))
        return
    print("   samples    shards  mode     buffer  lanes  set-up ms  seek ms  samples/s   RSS MB")
    for num_shards, rows in CASES:
        for mode, buffer_size, lanes in SETTINGS:
            case = [num_shards, rows, mode, buffer_size, lanes]
            command = [sys.executable, __file__, *map(str, case)]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            print(
                f"{num_shards * rows:10.0e} {num_shards:9,}  {mode:7} {buffer_size:8,} {lanes:5}"
                f"{found['setup_s'] * 1e3:11.1f}{found['seek_s'] * 1e3:9.2f}"
                f"{found['per_s'] / 1e6:9.1f} M{found['rss_bytes'] / 1e6:9.1f}"
            )


if __name__ == "__main__":
    main()
