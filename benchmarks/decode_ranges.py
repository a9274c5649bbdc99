"""How much of a remote 60 s film a clip of 1 s fetches, by container.

    python benchmarks/decode_ranges.py

A film of 320x180 at 25 fps with a keyframe every 2 s and sound, about 30 MB. Prints the share of
its bytes and the number of ranged reads, for clips at three places.
"""

from __future__ import annotations

import os
import tempfile

import numpy as np

from shardkit.cli.demo_data import encode_video, pan, photo, sound
from shardkit.decode import StoreSource, Video

SECONDS, FPS, RATE = 60, 25, 44_100
KINDS = {
    "mp4, moov last": ("mp4", {}),
    "mp4, fragmented": ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "mkv": ("matroska", {}),
}


class CountingStore:
    """A store of one object that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.num_bytes = 0
        self.num_reads = 0

    def get_range(self, _url: str, start: int, stop: int) -> bytes:
        self.num_bytes += stop - start
        self.num_reads += 1
        return self.data[start:stop]


def faststart(data: bytes) -> bytes:
    """Move the moov atom to the front, as FFmpeg's muxer does in a second pass over a file."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "a.mp4"), os.path.join(folder, "b.mp4")
        with open(source, "wb") as file:
            file.write(data)
        with (
            av.open(source) as film,
            av.open(target, "w", options={"movflags": "faststart"}) as out,
        ):
            streams = {s.index: out.add_stream_from_template(s) for s in film.streams}
            for packet in film.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
        with open(target, "rb") as file:
            return file.read()


def main() -> None:
    rng = np.random.default_rng(0)
    frames = pan(photo(rng, 400, 700), SECONDS * FPS, (180, 320))
    frames = (frames ^ rng.integers(0, 64, frames.shape, dtype=np.uint8)).astype(np.uint8)
    track = sound(rng, float(SECONDS), RATE)
    films = {
        name: encode_video(
            frames,
            FPS,
            sound=track,
            rate=RATE,
            container_format=container,
            options={"preset": "ultrafast", "g": "50"},
            container_options=options,
        )
        for name, (container, options) in KINDS.items()
    }
    films["mp4, moov first"] = faststart(films["mp4, moov last"])
    for name, data in films.items():
        shares = []
        for start in (0.0, 30.5, 58.5):
            store = CountingStore(data)
            Video(StoreSource(store, "memory", len(data))).clip(FPS, start=start)
            shares.append(f"{store.num_bytes / len(data):6.1%} in {store.num_reads:3} reads")
        print(f"{name:16} {len(data) / 1e6:5.1f} MB: {', '.join(shares)}")


if __name__ == "__main__":
    main()
