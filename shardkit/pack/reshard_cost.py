"""What each of the two ways of a reshard costs, so that the cheaper one is taken.

Pure: counts and sizes in, requests, bytes and seconds out; ``docs/reshard.md`` writes the model
down. The output is written alike either way, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shardkit.format.sizes import show_size
from shardkit.storage.ranges import COALESCE_GAP

__all__ = ["Cost", "Measures", "Way", "costs"]

Way = Literal["ranges", "spill"]


@dataclass(frozen=True, slots=True)
class _Place:
    """How fast a worker reads from somewhere."""

    request_s: float
    """Seconds that one request or seek takes of a worker's time, many being under way."""
    bytes_per_s: float


_NEAR = _Place(request_s=15e-6, bytes_per_s=0.9e9)
"""A cloud volume (ext4 on virtio), cold: 65 us a random read, 15 us with 64 under way; 0.84 to 0.93
GB/s from end to end."""
_FAR = _Place(request_s=0.1 / 32, bytes_per_s=570e6)
"""S3: 100 ms to the first byte (Amazon's own "Best practices design patterns": 100-200 ms), 32
requests under way in a worker; what one process took from a loopback S3 in 8 streams."""
_WRITE_BYTES_PER_S = 1.1e9
"""The same volume, written and synced."""
_SPAN_BYTES = 4 << 20  # of a ranged read where samples follow each other, as in ``ranges.py``
_READ_AHEAD = 128 << 10  # bytes that a kernel reads at one place: of a source that memory holds


@dataclass(frozen=True, slots=True)
class Measures:
    """What there is to move.

    Attributes:
        num_samples: that are taken.
        num_bytes: of their members.
        source_shards: that hold some of them.
        source_bytes: of those shards.
        output_shards: to be made.
        piece_bytes: of one request when a far shard is read from end to end.
        num_spills: spill files that there would be.
        is_far: whether the source is behind a URL.
        is_shuffled: whether samples that follow each other in the output don't in the source.
        memory_bytes: of the machine.
    """

    num_samples: int
    num_bytes: int
    source_shards: int
    source_bytes: int
    output_shards: int
    piece_bytes: int
    num_spills: int
    is_far: bool
    is_shuffled: bool
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way asks of the source and of the disk, and the seconds of one worker for it."""

    way: Way
    requests: int
    """Ranged reads of the source; seeks where it is local."""
    read_bytes: int
    """From the source."""
    spilled_bytes: int = 0
    """Written to the disk, and read again."""
    spill_seeks: int = 0
    seconds: float = field(default=0.0)

    def describe(self) -> str:
        """One line for people."""
        text = (
            f"{self.way:<7} {self.requests:,} reads, {show_size(self.read_bytes)} from the source"
        )
        if self.spilled_bytes:
            text += f"; {show_size(self.spilled_bytes)} spilled, {self.spill_seeks:,} seeks"
        return f"{text}; about {self.seconds:,.1f} s of one worker"


def costs(measures: Measures) -> list[Cost]:
    """The cost of each way, the cheaper one first."""
    return sorted([_ranges(measures), _spill(measures)], key=lambda cost: cost.seconds)


def _ranges(measures: Measures) -> Cost:
    """One read a sample; or one a few MB where samples keep their order."""
    place = _FAR if measures.is_far else _NEAR
    requests = measures.num_samples
    if not measures.is_shuffled:
        requests = min(requests, measures.source_shards + measures.num_bytes // _SPAN_BYTES)
    if not measures.is_far and 2 * measures.source_bytes <= measures.memory_bytes:
        requests = min(requests, measures.source_shards + measures.source_bytes // _READ_AHEAD)
    seconds = requests * place.request_s + measures.num_bytes / place.bytes_per_s
    return Cost("ranges", requests, measures.num_bytes, seconds=seconds)


def _spill(measures: Measures) -> Cost:
    """Every source shard from end to end, and a run of every spill for every output shard."""
    place = _FAR if measures.is_far else _NEAR
    requests, read = measures.source_shards, measures.source_bytes
    if measures.is_far:
        requests += read // measures.piece_bytes
    if measures.source_bytes > measures.num_samples * COALESCE_GAP + measures.num_bytes:
        requests, read = measures.num_samples, measures.num_bytes  # few samples, far apart
    seeks = min(measures.num_samples, measures.num_spills * measures.output_shards)
    seconds = requests * place.request_s + read / place.bytes_per_s
    seconds += measures.num_bytes / _WRITE_BYTES_PER_S
    seconds += seeks * _NEAR.request_s + measures.num_bytes / _NEAR.bytes_per_s
    return Cost("spill", requests, read, measures.num_bytes, seeks, seconds)
