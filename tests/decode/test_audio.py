from __future__ import annotations

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from shardkit.decode.audio import Audio, audio_info, decode_audio
from shardkit.decode.source import FileSource, StoreSource
from shardkit.decode.video import Video
from shardkit.errors import ConfigError, DecodeError
from tests import media
from tests.decode.test_video import VP9, CountingStore

TONE = media.tone(1.5, 48_000)
FILES = {
    "wav-uint8": (media.wav(TONE, 48_000, "uint8"), 0.01),
    "wav-int16": (media.wav(TONE, 48_000, "int16"), 1e-4),
    "wav-int24": (media.wav(TONE, 48_000, "int24"), 1e-6),
    "wav-int32": (media.wav(TONE, 48_000, "int32"), 1e-6),
    "wav-float32": (media.wav(TONE, 48_000, "float32"), 0.0),
    "flac": (media.sound_file(TONE, 48_000, "flac", "flac"), 1e-4),
    "mp3": (media.sound_file(TONE, 48_000, "mp3", "libmp3lame"), 0.02),
    "ogg-opus": (media.sound_file(TONE, 48_000, "ogg", "libopus"), 0.05),
    "m4a": (media.sound_file(TONE, 48_000, "mp4", "aac"), 0.05),
    "mkv-flac": (media.sound_file(TONE, 48_000, "matroska", "flac"), 1e-4),
    "aiff": (media.sound_file(TONE, 48_000, "aiff", "pcm_s16be"), 1e-4),
}


@pytest.mark.parametrize("kind", FILES)
def test_samples_are_floats_of_the_right_scale_and_length(kind: str) -> None:
    data, tolerance = FILES[kind]
    audio = decode_audio(data)
    assert isinstance(audio, Audio)
    assert audio.sample_rate == 48_000
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (2, 72_000)
    assert audio.samples.flags.c_contiguous
    assert np.abs(audio.samples).max() <= 1
    error = np.sqrt(((audio.samples - TONE)[:, 2000:-2000] ** 2).mean())
    assert error <= tolerance + 1e-7
    info = audio_info(data)
    assert info.num_channels == 2
    assert info.sample_rate == 48_000
    assert info.duration == pytest.approx(1.5, abs=0.03)


@pytest.mark.parametrize("kind", FILES)
def test_a_stretch_is_cut_out_of_the_whole(kind: str) -> None:
    data, tolerance = FILES[kind]
    whole = decode_audio(data).samples
    part = decode_audio(data, start=0.5, duration=0.25).samples
    assert part.shape == (2, 12_000)
    assert np.abs(part - whole[:, 24_000:36_000]).max() <= max(tolerance, 1e-4)
    rest = decode_audio(data, start=1.25).samples
    assert rest.shape[1] == pytest.approx(12_000, abs=1100)  # containers round lengths to frames


@pytest.mark.parametrize("kind", ["wav-int16", "mp3", "m4a", "flac"])
def test_less_than_was_asked_is_an_error_unless_allowed(kind: str) -> None:
    data = FILES[kind][0]
    asked = r"3\.000 s from 1\.000 s on were asked for, but only 0\.5"
    with pytest.raises(DecodeError, match=asked):
        decode_audio(data, start=1.0, duration=3.0)
    shorter = decode_audio(data, start=1.0, duration=3.0, allow_shorter=True)
    assert shorter.samples.shape[1] == pytest.approx(24_000, abs=1100)
    with pytest.raises(DecodeError):
        decode_audio(data, start=9.0)
    with pytest.raises(ConfigError, match="at least 0"):
        decode_audio(data, start=-1)


def test_ffmpeg_and_libsndfile_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("wav-int16", "wav-int24", "wav-uint8", "wav-float32", "flac", "mp3", "aiff"):
        data = FILES[kind][0]
        with monkeypatch.context() as patch:
            by_sndfile = decode_audio(data).samples
            patch.setattr("shardkit.decode.audio.has_module", lambda name: False)
            by_ffmpeg = decode_audio(data).samples
        assert by_ffmpeg.shape == by_sndfile.shape, kind
        assert np.abs(by_ffmpeg - by_sndfile).max() < 1e-3, kind


def test_mono_and_odd_rates() -> None:
    for rate in (8_000, 11_025, 22_050, 44_100, 96_000):
        samples = media.tone(0.5, rate, num_channels=1)
        audio = decode_audio(media.plain_wav(samples, rate))
        assert audio.samples.shape == samples.shape
        assert audio.sample_rate == rate


def test_from_paths_ranges_and_stores(tmp_path) -> None:
    data = FILES["mp3"][0]
    path, shard = tmp_path / "x.mp3", tmp_path / "shard.tar"
    path.write_bytes(data)
    shard.write_bytes(b"A" * 512 + data + b"B" * 512)
    expected = decode_audio(data).samples
    for source in (
        str(path),
        FileSource(str(shard), 512, len(data)),
        StoreSource(CountingStore(shard.read_bytes()), "s3://b/s.tar", len(data), 512),
        memoryview(data),
    ):
        assert np.array_equal(decode_audio(source).samples, expected)


