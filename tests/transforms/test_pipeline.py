from __future__ import annotations

import multiprocessing
import pickle
from functools import partial

import numpy as np
import pytest

import shardkit.transforms as presets
from shardkit.errors import ConfigError
from shardkit.transforms import Pipeline
from tests import media


def double(sample: dict) -> dict:
    return {"x": sample["x"] * 2}


def jitter(sample: dict, rng: np.random.Generator) -> dict:
    return {"x": sample["x"] + rng.integers(1_000_000)}


def both(sample: dict):
    yield {"x": sample["x"], "side": "left"}
    yield {"x": sample["x"], "side": "right"}


def scaled(sample: dict, factor: int, rng: np.random.Generator) -> dict:
    return {"x": sample["x"] * factor + rng.random()}


class Stateless:
    def __call__(self, sample: dict, *, rng: np.random.Generator) -> dict:
        return {"x": rng.random()}


def run_in_child(pipeline: Pipeline, queue: multiprocessing.Queue) -> None:
    queue.put(pipeline({"x": 1}, 7))


def test_one_in_one_out_in_order() -> None:
    assert Pipeline([double, [double, [double]]])({"x": 1}, 0) == [{"x": 8}]
    assert Pipeline(double)({"x": 1}, 0) == [{"x": 2}]
    assert Pipeline(None)({"x": 1}, 0) == [{"x": 1}]
    assert len(Pipeline([[], [double]])) == 1
    assert Pipeline(Pipeline([double]))({"x": 1}, 0) == [{"x": 2}]


def test_several_out_of_one_and_none() -> None:
    out = Pipeline([both, double, both])({"x": 1}, 0)
    assert [sample["x"] for sample in out] == [2, 2, 2, 2]
    assert Pipeline([lambda s: None, double])({"x": 1}, 0) == []
    assert Pipeline([lambda s: [], double])({"x": 1}, 0) == []
    assert Pipeline([lambda s: (s, s)])({"x": 1}, 0) == [{"x": 1}, {"x": 1}]


def test_randomness_comes_from_the_seed_alone() -> None:
    pipeline = Pipeline([jitter, both, jitter])
    assert pipeline({"x": 0}, 3) == pipeline({"x": 0}, 3)
    assert pipeline({"x": 0}, 3) != pipeline({"x": 0}, 4)
    left, right = pipeline({"x": 0}, 3)
    assert left != right  # one generator for all that comes of a sample
    assert pipeline({"x": 0}, 2**64 - 1) == pipeline({"x": 0}, 2**64 - 1)


def test_rng_is_passed_wherever_it_is_named() -> None:
    pipeline = Pipeline([partial(scaled, factor=2), Stateless()])
    assert pipeline.takes_rng == (True, True)
    assert pipeline({"x": 1}, 0) == pipeline({"x": 1}, 0)
    assert Pipeline([double]).takes_rng == (False,)


def test_no_generator_is_made_for_presets_that_draw_nothing() -> None:
    still = [
        presets.image_pipeline("jpg", (8, 8)),
        presets.video_pipeline("mp4", 4, (8, 8), start="middle"),
        presets.audio_pipeline("wav", 1.0, start="loudest"),
    ]
    assert not any(Pipeline(still).takes_rng)
    for drawing in (
        presets.Resize("i", (8, 8), crop="random"),
        presets.Resize("i", {(8, 8): 1}),
        presets.DecodeClip("mp4", 4),
        presets.DecodeAudio("wav", 1.0, start="random_loud"),
    ):
        assert Pipeline(drawing).takes_rng == (True,)
    with pytest.raises(ConfigError, match="Resize is random: call it with rng"):
        presets.Resize("i", (8, 8), crop="random")({"i": media.picture()})


def test_what_is_no_transform_is_refused_when_the_dataset_is_made() -> None:
    with pytest.raises(ConfigError, match="is not a transform"):
        Pipeline(["jpg"])
    with pytest.raises(ConfigError, match="is not a transform"):
        Pipeline([double, 3])
    with pytest.raises(
        ConfigError, match=r"needs the arguments sample, factor.*functools\.partial"
    ):
        Pipeline([scaled])


def test_what_is_no_sample_is_refused_by_name() -> None:
    def returns_text(sample: dict) -> str:
        return "sample"

    with pytest.raises(TypeError, match="returns_text returned str"):
        Pipeline([returns_text])({"x": 1}, 0)
    with pytest.raises(TypeError, match="gave a int among its samples"):
        Pipeline([lambda s: [1]])({"x": 1}, 0)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process")
def test_the_same_under_every_way_to_start_processes(method: str) -> None:
    pipeline = Pipeline([jitter, both, partial(scaled, factor=3)])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=run_in_child, args=(pipeline, queue))
    child.start()
    result = queue.get(timeout=60)
    child.join(60)
    assert result == pipeline({"x": 1}, 7)


def test_leading_presets_say_what_they_decode() -> None:
    head = [
        presets.ParseJson("json"),
        presets.SetFields({"a": 1}),
        presets.image_pipeline("jpg", (8, 8)),
    ]
    assert Pipeline(head).decodes == ("json", "jpg")
    assert Pipeline([head[0], double, head[2]]).decodes == ("json",)
    assert Pipeline([double]).decodes == ()


PRESETS = [
    presets.DecodeImage("jpg", into="image"),
    presets.Resize("image", {(8, 8): 0.5, (16, 16): 0.5}, crop="random"),
    presets.RandomResizedCrop(("a", "b"), (8, 8)),
    presets.Flip("image", 0.3),
    presets.ToTensor("image", normalize="signed"),
    presets.DecodeClip("mp4", 8, into="video"),
    presets.DecodeAudio("wav", 1.0, start="random_loud"),
    presets.NormalizeLoudness("wav"),
    presets.ChooseCaption(["a", "b"], probabilities=[0.3, 0.7]),
    presets.ClassToId("label", {"cat": 0}),
    presets.CheckFields({"a": int}),
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: type(preset).__name__)
def test_every_preset_pickles_and_prints(preset) -> None:
    assert pickle.loads(pickle.dumps(preset)) == preset
    assert type(preset).__name__ in repr(preset)


def test_an_absent_field_says_which_fields_there_are() -> None:
    pipeline = Pipeline(presets.image_pipeline("jpg", (8, 8)))
    with pytest.raises(ConfigError, match=r"no field 'jpg'; it has '__key__', 'png'"):
        pipeline({"__key__": "a", "png": media.save_png()}, 0)
    with pytest.raises(ConfigError, match="equally many names"):
        presets.DecodeImage(("a", "b"), into="c")
