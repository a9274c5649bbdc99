from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from shardkit.decode import Audio, decode_audio
from shardkit.decode.video import open_video
from shardkit.errors import ConfigError, DecodeError
from shardkit.transforms import (
    AudioToTensor,
    CheckAudible,
    DecodeAudio,
    DecodeClip,
    Mono,
    NormalizeLoudness,
    PadOrTrim,
    Pipeline,
    Resample,
    Squarify,
    audio_pipeline,
    audio_video_pipeline,
    loudness,
    video_pipeline,
)
from tests import media

VIDEO = media.video(100, 25, sound=media.tone(4.0, 16_000), rate=16_000)
FAST = media.video(200, 50)


def run(transforms, sample: dict, seed: int = 0) -> dict:
    (result,) = Pipeline(transforms)(dict(sample), seed)
    return result


# Video


@pytest.mark.parametrize("make", [bytes, open_video], ids=["bytes", "handle"])
def test_the_standard_video_pipeline(make) -> None:
    sample = {"__key__": "k", "mp4": make(VIDEO)}
    result = run(video_pipeline("mp4", 8, (32, 32), fps=12.5, start=1.0), sample)
    assert set(result) == {"__key__", "video", "timestamps", "duration", "fps"}
    assert result["video"].shape == (8, 3, 32, 32)
    assert result["video"].dtype == torch.uint8
    assert result["timestamps"].tolist() == pytest.approx([1.0 + n * 0.08 for n in range(8)])
    assert (result["duration"], result["fps"]) == (pytest.approx(0.64), pytest.approx(12.5))
    signed = run(video_pipeline("mp4", 2, (32, 32), normalize="signed", flip=1.0), sample)
    assert signed["video"].dtype == torch.float32
    assert signed["video"].min() >= -1
    assert signed["video"].max() <= 1


def test_random_clips_follow_the_samples_seed() -> None:
    pipeline = Pipeline(video_pipeline("mp4", 4, (64, 96)))
    starts = [pipeline({"mp4": VIDEO}, seed)[0]["timestamps"][0] for seed in range(20)]
    again = [pipeline({"mp4": VIDEO}, seed)[0]["timestamps"][0] for seed in range(20)]
    assert starts == again
    assert len(set(starts)) == 20
    assert max(starts) > 2.5
    assert min(starts) < 1.0


