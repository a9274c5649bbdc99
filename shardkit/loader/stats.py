"""Live figures of a loader: what was done, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardkit.loader.work import Made
from shardkit.samples.stream import StageTimes

__all__ = ["LoaderStats"]

_ADVICE = {
    "consumer": "the training step; the loader keeps up",
    "fetch": "bringing bytes near: a faster store, more lookahead, or a larger cache",
    "decode": "decoding: more workers, smaller images, or members that are not used left out",
    "transform": 'transforms: more workers, or workers="processes" if they are pure Python',
    "collate": "putting batches together: give arrays of equal shape",
}


@dataclass(slots=True)
class LoaderStats:
    """Sums since the loader was made.

    Attributes:
        num_batches: given to the consumer.
        num_samples: in them.
        wait_s: seconds that the consumer waited for a batch.
        consumer_s: seconds that it was busy between two batches.
        stages: seconds of worker time per stage.
        num_workers: that share this time.
    """

    num_batches: int = 0
    num_samples: int = 0
    wait_s: float = 0.0
    consumer_s: float = 0.0
    stages: StageTimes = field(default_factory=StageTimes)
    num_workers: int = 0

    def note(self, made: Made, wait_s: float) -> None:
        """Add a batch."""
        self.num_batches += 1
        self.num_samples += made.num_samples
        self.wait_s += wait_s
        self.stages.add(made.times)

    @property
    def bottleneck(self) -> str:
        """Which stage to look at: "consumer" if it rarely waits, else where workers spend most."""
        if self.wait_s <= 0.1 * (self.wait_s + self.consumer_s):
            return "consumer"
        stages = self._stages()
        return max(stages, key=lambda name: stages[name])

    def to_dict(self) -> dict[str, float | int | str]:
        """The figures as a training loop logs them."""
        elapsed = self.wait_s + self.consumer_s
        return {
            "batches": self.num_batches,
            "samples": self.num_samples,
            "samples_per_s": self.num_samples / elapsed if elapsed else 0.0,
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
