"""A 16-frame clip of a 10 s 720p H.264 video, against torchcodec and PyAV written by hand.

    python benchmarks/decode_video.py

Prints milliseconds per clip and the ratio to the better of the two, for three kinds of clip.
All use one thread; frames are compared before anything is timed.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable

import av
import numpy as np
import numpy.typing as npt

from shardkit.cli.demo_data import encode_video, pan, photo
from shardkit.decode.video import Video

FPS, SECONDS = 30, 10
CLIPS = {
    "16 frames in a row from 4.2 s": 4.2 + np.arange(16) / FPS,
    "16 frames at 8 fps from 3.1 s": 3.1 + np.arange(16) / 8,
    "16 frames over the whole video": np.arange(16) * SECONDS / 16,
}


def make_video() -> bytes:
    picture = photo(np.random.default_rng(0), 900, 1600)
    frames = pan(picture, FPS * SECONDS, (720, 1280))
    options = {"preset": "veryfast", "crf": "23"}  # keyframes every 250 frames, as by default
    return encode_video(frames, FPS, options=options)


def with_pyav(data: bytes, times: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    wanted, frames = list(times), []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        container.seek(int(wanted[0] / stream.time_base), stream=stream)
        before = None
        for frame in container.decode(stream):
            while wanted and before is not None and frame.time > wanted[0] + 1e-3:
                frames.append(before.to_ndarray(format="rgb24"))
                wanted.pop(0)
            if not wanted:
                break
            before = frame
        frames += [before.to_ndarray(format="rgb24") for _ in wanted]
    return np.stack(frames)


def with_torchcodec(data: bytes, times: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(data, dimension_order="NHWC", seek_mode="approximate")
    return decoder.get_frames_played_at((times + 1e-3).tolist()).data.numpy()


def with_shardkit(data: bytes, times: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return Video(data).frames_at(times).frames


def timed(function: Callable[[], object], rounds: int = 5) -> float:
    durations = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return 1000 * min(durations)


def main() -> None:
    data = make_video()
    ways = {"shardkit": with_shardkit, "pyav": with_pyav}
    try:
        with_torchcodec(data, np.array([0.0]))
        ways["torchcodec"] = with_torchcodec
    except (ImportError, RuntimeError) as error:
        print(f"without torchcodec: {str(error).splitlines()[0]}")
    print(f"{len(data) / 1e6:.1f} MB, {SECONDS} s of 1280x720 at {FPS} fps")
    for name, times in CLIPS.items():
        expected = with_pyav(data, times).astype(int)
        found = {way: timed(functools.partial(f, data, times)) for way, f in ways.items()}
        off = {way: np.abs(f(data, times).astype(int) - expected).mean() for way, f in ways.items()}
        best = min(value for way, value in found.items() if way != "shardkit")
        line = ", ".join(
            f"{way} {value:.1f} ms (off {off[way]:.2f})" for way, value in found.items()
        )
        print(f"{name}: {line}; ratio {best / found['shardkit']:.2f}")


if __name__ == "__main__":
    main()