def test_pairs_of_videos_show_the_same_moments_and_crop() -> None:
    pipeline = Pipeline(
        video_pipeline(
            ("src.mp4", "dst.mp4"), 6, (64, 64), fps=10, crop="random", into=("src", "dst")
        )
    )
    for seed in range(10):
        (result,) = pipeline({"src.mp4": VIDEO, "dst.mp4": VIDEO}, seed)
        assert torch.equal(result["src"], result["dst"])
    decode = DecodeClip(("src.mp4", "dst.mp4"), 6, fps=10, into=("src", "dst"))
    result = run([decode], {"src.mp4": VIDEO, "dst.mp4": FAST}, 3)
    ours, theirs = media.numbers_of(result["src"]), media.numbers_of(result["dst"])
    assert [number // 2 for number in theirs] == ours


def test_fields_of_the_sample_guide_the_clip() -> None:
    sample = {"mp4": VIDEO, "from": 1.0, "to": 1.8, "speed": 2.0}
    sample |= {"times": [0.0, 2.0], "length": 2.0}
    clip = run([DecodeClip("mp4", 10, interval=("from", "to"), speed="speed")], sample)["mp4"]
    assert media.numbers_of(clip) == list(range(25, 45, 2))
    clip = run([DecodeClip("mp4", timestamps_from="times")], sample)["mp4"]
    assert media.numbers_of(clip) == [0, 50]
    clip = run([DecodeClip("mp4", 2, start="middle", duration_from="length")], sample)["mp4"]
    assert media.numbers_of(clip) == [24, 25]
    with pytest.raises(ConfigError, match="decoded already"):
        run([DecodeClip("mp4", 2), DecodeClip("mp4", 2)], sample)


def test_stretched_videos_are_made_right() -> None:
    sample = {"video": np.zeros((2, 64, 96, 3), np.uint8), "height": 90, "width": 160}
    assert run([Squarify("video")], sample)["video"].shape == (2, 64, 114, 3)
    sample |= {"height": 64.5, "width": 96}
    assert run([Squarify("video")], sample)["video"].shape == (2, 64, 96, 3)
    sample |= {"height": 3, "width": 2}
    assert run([Squarify("video")], sample)["video"].shape == (2, 144, 96, 3)


# Sound


STARTS = ["start", "middle", "random", 0.5, "loudest", "peak", "random_loud"]


@pytest.mark.parametrize("start", STARTS)
def test_the_standard_audio_pipeline(start) -> None:
    data = media.wav(media.tone(3.0, 48_000), 48_000)
    steps = audio_pipeline("wav", 1.0, start=start, sample_rate=16_000, mono=True)
    result = run(steps, {"wav": data})
    assert set(result) == {"audio", "sample_rate"}
    assert result["audio"].shape == (1, 16_000)
    assert result["audio"].dtype == torch.float32
    assert result["sample_rate"] == 16_000
    assert loudness(result["audio"].numpy(), 16_000) == pytest.approx(-24, abs=0.3)


def test_short_sounds_are_padded_and_whole_ones_kept() -> None:
    data = media.wav(media.tone(0.5, 44_100), 44_100)
    padded = run(audio_pipeline("wav", 1.0), {"wav": data})["audio"]
    assert padded.shape == (2, 44_100)
    assert not padded[:, 22_050:].any()
    whole = run(audio_pipeline("wav", None, loudness=None), {"wav": data})["audio"]
    assert whole.shape == (2, 22_050)
    with pytest.raises(DecodeError, match=r"DecodeAudio of 'wav': .*only 0\.500 s are there"):
        run(audio_pipeline("wav", 1.0, allow_shorter=False), {"wav": data})


def test_stretches_by_loudness() -> None:
    samples = np.zeros((1, 10 * 8000), np.float32)
    samples[:, 3 * 8000 : 4 * 8000] = 0.3  # long and loud
    samples[:, 7 * 8000] = 0.9  # one high sample
    audio = {"a": Audio(samples, 8000)}
    loudest = run([DecodeAudio("a", 1.0, start="loudest")], audio)["a"].samples
    assert (loudest == 0.3).mean() > 0.9
    peak = run([DecodeAudio("a", 1.0, start="peak")], audio)["a"].samples
    assert peak[0, 4000] == pytest.approx(0.9)
    for seed in range(20):
        loud = run([DecodeAudio("a", 1.0, start="random_loud")], audio, seed)["a"].samples
        assert (loud**2).mean() > 10**-4
    silence = {"a": Audio(np.zeros((1, 8000), np.float32), 8000)}
    quiet = run([DecodeAudio("a", 0.5, start="random_loud")], silence)["a"]
    assert quiet.samples.shape == (1, 4000)
    with pytest.raises(ConfigError, match="needs a duration"):
        DecodeAudio("a", start="loudest")


@pytest.mark.parametrize("rates", [(44_100, 16_000), (16_000, 44_100), (8_000, 48_000)])
def test_resampling_keeps_pitch_level_and_length(rates: tuple[int, int]) -> None:
    before, after = rates
    tone = media.tone(1.0, before, num_channels=1, pitch=500.0)
    result = run([Resample("a", after)], {"a": Audio(tone, before)})["a"]
    assert result.sample_rate == after
    assert result.samples.shape == (1, after)
    expected = media.tone(1.0, after, num_channels=1, pitch=500.0)
    middle = slice(after // 10, -after // 10)
    assert np.abs(result.samples[:, middle] - expected[:, middle]).max() < 0.01
    loud = Audio(np.sign(tone), before)
    assert np.abs(run([Resample("a", after)], {"a": loud})["a"].samples).max() <= 1


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_loudness_is_that_of_the_standard(rate: int) -> None:
    """EBU Tech 3341, case 1: a stereo sine of 1 kHz at -23 dBFS is -23 LUFS."""
    sine = np.sin(2 * np.pi * 1000 * np.arange(5 * rate) / rate)
    stereo = np.stack([sine, sine]).astype(np.float32) * np.float32(10 ** (-23 / 20))
    assert loudness(stereo, rate) == pytest.approx(-23.0, abs=0.1)
    assert loudness(stereo * np.float32(10 ** (-10 / 20)), rate) == pytest.approx(-33.0, abs=0.1)
    gap = np.concatenate([stereo, np.zeros_like(stereo)], axis=1)  # silence is gated out
    assert loudness(gap, rate) == pytest.approx(-23.0, abs=0.3)
    assert loudness(np.zeros((2, rate), np.float32), rate) == -np.inf
    assert loudness(np.zeros((2, 0), np.float32), rate) == -np.inf
    assert loudness(stereo[:, : rate // 10], rate) == pytest.approx(-23.0, abs=1.0)


def test_loudness_agrees_with_torchaudio() -> None:
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((2, 48_000 * 3)) * 0.1).clip(-1, 1).astype(np.float32)
    theirs = float(torchaudio.functional.loudness(torch.from_numpy(noise), 48_000))
    assert loudness(noise, 48_000) == pytest.approx(theirs, abs=0.5)


def test_the_target_is_honoured_or_the_peak() -> None:
    quiet = Audio(media.tone(2.0, 48_000) * np.float32(0.01), 48_000)
    result = run([NormalizeLoudness("a", -20.0)], {"a": quiet})["a"].samples
    assert loudness(result, 48_000) == pytest.approx(-20.0, abs=0.01)
    spiky = quiet.samples.copy()
    spiky[:, 1000] = 0.5
    loud = run([NormalizeLoudness("a", -10.0)], {"a": Audio(spiky, 48_000)})["a"].samples
    assert loudness(loud, 48_000) == pytest.approx(-10.0, abs=0.01)
    limited = run([NormalizeLoudness("a", -10.0, peak=1.0)], {"a": Audio(spiky, 48_000)})["a"]
    assert np.abs(limited.samples).max() == pytest.approx(1.0, abs=1e-5)
    silence = Audio(np.zeros((1, 48_000), np.float32), 48_000)
    assert not run([NormalizeLoudness("a")], {"a": silence})["a"].samples.any()


def test_mono_pad_trim_and_tensor() -> None:
    audio = {"a": Audio(np.array([[1, 2], [3, 4]], np.float32), 2), "seconds": 2.0}
    assert run([Mono("a")], audio)["a"].samples.tolist() == [[2, 3]]
    assert run([PadOrTrim("a", 1)], audio)["a"].samples.tolist() == [[1], [3]]
    padded = run([PadOrTrim("a", duration="seconds")], audio)["a"].samples
    assert padded.tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    with pytest.raises(ConfigError, match="one of them"):
        PadOrTrim("a")
    out = run([AudioToTensor("a", rate_into="r", output="numpy")], audio)
    assert out["a"].tolist() == [[1, 2], [3, 4]]
    assert out["r"] == 2


def test_silence_is_refused_where_asked() -> None:
    silent = {"a": Audio(np.full((1, 8), 1e-5, np.float32), 8000)}
    with pytest.raises(DecodeError, match=r"peaks at 1e-05, below 0\.001"):
        run([CheckAudible("a")], silent)
    assert run([CheckAudible("a", 1e-6)], silent)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_no_numbers_is_not_audible(value: float) -> None:
    broken = {"a": Audio(np.array([[0.5, value]], np.float32), 8000)}
    with pytest.raises(DecodeError, match="which is no number"):
        run([CheckAudible("a")], broken)


def test_sound_and_frames_of_one_clip() -> None:
    frames = np.zeros((100, 64, 96, 3), np.uint8)
    frames[60] = 255
    sound = media.clicks(4.0, 16_000, (60 / 25,))
    data = media.video(100, 25, frames=frames, sound=sound, rate=16_000)
    steps = audio_video_pipeline("mp4", 50, (32, 32), loudness=None, start="random")
    seen = 0
    for seed in range(10):
        result = run(steps, {"mp4": data}, seed)
        assert result["video"].shape == (50, 3, 32, 32)
        assert result["audio"].shape == (1, 32_000)
        flash = [n for n in range(50) if result["video"][n].float().mean() > 128]
        loud = np.flatnonzero(np.abs(result["audio"][0].numpy()) > 0.3) / 16_000
        first = result["timestamps"][0]
        if flash and len(loud):
            assert loud[0] + first == pytest.approx(2.4, abs=0.001)
            seen += 1
    assert seen >= 3
    fixed = run(audio_video_pipeline("mp4", 5, (32, 32), num_samples=1000), {"mp4": data})
    assert fixed["audio"].shape == (1, 1000)
    with pytest.raises(DecodeError, match="peaks at"):
        run(audio_video_pipeline("mp4", 5, (8, 8), start=0.0, silence_below=0.1), {"mp4": data})
    with pytest.raises(DecodeError, match="no audio track"):
        run(steps, {"mp4": FAST})


def test_a_video_gives_its_sound_alone() -> None:
    result = run([DecodeAudio("mp4", 1.0, start=2.0, into="a")], {"mp4": open_video(VIDEO)})
    expected = decode_audio(VIDEO, start=2.0, duration=1.0).samples
    assert np.array_equal(result["a"].samples, expected)