def test_a_stretch_of_a_long_file_fetches_little() -> None:
    data = media.plain_wav(media.tone(60.0, 16_000), 16_000)
    store = CountingStore(data)
    decode_audio(StoreSource(store, "x", len(data)), start=30.0, duration=1.0)
    assert store.num_bytes < 0.1 * len(data)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_errors_or_sound_never_a_crash(kind: str) -> None:
    data = FILES[kind][0]
    for part in (0, 3, 30):
        with pytest.raises(DecodeError):
            decode_audio(data[:part])
    rng = np.random.default_rng(0)
    for _ in range(10):
        damaged = bytearray(data)
        for place in rng.integers(0, len(damaged), 20):
            damaged[place] ^= int(rng.integers(1, 256))
        try:
            assert decode_audio(bytes(damaged)).samples.dtype == np.float32
        except DecodeError:
            continue


def test_a_cut_file_is_an_error() -> None:
    for kind in ("wav-int16", "wav-float32", "flac", "m4a"):
        data = FILES[kind][0]
        with pytest.raises(DecodeError):
            decode_audio(data[: len(data) // 2])
    data = FILES["wav-int16"][0]
    part = decode_audio(data[: len(data) // 2], allow_shorter=True)
    assert part.samples.shape[1] == pytest.approx(36_000, abs=30)


def test_no_track_is_named() -> None:
    silent = media.video(10)
    with pytest.raises(DecodeError, match=r"no audio track \(it has: video\)"):
        decode_audio(silent)
    with pytest.raises(DecodeError, match=r"no audio track \(it has: video\)"):
        Video(silent).audio(start=0, duration=0.1)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "extra"),
    [
        ("mp4", "aac", 44_100, {}),
        ("mov", "aac", 48_000, {}),
        ("matroska", "aac", 44_100, {}),
        ("matroska", "flac", 48_000, {}),
        ("webm", "libopus", 48_000, VP9),
        ("mpegts", "aac", 44_100, {}),
        ("mp4", "aac", 16_000, {"movflags": "frag_keyframe+empty_moov"}),
    ],
    ids=["mp4", "mov", "mkv", "mkv-flac", "webm", "ts", "mp4-fragmented"],
)
def test_sound_is_in_step_with_the_frames_of_a_clip(container, codec, rate, extra) -> None:
    """A flash in frame n comes with a click; both are found again, within a millisecond."""
    frames = np.zeros((100, 64, 96, 3), np.uint8)
    flashes = (13, 37, 61, 88)
    frames[list(flashes)] = 255
    sound = media.clicks(4.0, rate, tuple(n / 25 for n in flashes), num_channels=2)
    track = {"sound": sound, "rate": rate, "sound_codec": codec}
    data = media.video(100, 25, container=container, frames=frames, **track, **extra)
    video = Video(data)
    for start in (0.0, 0.4, 1.3, 2.28):
        clip = video.clip(30, start=start)
        audio = video.audio(start=clip.start, duration=clip.duration)
        assert audio.samples.shape == (2, round(clip.duration * audio.sample_rate))
        lit = [n for n in range(30) if clip.frames[n].mean() > 128]
        expected = [clip.frame_times[n] - clip.start for n in lit]
        loud = np.flatnonzero(np.abs(audio.samples[0]) > 0.4) / audio.sample_rate
        found = [float(loud[0])] if len(loud) else []
        for time in loud:
            if time - found[-1] > 0.1:
                found.append(float(time))
        assert len(found) == len(expected) >= 1
        error = np.abs(np.array(found) - expected).max()
        assert error < 0.001 + 1.5 / rate, (start, found, expected)


def test_a_track_that_ends_early_is_silent_at_the_end() -> None:
    data = media.video(50, sound=media.tone(1.0, 16_000), rate=16_000)
    audio = Video(data).audio(start=0.5, duration=1.5)
    assert audio.samples.shape == (2, 24_000)
    assert np.abs(audio.samples[:, 2000:6000]).max() > 0.3
    assert np.abs(audio.samples[:, 10_000:]).max() == 0


def test_audio_pickles_and_unpacks() -> None:
    samples, rate = pickle.loads(pickle.dumps(decode_audio(FILES["wav-int16"][0])))
    assert (samples.shape, rate) == ((2, 72_000), 48_000)


def test_without_soundfile_and_torch_everything_is_decoded_all_the_same() -> None:
    code = (
        "import sys\n"
        "for name in ('soundfile', 'torch', 'torchaudio'):\n"
        "    sys.modules[name] = None\n"
        "from shardkit.decode import decode_member\n"
        "audio = decode_member('wav', sys.stdin.buffer.read())\n"
        "assert audio.samples.shape == (2, 72000), audio.samples.shape\n"
    )
    data = FILES["wav-int16"][0]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert io.BytesIO(data).read(4) == b"RIFF"
