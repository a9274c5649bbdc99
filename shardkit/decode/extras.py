"""Optional libraries, imported on first use, and what to install where one is missing."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

from shardkit.errors import MissingDependencyError

__all__ = ["has_module", "need"]


@cache
def need(module: str, purpose: str) -> Any:
    """Import an optional module, or say which extra has it.

    Args:
        module: dotted name as ``import`` takes it.
        purpose: what it is needed for, as the message's subject ("decoding .mp4").

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        raise MissingDependencyError(
            f"{purpose} needs the library {top!r}, which cannot be imported ({error}); "
            f"install shardkit[train]"
        ) from error


@cache
def has_module(module: str) -> bool:
    """Is this top-level module installed? Looks, and does not import."""
    return importlib.util.find_spec(module) is not None
