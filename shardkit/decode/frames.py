"""Frames of a video at given times, decoding as little as the codec allows.

Between a keyframe and the frame that is wanted lie others. Those that no frame refers to are
skipped inside the decoder, stretches between keyframes that hold nothing wanted are not decoded
at all, and far jumps are seeks. The frame "at" a time is the one on display then.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardkit.decode.extras import need
from shardkit.decode.pictures import FrameWriter
from shardkit.errors import DecodeError

__all__ = [
    "PastEndError",
    "Timeline",
    "frame_times",
    "frames_at",
    "is_on_its_side",
    "keyframe_before",
    "last_end",
    "timeline_of",
]

_JUMP_S = 3.0  # a seek and a new keyframe cost less than decoding this long a stretch
_GROUP_S = 30.0  # bounds the compressed packets held at once
_EARLIER_S = (0.0, 1.0, 4.0, 16.0)  # how much earlier to seek when a seek lands too late
_MAX_REORDER = 16
_UNTIMED = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo"})


class PastEndError(DecodeError):
    """A frame was asked for after the last one. ``end`` is where the video ends, in seconds."""

    def __init__(self, time: float, end: float) -> None:
        super().__init__(
            f"there is no frame at {time:.3f} s: the last one ends at {end:.3f} s; "
            f"ask for an earlier clip, fewer frames, or allow_shorter=True"
        )
        self.end = end


@dataclass(frozen=True, slots=True)
class Timeline:
    """How a stream counts time: seconds = (pts - origin) * tick.

    ``frame`` is what one frame lasts on average. Where ``is_told`` is false, the container has no
    times (a bare stream; or AVI, for which FFmpeg makes up other ones after each seek), frames are
    counted from the first.
    """

    origin: int
    tick: float
    frame: float
    is_told: bool = True

    @property
    def slack(self) -> float:
        """How much earlier than its frame a time may be: containers round (mkv to 1 ms)."""
        return min(0.002, 0.25 * self.frame)

    def seconds(self, pts: int) -> float:
        """Seconds from the first frame."""
        return (pts - self.origin) * self.tick

    def pts(self, seconds: float) -> int:
        """The stream's time of a moment, rounded down."""
        return self.origin + int((seconds + self.slack) / self.tick + 1e-6)


def timeline_of(container: Any, stream: Any) -> Timeline:
    """Read a video stream's time base, start and average rate."""
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return Timeline(
        origin=stream.start_time or 0,
        tick=float(stream.time_base),
        frame=1 / float(rate) if rate else 0.04,
        is_told=container.format.name not in _UNTIMED,
    )


def frames_at(
    container: Any, stream: Any, times: Sequence[float], writer: FrameWriter
) -> list[float]:
    """Decode the frames on display at ``times`` into ``writer``, slot by slot.

    Args:
        container: freshly opened.
        stream: its video stream.
        times: ascending, in seconds from the first frame.
        writer: takes ``(slot, frame)``; equal frames are converted once.

    Returns:
        For each time, when the frame on display began, in seconds.

    Raises:
        PastEndError: a time lies after the last frame.
        DecodeError: a frame cannot be decoded.
    """
    line = timeline_of(container, stream)
    if not line.is_told:
        return _frames_one_by_one(container, stream, line, times, writer)
    begins: list[float] = []
    for group in _groups(times):
        targets = [line.pts(times[slot]) for slot in group]
        packets, ended = _packets_around(container, stream, line, targets)
        if packets is None:
            return _frames_one_by_one(container, stream, line, times, writer)
        shown = sorted(packet.pts for packet in packets if not packet.is_discard)
        if not shown:
            raise DecodeError("its video stream has no frames")
        if ended:
            _check_end(line, packets, times, group)
        wanted = [shown[max(0, bisect.bisect_right(shown, pts) - 1)] for pts in targets]
        missing = _decode_wanted(stream, packets, dict(_slots(wanted, group)), writer)
        if missing:  # a decoder that renames its frames: trust only what comes out of it
            return _frames_one_by_one(container, stream, line, times, writer)
        begins += [line.seconds(pts) for pts in wanted]
    return begins


def last_end(container: Any, stream: Any) -> float:
    """Find where the last frame ends, in seconds, by reading packets only."""
    line = timeline_of(container, stream)
    end = 0.0
    for number, packet in enumerate(_packets(container, stream)):
        if packet.is_discard:
            continue
        is_told = line.is_told and packet.pts is not None
        begin = line.seconds(packet.pts) if is_told else number * line.frame
        end = max(end, begin + _duration(packet, line))
    return end


def frame_times(container: Any, stream: Any) -> list[float]:
    """List when each frame begins, ascending, in seconds from the first, by reading packets."""
    line = timeline_of(container, stream)
    times: list[float] = []
    for number, packet in enumerate(_packets(container, stream)):
        if packet.is_discard:
            continue
        is_told = line.is_told and packet.pts is not None
        times.append(line.seconds(packet.pts) if is_told else number * line.frame)
    return sorted(times)


def keyframe_before(container: Any, stream: Any, time: float) -> float:
    """Find the last keyframe at or before ``time``; the first frame where there is none."""
    line = timeline_of(container, stream)
    if not line.is_told:
        return 0.0
    packets, _ = _packets_around(container, stream, line, [line.pts(time)])
    keys = [line.seconds(packet.pts) for packet in packets or () if packet.is_keyframe]
    return max((key for key in keys if key <= time + line.slack), default=0.0)


def is_on_its_side(container: Any, stream: Any) -> bool:
    """Does the first frame say that it is to be turned by a quarter?"""
    for frame in container.decode(stream):
        return bool(round(frame.rotation / 90) % 2)
    return False


