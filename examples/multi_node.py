"""Train on several machines: each fetches its part of the data into a cache of its own.

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr HOST --master-port 29500 \
        examples/multi_node.py s3://bucket/out/ RUN [--steps N] [--cache DIR] [--endpoint URL]

On every machine the same, with its own ``--node-rank``. RUN is a folder that all of them see: the
state is saved there, so that the same command goes on where the last one stopped, on any number of
machines. In "buffer" mode (the default) a machine fetches the shards of its own lanes and at most
the shards that are cut between two: of two machines each half of the data an epoch.
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from shardkit import DataLoader, ShardDataset, World
from shardkit.transforms import KeepFields, image_pipeline

GLOBAL_BATCH_SIZE = 12  # over all ranks, so that batches are the same sets on any number of them


def arguments() -> argparse.Namespace:
    """What to train on, where to save, how long."""
    parser = argparse.ArgumentParser(description="Train on the photos of a packed data set.")
    parser.add_argument("url", help="packed data set")
    parser.add_argument("run", help="folder for the state, seen by all machines")
    parser.add_argument("--steps", type=int, help="stop after so many (default: one epoch's end)")
    parser.add_argument("--cache", default="/tmp/shardkit-cache", help="on each machine")
    parser.add_argument("--endpoint", help="of another S3 than Amazon's")
    return parser.parse_args()


def make_loader(args: argparse.Namespace, world: World) -> DataLoader:
    """Batches of small photos; the cache is the node's, shared by its ranks."""
    dataset = ShardDataset(
        args.url,
        seed=1,
        members=["jpg"],
        metadata=[],
        transforms=[
            image_pipeline("jpg", (16, 16), into="image", flip=0.5, normalize="unit"),
            KeepFields("image"),
        ],
        cache_dir=os.path.join(args.cache, f"node-{world.node}"),
        storage_options={"endpoint_url": args.endpoint} if args.endpoint else None,
        world=world,
    )
    return DataLoader(
        dataset,
        global_batch_size=GLOBAL_BATCH_SIZE,
        num_workers=1,
        persistent_workers=False,  # a run is one epoch: no bytes of the next are wanted
    )


def main() -> None:
    """Train until the epoch ends or there were enough steps; save; say which samples came."""
    args = arguments()
    dist.init_process_group("gloo")
    world = World.detect()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(3 * 16 * 16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    state_path = os.path.join(args.run, "state.pt")
    with make_loader(args, world) as loader:
        if os.path.exists(state_path):
            state = torch.load(state_path, weights_only=True)
            model.module.load_state_dict(state["model"])
            loader.load_state_dict(state["loader"])
        keys: list[str] = []
        for batch in itertools.islice(loader, args.steps):
            pixels = batch["image"].flatten(1)
            loss = (model(pixels).squeeze(1) - pixels.mean(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pads = batch.get("__pad__", [False] * len(batch["__key__"]))
            keys += [k for k, is_pad in zip(batch["__key__"], pads, strict=True) if not is_pad]
        state = {"model": model.module.state_dict(), "loader": loader.state_dict()}
    with open(os.path.join(args.run, f"keys-{world.rank}.txt"), "a", encoding="utf-8") as file:
        file.writelines(f"{key}\n" for key in keys)
    if world.rank == 0:
        torch.save(state, f"{state_path}.part")
        os.replace(f"{state_path}.part", state_path)
    print(f"rank {world.rank} on node {world.node} of {world.num_nodes}: {len(keys)} samples")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
