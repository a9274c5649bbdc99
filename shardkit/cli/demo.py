"""``shardkit demo [DIR]``: a small data set from files to training steps, with what each took."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from shardkit.cli.demo_data import SUBJECTS, make_demo_data
from shardkit.cli.echo import counted, echo
from shardkit.decode.extras import need
from shardkit.errors import CorruptError
from shardkit.format.sizes import show_size
from shardkit.pack import LocalExecutor, PackOptions, pack, verify

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", default="demo", help="for all files (default: demo)"
    )
    parser.add_argument(
        "--images", type=int, default=48, metavar="N", help="photos to make (default: 48)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that pack (default: cores)"
    )


def run(args: argparse.Namespace) -> int:
    """Make, pack, verify, train."""
    need("torch", "shardkit demo")
    began = time.monotonic()
    source = os.path.join(args.folder, "source")
    index = make_demo_data(source, args.images, args.images // 4, args.images // 8)
    made = sum(entry.stat().st_size for entry in _files(source))
    echo(f"made     {args.images} rows of photos, sounds and videos, {show_size(made)}, {index}")

    out = os.path.join(args.folder, "shards")
    options = PackOptions(samples_per_shard=16)
    summary = pack(
        index, out, inline=["caption=txt"], options=options, executor=LocalExecutor(args.workers)
    )
    echo(
        f"packed   {counted(summary.num_samples, 'sample')} in "
        f"{counted(summary.num_shards, 'shard')}, "
        f"{show_size(summary.num_bytes)}, in {summary.seconds:.2f} s: {summary.brace_url}"
    )
    start = time.monotonic()
    report = verify(out, executor=LocalExecutor(args.workers))
    if not report.ok:
        raise CorruptError(f"{out} is not what was packed: {report.problems[0]}")
    echo(f"verified every byte, offset and key in {time.monotonic() - start:.2f} s")
    _train(out)
    echo(f"all of it in {time.monotonic() - began:.1f} s; the files are in {args.folder}")
    return 0


def _files(folder: str) -> list[os.DirEntry[str]]:
    found: list[os.DirEntry[str]] = []
    for entry in os.scandir(folder):
        found.extend(_files(entry.path) if entry.is_dir() else [entry])
    return found


def _train(out: str) -> None:
    """Two epochs of a tiny network that learns the labels of the photos by heart."""
    import torch

    from shardkit.dataset import ShardDataset
    from shardkit.loader import DataLoader

    def picture(sample: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.as_tensor(sample["jpg"] if "jpg" in sample else sample["png"])
        small = torch.nn.functional.interpolate(
            pixels.permute(2, 0, 1)[None].float() / 127.5 - 1, size=(32, 32), mode="area"
        )[0]
        return {"picture": small, "label": SUBJECTS.index(sample["label"])}

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, len(SUBJECTS)))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    dataset = ShardDataset(out, members=["jpg", "png"], transforms=[picture])
    with DataLoader(dataset, batch_size=8, num_workers=2) as loader:
        for epoch in range(2):
            start, seen, losses = time.monotonic(), 0, []
            for batch in loader:
                loss = torch.nn.functional.cross_entropy(network(batch["picture"]), batch["label"])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                seen += len(batch["label"])
                losses.append(float(loss.detach()))
            rate = seen / (time.monotonic() - start)
            mean = sum(losses) / len(losses)
            echo(f"trained  epoch {epoch}: {seen} samples, loss {mean:.3f}, {rate:,.0f} samples/s")
        stats = loader.stats()
        echo(f"waited   most for {stats['bottleneck']}: {stats['advice']}")
    start = time.monotonic()
    media = [sample for sample in ShardDataset(out, shuffle="none", decode=None) if "mp4" in sample]
    echo(f"streamed {len(media)} videos as bytes in {time.monotonic() - start:.2f} s")
