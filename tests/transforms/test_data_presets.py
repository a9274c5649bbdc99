from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import shardkit.transforms as presets
from shardkit.decode import decode_member
from shardkit.errors import ConfigError, DecodeError
from shardkit.transforms import Pipeline


def run(transforms, sample: dict, seed: int = 0) -> dict:
    (result,) = Pipeline(transforms)(dict(sample), seed)
    return result


# Latents


def latent(*shape: int) -> dict:
    file = io.BytesIO()
    mean = np.full(shape, 2.0, np.float16)
    np.savez(file, mean=mean, logvar=np.full(shape, np.log(9), np.float32))
    return decode_member("npz", file.getvalue())


def test_latents_are_drawn_from_mean_and_log_variance() -> None:
    result = run(presets.image_latent_pipeline("npz"), {"npz": latent(4, 64, 64)})
    assert set(result) == {"image_latent"}
    drawn = result["image_latent"]
    assert (drawn.dtype, drawn.shape) == (torch.float32, (4, 64, 64))
    assert drawn.mean() == pytest.approx(2, abs=0.1)
    assert drawn.std() == pytest.approx(3, abs=0.1)
    again = run(presets.image_latent_pipeline("npz"), {"npz": latent(4, 64, 64)})["image_latent"]
    other = run(presets.image_latent_pipeline("npz"), {"npz": latent(4, 64, 64)}, 1)["image_latent"]
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    video = run(presets.image_latent_pipeline("npz", as_video=True), {"npz": latent(4, 8, 8)})
    assert video["image_latent"].shape == (1, 4, 8, 8)


def test_latents_of_tensors_without_variance_and_scaled() -> None:
    value = {"mean": torch.ones(2, 3, 3, dtype=torch.bfloat16)}
    step = presets.SampleLatent("x", logvar=None, scale=0.5, output="numpy")
    assert np.array_equal(run([step], {"x": value})["x"], np.full((2, 3, 3), 0.5, np.float32))
    with pytest.raises(ConfigError, match="not a dict with 'mean'"):
        run([step], {"x": np.ones(3)})
    with pytest.raises(ConfigError, match="no field 'mean'; it has 'mu'"):
        run([step], {"x": {"mu": 1}})


def test_video_latents_come_at_a_lower_rate() -> None:
    numbers = np.arange(10, dtype=np.float32)[None, :, None, None]
    frames = numbers * np.ones((2, 1, 3, 3), np.float32)
    sample = {"npz": {"mean": frames}, "fps": 24.0}
    steps = presets.video_latent_pipeline("npz", fps=8, logvar=None, offset="start")
    result = run(steps, sample)
    assert result["video_latent"][0, :, 0, 0].tolist() == [0, 3, 6, 9]
    assert result["fps"] == 8
    steps = presets.video_latent_pipeline("npz", fps=8, logvar=None)
    firsts = {float(run(steps, sample, seed)["video_latent"][0, 0, 0, 0]) for seed in range(30)}
    assert firsts == {0, 1, 2}
    with pytest.raises(ConfigError, match="not a multiple of fps=10"):
        run(presets.video_latent_pipeline("npz", fps=10, logvar=None), sample)


# Text


def test_tokens_are_padded_or_cut() -> None:
    tokens = np.arange(6, dtype=np.float16).reshape(3, 2) + 1
    padded = run([presets.PadTokens("t", 5, mask_into="mask")], {"t": tokens})
    assert padded["t"].shape == (5, 2)
    assert padded["t"].dtype == torch.float32
    assert padded["t"][3:].abs().sum() == 0
    assert padded["mask"].tolist() == [True, True, True, False, False]
    cut = run([presets.PadTokens("t", 2, mask_into="mask")], {"t": tokens})
    assert cut["t"].tolist() == [[1, 2], [3, 4]]
    assert cut["mask"].tolist() == [True, True]
    told = {"t": {"embeddings": torch.ones(4, 2), "eot_location": 2}}
    short = run([presets.PadTokens("t", 4, length="eot_location", output="numpy")], told)["t"]
    assert short.sum(axis=1).tolist() == [2, 2, 0, 0]
    assert run([presets.PadTokens("t", 4, allow_missing=True)], {})["t"] is None
    with pytest.raises(DecodeError, match=r"shape \(3,\)"):
        run([presets.PadTokens("t", 4)], {"t": np.ones(3)})


def test_captions_are_drawn_by_their_probabilities() -> None:
    sample = {"short": "s", "long": "l", "none": "", "short_e": 1, "long_e": 2, "none_e": None}
    step = presets.ChooseCaption(
        ["short", "long", "none"],
        embeddings=["short_e", "long_e", "none_e"],
        probabilities=[0.2, 0.6, 0.2],
        drop_rest=True,
    )
    drawn = [run([step], sample, seed) for seed in range(400)]
    assert {(s["caption"], s["embedding"]) for s in drawn} == {("s", 1), ("l", 2)}
    assert set(drawn[0]) == {"caption", "embedding"}
    assert 270 < sum(s["caption"] == "l" for s in drawn) < 330
    with pytest.raises(DecodeError, match="all captions are empty: a, b"):
        run([presets.ChooseCaption(["a", "b"])], {"a": None})
    assert run([presets.ChooseCaption(["a"], allow_missing=True)], {})["caption"] is None
    with pytest.raises(ConfigError, match="probabilities has 1 entries for 2 texts"):
        presets.ChooseCaption(["a", "b"], probabilities=[1])


