"""The packed photos, and no warnings about more workers than cores."""

from __future__ import annotations

from tests.dataset.conftest import packed

__all__ = ["packed"]
