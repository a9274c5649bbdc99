"""Batches in page-locked memory, from which a GPU can copy while it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["pin", "pinner"]


def pinner() -> Callable[[Any], Any] | None:
    """What to do to a batch here: nothing where there is no GPU."""
    torch = sys.modules.get("torch")
    return pin if torch is not None and torch.cuda.is_available() else None


def pin(value: Any) -> Any:
    """Tensors of a batch, at any depth, in page-locked memory; anything else as it is."""
    if callable(getattr(value, "pin_memory", None)):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: pin(item) for name, item in value.items()}
    if isinstance(value, tuple):
        items = [pin(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [pin(item) for item in value]
    return value
