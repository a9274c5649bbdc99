"""The progress bar of commands: samples/s, MB/s, time left; silent where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

from shardkit.executors import Report

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(total: int | None, what: str, *, quiet: bool = False) -> Iterator[Report]:
    """A bar over samples, on a terminal only; yields the function that moves it."""
    off = quiet or not sys.stderr.isatty()
    num_bytes = 0
    with tqdm(total=total, desc=what, unit=" samples", unit_scale=True, disable=off) as bar:

        def report(samples: int, more_bytes: int) -> None:
            nonlocal num_bytes
            num_bytes += more_bytes
            elapsed = bar.format_dict["elapsed"] or 0.0
            if elapsed > 0:
                bar.set_postfix_str(f"{num_bytes / elapsed / 1e6:,.0f} MB/s", refresh=False)
            bar.update(samples)

        yield report
