from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from shardkit.decode.seekable import SourceFile
from shardkit.decode.source import BytesSource, FileSource, StoreSource
from shardkit.decode.video import Video, open_video
from shardkit.errors import ConfigError, DecodeError, TransientError
from tests import media


class CountingStore:
    """A store of one object that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.num_bytes = 0
        self.num_reads = 0

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        self.num_bytes += stop - start
        self.num_reads += 1
        return self.data[start:stop]


VP9 = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime", "crf": "20"}}
KINDS = {
    "mp4": media.video(50),
    "mp4-moov-first": media.video(50, movflags="faststart"),
    "mp4-fragmented": media.video(50, movflags="frag_keyframe+empty_moov"),
    "mp4-dash": media.video(
        50,
        movflags="frag_keyframe+empty_moov+default_base_moof+global_sidx",
        options={"preset": "veryfast", "bf": "0"},
    ),
    "mov": media.video(50, container="mov"),
    "mkv": media.video(50, container="matroska"),
    "webm": media.video(50, container="webm", **VP9),
    "avi": media.video(50, container="avi", codec="mpeg4", options={"qscale": "2"}),
    "avi-b-frames": media.video(
        50, container="avi", codec="mpeg4", options={"qscale": "2", "bf": "2"}
    ),
    "ts": media.video(50, container="mpegts"),
    "hevc": media.video(
        50,
        codec="libx265",
        options={"preset": "ultrafast", "x265-params": "log-level=none:bframes=3"},
    ),
    "10-bit": media.video(50, pix_fmt="yuv420p10le"),
    "many-b-frames": media.video(50, options={"preset": "veryfast", "bf": "8", "b_strategy": "0"}),
    "open-gop": media.video(
        50, options={"preset": "veryfast", "x264-params": "open-gop=1:bframes=3"}
    ),
    "all-keyframes": media.video(50, gop=1),
    "one-keyframe": media.video(50, gop=500),
    "with-sound": media.video(50, sound=media.tone(2.0)),
}


@pytest.fixture(params=KINDS)
def clip50(request: pytest.FixtureRequest) -> Video:
    """A video of frames 0 … 49 at 25 fps, in each container and codec."""
    return Video(KINDS[request.param])


def test_every_clip_holds_the_frames_on_display(clip50: Video) -> None:
    cases = (
        ({"num_frames": 16}, range(16)),
        ({"num_frames": 50}, range(50)),
        ({"num_frames": 5, "start": 1.0}, range(25, 30)),
        ({"num_frames": 4, "start": 0.5, "fps": 5}, (12, 17, 22, 27)),
        ({"num_frames": 4, "fps": 50}, (0, 0, 1, 1)),
        ({"num_frames": 5, "speed": 4}, (0, 4, 8, 12, 16)),
        ({"num_frames": 10, "start": "middle"}, range(20, 30)),
        ({"num_frames": 1, "start": 1.96}, (49,)),
        ({"num_frames": 6, "interval": (0.4, 0.8)}, range(10, 16)),
        ({"fps": 5}, range(0, 50, 5)),
    )
    for options, expected in cases:
        clip = clip50.clip(**options)
        assert media.numbers_of(clip.frames) == list(expected), options
        assert len(clip.timestamps) == len(clip.frames) == len(clip.frame_times)
        assert np.abs(clip.frame_times * 25 - media.numbers_of(clip.frames)).max() < 0.05
        assert clip.duration == pytest.approx(len(clip.frames) / clip.fps)


def test_explicit_times_in_any_order(clip50: Video) -> None:
    times = [1.9, 0.0, 0.41, 1.9, 0.05, 1.0]
    clip = clip50.frames_at(times)
    assert media.numbers_of(clip.frames) == [47, 0, 10, 47, 1, 25]
    assert clip.timestamps.tolist() == times
    assert clip.fps == pytest.approx(5 / 1.9)
    assert clip50.frames_at([1.0]).duration == pytest.approx(0.04)


def test_all_frames_and_facts(clip50: Video) -> None:
    clip = clip50.frames()
    assert media.numbers_of(clip.frames) == list(range(50))
    info = clip50.info()
    assert (info.height, info.width) == (64, 96)
    assert info.fps == pytest.approx(25)
    assert info.duration == pytest.approx(2.0, abs=0.05)


def test_past_the_end_is_an_error_or_fewer_frames(clip50: Video) -> None:
    with pytest.raises(DecodeError, match=r"allow_shorter=True"):
        clip50.clip(51)
    with pytest.raises(DecodeError, match=r"outside of what there is"):
        clip50.clip(1, start=2.5)
    with pytest.raises(DecodeError, match=r"no frame at 3.000 s"):
        clip50.frames_at([0.0, 3.0])
    assert media.numbers_of(clip50.clip(60, start=1.6, allow_shorter=True).frames) == [
        *range(40, 50)
    ]
    shorter = clip50.frames_at([1.0, 3.0], allow_shorter=True)
    assert media.numbers_of(shorter.frames) == [25]


def test_random_starts_follow_the_generator() -> None:
    video = Video(KINDS["mp4"])
    starts = set()
    for seed in range(20):
        clip = video.clip(8, start="random", rng=np.random.default_rng(seed))
        again = video.clip(8, start="random", rng=np.random.default_rng(seed))
        assert clip.start == again.start
        assert np.array_equal(clip.frames, again.frames)
        first = media.numbers_of(clip.frames)[0]
        assert media.numbers_of(clip.frames) == list(range(first, first + 8))
        starts.add(first)
    assert len(starts) > 10
    with pytest.raises(ConfigError, match="needs rng"):
        video.clip(8, start="random")


def test_intervals_are_kept_or_softened() -> None:
    video = Video(KINDS["mp4"])
    with pytest.raises(DecodeError, match="shorter than the clip"):
        video.clip(16, interval=(1.0, 1.2))
    soft = video.clip(16, interval=(1.0, 1.2), interval_mode="soft")
    assert media.numbers_of(soft.frames) == list(range(19, 35))
    with pytest.raises(DecodeError, match=r"outside of the 2\.000 s"):
        video.clip(4, interval=(1.5, 3.0))
    moved = video.clip(16, interval=(1.9, 2.2), interval_mode="soft")
    assert media.numbers_of(moved.frames) == list(range(34, 50))
    inside = video.clip(4, interval=(1.0, 1.4), start="random", rng=np.random.default_rng(3))
    assert 1.0 <= inside.start <= 1.4 - 0.16 + 1e-9


def test_a_bare_stream_without_any_times_is_counted() -> None:
    video = Video(media.video(50, container="h264"))
    assert video.info().duration == pytest.approx(2.0, abs=0.05)
    assert media.numbers_of(video.clip(5, start=1.0).frames) == [25, 26, 27, 28, 29]
    assert media.numbers_of(video.frames().frames) == list(range(50))
    with pytest.raises(DecodeError, match="no frame at"):
        video.frames_at([3.0])
    assert media.numbers_of(video.clip(2, start=1.0, seek="keyframe").frames) in ([25, 26], [0, 1])


def test_wrong_requests_are_refused() -> None:
    video = Video(KINDS["mp4"])
    for options, message in (
        ({"num_frames": 0}, "num_frames=0: give 1 or more"),
        ({"fps": 0}, "fps=0: give a positive number"),
        ({"start": "end"}, "start='end': give seconds or one of start, middle, random"),
        ({"speed": -1}, "speed=-1: give a positive number"),
        ({"interval_mode": "loose"}, "interval_mode='loose': give one of hard, soft"),
        ({"interval": (2, 1)}, "its start must not be after its stop"),
    ):
        with pytest.raises(ConfigError, match=message):
            video.clip(**options)
    for times in ([], [-1.0], [[0.0]]):
        with pytest.raises(ConfigError, match="0 s or later"):
            video.frames_at(times)
    early = video.clip(4, interval=(-0.5, 0.1), interval_mode="soft")
    assert media.numbers_of(early.frames) == [0, 1, 2, 3]


def test_two_videos_show_the_same_moments_by_timestamps() -> None:
    slow, fast = Video(media.video(50, fps=25)), Video(media.video(100, fps=50))
    clip = slow.clip(6, fps=10, start="random", rng=np.random.default_rng(0))
    other = fast.frames_at(clip.timestamps)
    ours, theirs = media.numbers_of(clip.frames), media.numbers_of(other.frames)
    assert all(their // 2 == our for our, their in zip(ours, theirs, strict=True))


def test_keyframe_seeking_moves_the_clip_back() -> None:
    clip = Video(KINDS["mp4"]).clip(4, start=0.6, seek="keyframe")  # keyframes at 0, 12, 24 …
    assert media.numbers_of(clip.frames) == [12, 13, 14, 15]
    assert clip.start == pytest.approx(0.48)
    assert media.numbers_of(
        Video(KINDS["one-keyframe"]).clip(2, start=1.0, seek="keyframe").frames
    ) == [0, 1]
    with pytest.raises(ConfigError, match='give "exact" or "keyframe"'):
        Video(KINDS["mp4"]).clip(4, seek="fast")


def test_variable_frame_rate_shows_what_a_player_shows() -> None:
    times = [0, 10, 20, 100, 110, 190]  # ticks of 10 ms: a frame stands still for 0.8 s
    for container in ("mp4", "matroska"):
        data = media.video(6, container=container, times=times, tick=Fraction(1, 100))
        video = Video(data)
        assert media.numbers_of(video.frames().frames) == [0, 1, 2, 3, 4, 5]
        clip = video.frames_at([0.05, 0.15, 0.25, 0.9, 1.05, 1.15, 1.89, 1.9])
        assert media.numbers_of(clip.frames) == [0, 1, 2, 2, 3, 4, 4, 5]
        even = video.clip(8, fps=5, duration=1.9)
        assert media.numbers_of(even.frames) == [0, 2, 2, 2, 2, 3, 4, 4]


def test_missing_frames_are_bridged_by_the_one_before() -> None:
    times = [number for number in range(50) if not 20 <= number < 30]
    clip = Video(media.video(40, times=times)).clip(4, start=0.76, fps=5)
    assert [round(time * 25) for time in clip.frame_times] == [19, 19, 19, 34]


def test_no_duration_in_the_header() -> None:
    pipe = media.Pipe()
    media.video(50, container="matroska", target=pipe)
    video = Video(bytes(pipe.data))
    assert video.info().duration == pytest.approx(2.0, abs=0.05)
    assert media.numbers_of(video.clip(4, start="middle").frames) == [23, 24, 25, 26]
    live = media.video(50, container="matroska", options={"preset": "veryfast", "bf": "0"})
    assert media.numbers_of(Video(live).clip(2, start=1.92).frames) == [48, 49]


def test_a_header_that_promises_more_than_there_is() -> None:
    sound = media.tone(5.0)  # Matroska tells one duration: that of the longer track
    data = media.video(50, container="matroska", sound=sound, sound_codec="aac")
    data = data.replace(b"DURATION", b"XURATION")
    video = Video(data)
    for seed in range(5):
        clip = video.clip(8, start="random", rng=np.random.default_rng(seed))
        first = media.numbers_of(clip.frames)[0]
        assert media.numbers_of(clip.frames) == list(range(first, first + 8))
    assert media.numbers_of(video.clip(4, start="middle").frames) == [23, 24, 25, 26]
    with pytest.raises(DecodeError):
        video.clip(60)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_phones_videos_are_upright(degrees: int) -> None:
    upright = media.numbered(6, 64, 96)
    upright[:, :16, :24] = (250, 20, 20)  # a red corner at the top left
    stored = np.ascontiguousarray(np.rot90(upright, -degrees // 90, axes=(1, 2)))
    data = media.video(6, frames=stored, rotation=degrees)
    video = Video(data)
    clip = video.clip(6)
    assert clip.frames.shape == (6, 64, 96, 3)
    assert np.abs(clip.frames[:, 2:12, 4:20].astype(int) - (250, 20, 20)).mean() < 12
    assert (video.info().height, video.info().width) == (64, 96)
    assert video.clip(2, min_size=(32, 32)).frames.shape == (2, 32, 48, 3)


def test_frames_are_scaled_down_to_just_cover() -> None:
    video = Video(KINDS["mp4"])
    assert video.clip(2, min_size=(32, 32)).frames.shape == (2, 32, 48, 3)
    assert video.clip(2, min_size=(500, 500)).frames.shape == (2, 64, 96, 3)
    assert media.numbers_of(video.clip(8, start=1.0, min_size=(32, 32)).frames) == [*range(25, 33)]


def test_frames_are_written_into_a_given_array() -> None:
    out = np.zeros((4, 64, 96, 3), np.uint8)
    clip = Video(KINDS["mp4"]).clip(4, out=out)
    assert clip.frames is out
    assert media.numbers_of(out) == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 2, 0])
def test_any_number_of_threads_gives_the_same_frames(threads: int) -> None:
    expected = Video(KINDS["many-b-frames"]).clip(9, start=0.3, fps=8).frames
    clip = Video(KINDS["many-b-frames"], threads=threads).clip(9, start=0.3, fps=8)
    assert np.array_equal(clip.frames, expected)


def test_one_handle_serves_many_threads_and_processes() -> None:
    video = pickle.loads(pickle.dumps(Video(KINDS["mkv"])))
    with ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(lambda n: video.clip(3, start=n / 25), range(0, 40, 4)))
    assert [media.numbers_of(clip.frames)[0] for clip in clips] == list(range(0, 40, 4))


def test_from_a_path_a_range_of_a_file_and_a_store(tmp_path) -> None:
    data = KINDS["mp4"]
    whole, shard = tmp_path / "x.MP4", tmp_path / "shard.tar"
    whole.write_bytes(data)
    shard.write_bytes(b"A" * 512 + data + b"B" * 512)
    for source in (
        str(whole),
        FileSource(str(shard), 512, len(data)),
        StoreSource(CountingStore(shard.read_bytes()), "s3://b/shard.tar", len(data), 512),
        BytesSource(memoryview(data)),
        bytearray(data),
    ):
        assert media.numbers_of(Video(source).clip(3, start=1.2).frames) == [30, 31, 32]


FILM = media.picture(90, 160, seed=1)


def film(seconds: int, container: str, movflags: str | None = None) -> bytes:
    """A film with detail and sound, of which every part has a size like the others."""
    rng = np.random.default_rng(0)
    frames = np.stack([np.roll(FILM, number * 3, axis=1) for number in range(10 * seconds)])
    frames = (frames ^ rng.integers(0, 32, frames.shape, dtype=np.uint8)).astype(np.uint8)
    return media.video(
        len(frames),
        10,
        container=container,
        frames=frames,
        gop=20,
        movflags=movflags,
        sound=media.tone(float(seconds)),
        sound_codec="aac",
    )


@pytest.mark.parametrize(
    ("container", "movflags", "share"),
    [
        ("mp4", None, 0.12),
        ("mp4", "faststart", 0.12),
        ("matroska", None, 0.12),
        ("mp4", "frag_keyframe+empty_moov", 0.5),
    ],
    ids=["mp4-moov-last", "mp4-moov-first", "mkv", "mp4-fragmented"],
)
def test_a_clip_fetches_only_the_bytes_it_needs(
    container: str, movflags: str | None, share: float
) -> None:
    data = film(60, container, movflags)
    for start in (0.0, 31.0, 55.5):
        store = CountingStore(data)
        video = Video(StoreSource(store, "https://host/film", len(data)))
        clip = video.clip(10, start=start)
        assert np.abs(clip.frame_times - clip.timestamps).max() < 0.02
        assert store.num_bytes <= share * len(data), (start, store.num_bytes / len(data))
        assert store.num_reads < 60


def test_errors_of_the_store_reach_the_caller_as_they_are() -> None:
    data = KINDS["mp4"]

    class Failing(CountingStore):
        def get_range(self, url: str, start: int, stop: int) -> bytes:
            if self.num_reads >= allowed:
                raise TransientError("the network is down")
            return super().get_range(url, start, stop)

    for allowed in range(5):
        source = StoreSource(Failing(data * 1), "s3://b/film", len(data))
        try:
            Video(source).clip(50)
        except TransientError:
            continue
        assert allowed > 0
        break


def test_truncated_files_are_errors_never_a_spin() -> None:
    for kind in ("mp4", "mp4-moov-first", "mkv", "webm", "avi", "ts", "mp4-fragmented"):
        data = KINDS[kind]
        for part in (0, 7, 100, len(data) // 2, len(data) * 3 // 4):
            with pytest.raises(DecodeError):
                Video(data[:part]).clip(50)


def test_a_truncated_file_still_gives_what_it_has() -> None:
    data = KINDS["mp4-moov-first"]
    clip = Video(data[: len(data) * 3 // 4]).clip(10)
    assert media.numbers_of(clip.frames) == list(range(10))


def test_flipped_bytes_are_errors_or_frames_never_a_crash() -> None:
    rng = np.random.default_rng(0)
    for kind in ("mp4", "mkv", "ts"):
        for _ in range(20):
            data = bytearray(KINDS[kind])
            for place in rng.integers(0, len(data), 20):
                data[place] ^= int(rng.integers(1, 256))
            try:
                frames = Video(bytes(data)).clip(8, start="middle").frames
            except DecodeError:
                continue
            assert frames.shape[0] == 8


def test_no_video_track_is_named() -> None:
    sound = media.sound_file(media.tone(), 16_000, "mp4", "aac")
    with pytest.raises(DecodeError, match=r"no video track \(it has: audio\)"):
        Video(sound).clip(1)


def test_an_empty_video_is_refused_at_once() -> None:
    with pytest.raises(DecodeError, match="no bytes"):
        open_video(b"")


def test_playlists_open_no_other_files(tmp_path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(KINDS["mp4"])
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for text in (playlist, concat):
        path = tmp_path / "list.mp4"
        path.write_text(text)
        for source in (text.encode(), str(path)):
            with pytest.raises(DecodeError):
                Video(source).clip(1)


def test_colours_are_right() -> None:
    colour = np.array([200, 60, 30], np.uint8)
    frames = np.broadcast_to(colour, (4, 64, 96, 3))
    clip = Video(media.video(4, frames=frames)).clip(4)
    assert np.abs(clip.frames.astype(int) - colour).max() <= 4


def test_a_source_file_reads_like_a_file() -> None:
    data = bytes(range(256)) * 2000
    store = CountingStore(data)
    ours, real = SourceFile(StoreSource(store, "x", len(data))), io.BytesIO(data)
    rng = np.random.default_rng(0)
    for _ in range(300):
        if rng.random() < 0.5:
            place = int(rng.integers(0, len(data) + 10))
            ours.seek(place)
            real.seek(place)
        count = int(rng.integers(0, 5000))
        expected, got = real.read(count), b""
        while len(got) < len(expected):
            got += ours.read(len(expected) - len(got))
        assert got == expected
        assert ours.tell() == min(real.tell(), max(real.tell(), 0))
    assert ours.seek(-5, io.SEEK_END) == len(data) - 5
    assert ours.read() == data[-5:]
    assert ours.read(1) == b""
