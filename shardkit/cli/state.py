"""``shardkit state show FILE``: what a saved state says, in words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from shardkit.cli.echo import echo
from shardkit.errors import MissingDependencyError, NotFoundError, StateError, StoreError
from shardkit.order.state import State

__all__ = ["add_arguments", "run"]

_ZIP = b"PK"
"""How files of torch.save begin, but for very old ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="epoch, position, percent, the world it was saved on")
    show.add_argument(
        "file", metavar="FILE", help="JSON, or saved by torch.save; states inside it are found"
    )


def run(args: argparse.Namespace) -> int:
    """Explain every state in the file.

    Raises:
        StateError: there is none in it, or it is damaged.
    """
    num_found = 0
    for path, text in _explained(_load(args.file), ""):
        if num_found:
            echo()
        if path:
            echo(f"{path}:")
        echo(text)
        num_found += 1
    if not num_found:
        raise StateError(
            f"{args.file} holds no state of shardkit: save what loader.state_dict() gives"
        )
    return 0


def _load(path: str) -> Any:
    """The file's contents, whichever way it was saved; nothing in it is run."""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == _ZIP
            if not is_zip:  # one of torch may be larger than memory
                file.seek(0)
                return json.load(file)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise StateError(
            f"{path} is a folder: give a file (of a checkpoint of torch.distributed, the one that "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save makes of it)"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    except ValueError:
        pass  # no JSON: saved by torch, if at all
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is no JSON; to read what torch.save wrote, install shardkit[train]"
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        said = str(error).partition("\n")[0] or repr(error)
        raise StateError(
            f"{path} is neither JSON nor a file of torch.save that can be read safely: {said}"
        ) from error


def _explained(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Find states at any depth; yield where each is and what it says."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return
    if {"fingerprint", "position", "epoch"} <= set(value):
        yield path, _explain(value)
    elif {"mix", "streams"} <= set(value):
        yield path, _explain_mixture(value)
    else:
        for name, item in value.items():
            yield from _explained(item, f"{path}.{name}" if path else str(name))


def _explain(state: Mapping[str, Any]) -> str:
    fields = {name: state[name] for name in state if name not in _WORKER_FIELDS}
    text = State.from_dict(fields).explain()
    if len(fields) < len(state):
        worker, num_workers = state.get("worker"), state.get("num_workers")
        text += f"\nof loader worker {worker} of {num_workers} alone"
    return text


_WORKER_FIELDS = ("worker", "num_workers", "first")


def _explain_mixture(state: Mapping[str, Any]) -> str:
    try:
        mix, streams = state["mix"], state["streams"]
        lines = [
            f"a mixture by {mix['by']}, schedule {mix['schedule']}, seed {mix['seed']}",
            f"epoch {mix['epoch']} of the mixture, saved on {mix['world_size']} ranks",
        ]
        if mix["rounds_left"]:
            lines.append(f"in a turn that accumulates: {mix['rounds_left']} batches are left")
        total = sum(stream["weight"] for stream in mix["streams"].values())
        for name, stream in mix["streams"].items():
            share = stream["weight"] / total
            lines.append(
                f"stream {name!r}: {share:.2%}, {stream['given']:,} samples in this epoch so far"
            )
            lines += [f"  {line}" for line in _explain(streams[name]).splitlines()]
    except (KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the state of the mixture is damaged: {error!r}") from error
    return "\n".join(lines)