def _groups(times: Sequence[float]) -> Iterator[list[int]]:
    """Cut slots into runs that one seek serves."""
    group: list[int] = []
    for slot, time in enumerate(times):
        if group and (time - times[slot - 1] > _JUMP_S or time - times[group[0]] > _GROUP_S):
            yield group
            group = []
        group.append(slot)
    if group:
        yield group


def _slots(wanted: list[int], group: list[int]) -> Iterator[tuple[int, list[int]]]:
    for pts in dict.fromkeys(wanted):
        yield pts, [slot for slot, other in zip(group, wanted, strict=True) if other == pts]


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.size and not packet.is_corrupt:  # the empty ones ask for a flush
            yield packet


def _packets_around(
    container: Any, stream: Any, line: Timeline, targets: list[int]
) -> tuple[list[Any] | None, bool]:
    """Read from a keyframe at or before the first target past the last one.

    Returns None for the packets where they do not tell their times, and whether the stream ended.
    """
    ffmpeg_error = need("av", "decoding video").FFmpegError
    begin = _begin(line)
    for earlier in _EARLIER_S:
        at = max(begin, targets[0] - int(earlier / line.tick))
        try:
            container.seek(at, stream=stream)
        except ffmpeg_error:  # it can't jump in this file
            return None, False
        packets, ended = _packets_until(container, stream, targets[-1])
        if packets is None or at == begin or (packets and packets[0].pts <= targets[0]):
            return packets, ended
    container.seek(begin, stream=stream)
    return _packets_until(container, stream, targets[-1])


def _begin(line: Timeline) -> int:
    """Return a time before the first packet, whose decoding time may be below zero."""
    return line.origin - int(1 / line.tick)


def _packets_until(container: Any, stream: Any, last: int) -> tuple[list[Any] | None, bool]:
    """Read from the next keyframe on until no frame at or before ``last`` can follow."""
    packets: list[Any] = []
    num_later = 0
    for packet in _packets(container, stream):
        if packet.pts is None:
            return None, False
        if not packets and not packet.is_keyframe:
            continue  # nothing before a keyframe can be decoded
        packets.append(packet)
        num_later += packet.pts > last
        # Decoding times ascend and come before showing times. Where they are untold, a frame
        # comes at most 16 places after those that are shown later (the limit of H.264 and HEVC).
        if num_later and (num_later > _MAX_REORDER if packet.dts is None else packet.dts > last):
            return packets, False
    return packets, True


def _check_end(
    line: Timeline, packets: list[Any], times: Sequence[float], slots: list[int]
) -> None:
    end = max(line.seconds(packet.pts) + _duration(packet, line) for packet in packets)
    for slot in slots:
        if times[slot] >= end + line.slack:
            raise PastEndError(times[slot], end)


def _duration(packet: Any, line: Timeline) -> float:
    return float(packet.duration) * line.tick if packet.duration else line.frame


def _decode_wanted(
    stream: Any, packets: list[Any], slots: dict[int, list[int]], writer: FrameWriter
) -> bool:
    """Decode the wanted frames of a run of packets; True if one did not come out."""
    context = stream.codec_context
    left = set(slots)
    for run in _runs(packets, slots):
        context.flush_buffers()
        for packet in run:
            context.skip_frame = "DEFAULT" if packet.pts in slots else "NONREF"
            _write(context.decode(packet), slots, left, writer)
            if not left:
                break
        else:
            _write(context.decode(None), slots, left, writer)
    context.skip_frame = "DEFAULT"
    return bool(left)


def _write(frames: Any, slots: dict[int, list[int]], left: set[int], writer: FrameWriter) -> None:
    for frame in frames:
        if frame.pts in left:
            left.discard(frame.pts)
            writer.write(slots[frame.pts], frame)


def _runs(packets: list[Any], wanted: dict[int, list[int]]) -> Iterator[list[Any]]:
    """Yield runs of packets, each from a keyframe on, that hold all wanted frames."""
    starts = [place for place, packet in enumerate(packets) if packet.is_keyframe] or [0]
    parts = [packets[a:b] for a, b in zip(starts, [*starts[1:], len(packets)], strict=True)]
    needed = [any(packet.pts in wanted for packet in part) for part in parts]
    for place in range(1, len(parts)):
        key = parts[place][0].pts
        if any(packet.pts in wanted and packet.pts < key for packet in parts[place]):
            needed[place - 1] = True  # shown before its keyframe: refers to the part before
    run: list[Any] = []
    for part, is_needed in zip(parts, needed, strict=True):
        if is_needed:
            run += part
        elif run:
            yield run
            run = []
    if run:
        yield run


def _frames_one_by_one(
    container: Any, stream: Any, line: Timeline, times: Sequence[float], writer: FrameWriter
) -> list[float]:
    """Decode from the start, counting frames where they carry no time."""
    if line.is_told:  # something was read already
        stream.codec_context.flush_buffers()
        stream.codec_context.skip_frame = "DEFAULT"
        container.seek(_begin(line), stream=stream)
    begins: list[float] = []
    before: tuple[float, Any] | None = None
    end = 0.0
    for number, frame in enumerate(container.decode(stream)):
        is_told = line.is_told and frame.pts is not None
        begin = line.seconds(frame.pts) if is_told else number * line.frame
        while len(begins) < len(times) and times[len(begins)] + line.slack < begin:
            at, shown = before or (begin, frame)
            writer.write([len(begins)], shown)
            begins.append(at)
        if len(begins) == len(times):
            return begins
        before, end = (begin, frame), begin + line.frame
    if before is None:
        raise DecodeError("its video stream has no frames")
    for time in times[len(begins) :]:
        if time >= end + line.slack:
            raise PastEndError(time, end)
        writer.write([len(begins)], before[1])
        begins.append(before[0])
    return begins
