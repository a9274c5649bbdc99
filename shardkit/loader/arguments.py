"""Arguments of ``DataLoader``, checked, and those of torch's loader that are not honoured."""

from __future__ import annotations

import multiprocessing
import operator
import os
from collections.abc import Mapping
from multiprocessing.context import BaseContext
from typing import Any

from shardkit.errors import ConfigError
from shardkit.world import World

__all__ = ["global_size", "own_cores", "refuse", "start_method", "whole"]

_MOST_RANKS = 8
"""Ranks of a node: as many as it has GPUs. More are those of several nodes, where no launcher has
told how many nodes there are."""

# What torch's loader takes and this one does not: torch's default, and what to use instead.
_OF_TORCH: Mapping[str, tuple[Any, str]] = {
    "shuffle": (None, "shuffle= belongs to the data set"),
    "sampler": (None, "the data set's shuffle=, where=, exclude= and weights= say what comes"),
    "batch_sampler": (None, "the data set's shuffle= and the loader's batch_size= say what comes"),
    "drop_last": (False, 'use remainder="drop"'),
    "timeout": (0, "a store's own deadlines end a read that hangs"),
    "generator": (None, "the data set's seed= says all that is random"),
    "pin_memory_device": ("", "pin_memory=True pins for the present device"),
    "in_order": (True, "batches come in canonical order always"),
}


def refuse(given: Mapping[str, Any]) -> None:
    """Say what to use instead of an argument that is not honoured.

    Raises:
        ConfigError: it has another value than torch's default, or is no argument at all.
    """
    for name, value in given.items():
        if name not in _OF_TORCH:
            raise ConfigError(f"{name}={value!r} is no argument of DataLoader: see its help")
        default, instead = _OF_TORCH[name]
        if value is not default and value != default:
            raise ConfigError(f"{name}={value!r} is not honoured by this DataLoader: {instead}")


def global_size(batch_size: int | None, global_batch_size: int | None, world_size: int) -> int:
    """Return G, said for this rank or for all.

    Raises:
        ConfigError: it is said twice, or no number of samples.
    """
    if global_batch_size is None:
        if batch_size is None:
            raise ConfigError(
                "batch_size=None asks torch's loader for samples as they are; this one makes "
                "batches: iterate over the data set itself, or give the number of samples"
            )
        return whole("batch_size", batch_size, 1) * world_size
    if batch_size not in (None, 1):  # 1 is the default: not given
        raise ConfigError(
            f"batch_size={batch_size} and global_batch_size={global_batch_size} are two ways to "
            "say one thing; give one of them"
        )
    return whole("global_batch_size", global_batch_size, 1)


def whole(name: str, value: int | None, default: int, *, least: int = 1) -> int:
    """Return a number as Python's own, whatever kind of integer it came as: states hold it.

    Raises:
        ConfigError: it is no integer, or too small.
    """
    if value is None:
        return default
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name}={value!r} must be an integer") from None
    if number < least:
        raise ConfigError(f"{name}={number} must be at least {least}")
    return number


def start_method(context: str | BaseContext | None) -> str:
    """Return the name of a start method, whether given by name or as a context.

    Raises:
        ConfigError: there is none of that name here.
    """
    name = context.get_start_method() if isinstance(context, BaseContext) else context
    if name is None:
        return "forkserver"
    if name not in multiprocessing.get_all_start_methods():
        raise ConfigError(
            f"multiprocessing_context={context!r} is not one of "
            f"{multiprocessing.get_all_start_methods()}"
        )
    return name


def own_cores(world: World) -> int:
    """Return the cores that this process may use, at most its share of the node's as a rank."""
    num_ranks = min(-(-world.world_size // world.num_nodes), _MOST_RANKS)
    share = (os.cpu_count() or 1) // num_ranks
    return min(len(os.sched_getaffinity(0)), max(1, share))
