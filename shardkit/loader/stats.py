"""Live figures of a loader: what was done, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardkit.loader.work import Feed, Made
from shardkit.samples.stream import StageTimes

__all__ = ["CacheCounts", "LoaderStats", "counts_of", "sum_counts"]

_ADVICE = {
    "consumer": "the training step: the loader keeps up",
    "fetch": "bringing bytes near: a faster store, more lookahead, or a larger cache",
    "decode": "decoding: more workers, smaller images, or members that are not used left out",
    "transform": 'transforms: more workers, or workers="processes" if they are pure Python',
    "collate": "putting batches together: give arrays of equal shape",
    "hand-over": "giving batches from workers to the loop: larger batches, or workers='threads'",
}

_KEEPS_UP = 0.1
"""A consumer that waits less than this part of its time is the bottleneck itself: noise of a few
percent is left over in any loop."""


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What was asked of the caches of far bytes."""

    hits: int = 0
    misses: int = 0


def sum_counts(counts: Iterable[CacheCounts]) -> CacheCounts:
    """Add up."""
    several = list(counts)
    return CacheCounts(sum(one.hits for one in several), sum(one.misses for one in several))


def counts_of(feeds: Sequence[Feed]) -> CacheCounts:
    """What this process has asked of the feeds' caches, of sources that have one."""
    caches = {id(cache): cache for feed in feeds if (cache := _cache_of(feed)) is not None}
    return sum_counts(
        CacheCounts(cache.stats.hits, cache.stats.misses)  # type: ignore[attr-defined]
        for cache in caches.values()
    )


def _cache_of(feed: Feed) -> object | None:
    return getattr(feed.stream.source, "cache", None)


@dataclass(slots=True)
class LoaderStats:
    """Sums since the loader was made.

    Attributes:
        num_workers: that share the stages' time; 0 where the consumer makes batches.
        num_batches: given to the consumer.
        num_samples: in them.
        start_s: seconds that the consumer waited for the first batch, workers' start included.
        wait_s: seconds that it waited for the others.
        consumer_s: seconds that it was busy between two batches.
        stages: seconds of worker time per stage, and bytes read.
    """

    num_workers: int
    num_batches: int = 0
    num_samples: int = 0
    start_s: float = 0.0
    wait_s: float = 0.0
    consumer_s: float = 0.0
    stages: StageTimes = field(default_factory=StageTimes)

    def note(self, made: Made, wait_s: float) -> None:
        """Add a batch."""
        if self.num_batches == 0:
            self.start_s = wait_s
        else:
            self.wait_s += wait_s
        self.num_batches += 1
        self.num_samples += made.num_samples
        self.stages.add(made.times)

    def note_left_out(self, made: Made) -> None:
        """Add a batch of which nothing was left: it took time, and the consumer does not get it."""
        self.stages.add(made.times)

    @property
    def bottleneck(self) -> str:
        """Which stage to look at: "consumer" if it rarely waits, else where workers spend most.

        "hand-over" if workers were idle for more than half of the time and it waited nevertheless.
        """
        elapsed = self.wait_s + self.consumer_s
        if self.wait_s <= _KEEPS_UP * elapsed:
            return "consumer"
        stages = self._stages()
        if sum(stages.values()) < 0.5 * elapsed * max(1, self.num_workers):
            return "hand-over"
        return max(stages, key=lambda name: stages[name])

    def to_dict(self, cache: CacheCounts) -> dict[str, float | int | str]:
        """The figures as a training loop logs them."""
        elapsed = self.start_s + self.wait_s + self.consumer_s
        return {
            "batches": self.num_batches,
            "samples": self.num_samples,
            "bytes": self.stages.num_bytes,
            "samples_per_s": self.num_samples / elapsed if elapsed else 0.0,
            "bytes_per_s": self.stages.num_bytes / elapsed if elapsed else 0.0,
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
            "start_s": self.start_s,
            "wait_s": self.wait_s,
            "consumer_s": self.consumer_s,
            **{f"{name}_s": seconds for name, seconds in self._stages().items()},
            "bottleneck": self.bottleneck,
            "advice": _ADVICE[self.bottleneck],
        }

    def _stages(self) -> dict[str, float]:
        stages = self.stages
        return {
            "fetch": stages.fetch,
            "decode": stages.decode,
            "transform": stages.transform,
            "collate": stages.collate,
        }
