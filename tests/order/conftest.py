"""Property tests here have no deadline: a busy machine is not a failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("order", deadline=None)
settings.load_profile("order")