# Metadata and fields


def test_the_standard_metadata_pipeline() -> None:
    steps = presets.metadata_pipeline(
        "json", label="author.kind", classes={"cat": 0, "dog": 2}, one_hot=3
    )
    result = run(steps, {"json": b'{"author": {"kind": "dog"}}'})
    assert result["class_label"].tolist() == [0, 0, 1]
    assert result["json"] == {"author": {"kind": "dog"}}
    assert run(presets.metadata_pipeline("m", label="c", keep=False), {"m": '{"c": 4}'}) == {
        "class_label": 4
    }
    assert run(presets.metadata_pipeline("m"), {"m": {"parsed": 1}}) == {"m": {"parsed": 1}}
    with pytest.raises(DecodeError, match="class 'cow' is not among the 2"):
        run([presets.ClassToId("c", {"cat": 0, "dog": 1})], {"c": "cow"})
    with pytest.raises(DecodeError, match="from 0 to 2"):
        run([presets.OneHot("c", 3)], {"c": 3})
    with pytest.raises(DecodeError, match="it is not JSON"):
        run([presets.ParseJson("c")], {"c": "{"})
    with pytest.raises(DecodeError, match=r"no entry 'a.b': at 'b'"):
        run([presets.PickField("c", "a.b")], {"c": {"a": {"x": 1}}})
    assert run([presets.PickField("c", "a.b", allow_missing=True)], {"c": {}}) == {"c": None}
    assert run([presets.ClassToId("c", len)], {"c": "abc"}) == {"c": 3}


def test_merging_a_dict_into_the_sample() -> None:
    sample = {"meta": {"a": 1, "b": 2}, "a": 0}
    with pytest.raises(ConfigError, match="has 'a', which the sample has too"):
        run([presets.MergeFields("meta")], sample)
    kept = run([presets.MergeFields("meta", on_conflict="keep", drop=True)], sample)
    assert kept == {"a": 0, "b": 2}
    assert run([presets.MergeFields("meta", on_conflict="overwrite", drop=True)], sample)["a"] == 1


def test_fields_are_renamed_kept_dropped_and_set() -> None:
    sample = {"__key__": "k", "a": 1, "b": 2}
    assert run([presets.Rename({"a": "b", "b": "a"})], sample) == {"__key__": "k", "b": 1, "a": 2}
    assert run([presets.KeepFields("a")], sample) == {"__key__": "k", "a": 1}
    assert run([presets.DropFields(["a", "x"])], sample) == {"__key__": "k", "b": 2}
    assert run([presets.SetFields({"fps": 24})], {}) == {"fps": 24}
    with pytest.raises(ConfigError, match="no field 'x'"):
        run([presets.Rename({"x": "y"})], sample)
    assert run([presets.Rename({"x": "y"}, strict=False)], sample) == sample
    with pytest.raises(ConfigError, match="no field 'x'"):
        run([presets.KeepFields(["x"])], sample)


def test_casts() -> None:
    sample = {"a": np.ones(2, np.uint8), "t": torch.ones(2, dtype=torch.uint8), "n": 3}
    result = run([presets.Cast(("a", "t", "n"), "float32")], sample)
    assert result["a"].dtype == np.float32
    assert result["t"].dtype == torch.float32
    assert isinstance(result["n"], np.float32)


def test_checks_name_all_faults() -> None:
    sample = {"a": 1, "b": "", "c": None, "__key__": "k"}
    assert run([presets.CheckFields({"a": int}, drop_others=True)], sample) == {
        "a": 1,
        "__key__": "k",
    }
    with pytest.raises(DecodeError, match=r"'a' is of type int; 'b' is empty; 'x' is absent"):
        run([presets.CheckFields({"a": str, "b": str, "x": int})], sample)
    assert run([presets.CheckFields(["b", "c"], allow_empty=True)], sample)


def test_the_first_that_is_not_empty() -> None:
    for empty in (None, "", [], float("nan"), np.empty(0)):
        result = run([presets.FirstNonEmpty(["x", "a", "b"], "c")], {"a": empty, "b": 0})
        assert result["c"] == 0
    with pytest.raises(DecodeError, match="all of a are empty"):
        run([presets.FirstNonEmpty("a", "c")], {})
    assert run([presets.FirstNonEmpty("a", "c", allow_missing=True)], {}) == {"c": None}


def test_fields_are_gathered() -> None:
    sample = {"a": np.ones(2), "b": np.zeros(2)}
    stacked = run([presets.Gather(["a", "b"], "c", kind="stack", drop=True)], sample)
    assert stacked["c"].shape == (2, 2)
    assert set(stacked) == {"c"}
    assert run([presets.Gather(["a"], "c")], {"a": 1})["c"] == {"a": 1}
    assert run([presets.Gather(["a", "b"], "c", kind="list")], {"a": 1, "b": 2})["c"] == [1, 2]
    with pytest.raises(ConfigError, match="kind='tuple'"):
        presets.Gather("a", "c", kind="tuple")


def test_bytes_are_loaded_from_paths(tmp_path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"123")
    assert run([presets.LoadBytes("f")], {"f": str(path)}) == {"f": b"123"}
