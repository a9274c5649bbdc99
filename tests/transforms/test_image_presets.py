from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from shardkit.decode import decode_image
from shardkit.errors import ConfigError
from shardkit.transforms import (
    AsVideo,
    DecodeImage,
    Flip,
    Pipeline,
    RandomResizedCrop,
    Resize,
    ToTensor,
    image_pipeline,
)
from shardkit.transforms.resize import Box, aspect_box, resize
from tests import media


def run(transforms, sample: dict, seed: int = 0) -> dict:
    (result,) = Pipeline(transforms)(dict(sample), seed)
    return result


def test_the_standard_pipeline_gives_what_pillow_gives() -> None:
    for height, width in ((375, 500), (500, 375), (64, 64), (40, 900)):
        data = media.jpeg(media.picture(height, width))
        result = run(image_pipeline("jpg", (56, 84)), {"__key__": "k", "jpg": data})
        assert set(result) == {"__key__", "image"}
        assert result["image"].dtype == torch.uint8
        assert result["image"].shape == (3, 56, 84)
        assert result["image"].is_contiguous()
        pixels = decode_image(data, min_size=(56, 84))  # large ones come at a reduced scale
        box = aspect_box(*pixels.shape[:2], (56, 84))
        cut = Image.fromarray(pixels).crop(
            (box.left, box.top, box.left + box.width, box.top + box.height)
        )
        expected = np.asarray(cut.resize((84, 56), Image.Resampling.BILINEAR))
        ours = result["image"].numpy().transpose(1, 2, 0)
        assert np.abs(ours.astype(int) - expected).max() <= 1


def test_large_photos_are_decoded_small_and_look_the_same() -> None:
    data = media.jpeg(media.smooth(1500, 2000))
    small = run(image_pipeline("jpg", (100, 100)), {"jpg": data})["image"]
    whole = run([DecodeImage("jpg"), Resize("jpg", (100, 100)), ToTensor("jpg")], {"jpg": data})
    assert small.shape == whole["jpg"].shape == (3, 100, 100)
    assert (small.float() - whole["jpg"].float()).abs().mean() < 1.5


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(30, 40), (224, 224), (100, 33)])
def test_torch_and_pillow_resize_alike(mode: str, size: tuple[int, int], monkeypatch) -> None:
    pixels = media.picture(90, 120)
    by_torch = resize(pixels, size, Box(5, 7, 80, 100), mode)
    monkeypatch.setattr("shardkit.transforms.resize.has_module", lambda name: False)
    by_pillow = resize(pixels, size, Box(5, 7, 80, 100), mode)
    assert by_torch.shape == by_pillow.shape == (*size, 3)
    assert np.abs(by_torch.astype(int) - by_pillow).max() <= 1
    video = np.stack([pixels, pixels[::-1]])
    assert resize(video, size).shape == (2, *size, 3)
    assert resize(pixels[..., :1], size).shape == (*size, 1)


@pytest.mark.parametrize("with_torch", [True, False])
def test_what_was_mirrored_first_is_resized_like_its_copy(with_torch: bool, monkeypatch) -> None:
    monkeypatch.setattr("shardkit.transforms.resize.has_module", lambda name: with_torch)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    mirrored = pixels[:, ::-1]
    assert np.array_equal(resize(mirrored, (30, 40)), resize(mirrored.copy(), (30, 40)))


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_a_view_of_planes_is_resized_like_pixels(
    num_channels: int, with_torch: bool, monkeypatch
) -> None:
    monkeypatch.setattr("shardkit.transforms.resize.has_module", lambda name: with_torch)
    planes = np.random.default_rng(0).integers(0, 256, (num_channels, 60, 80), np.uint8)
    pixels = planes.transpose(1, 2, 0)
    assert np.array_equal(resize(pixels, (30, 40)), resize(pixels.copy("C"), (30, 40)))


def test_aspects() -> None:
    image = media.smooth(60, 120)
    cropped = run([Resize("i", (30, 30))], {"i": image})["i"]
    assert np.abs(cropped.astype(int) - resize(image[:, 30:90], (30, 30))).max() == 0
    stretched = run([Resize("i", (30, 30), aspect="stretch")], {"i": image})["i"]
    assert np.array_equal(stretched, resize(image, (30, 30)))
    padded = run([Resize("i", (30, 30), aspect="pad")], {"i": image})["i"]
    assert padded.shape == (30, 30, 3)
    assert not padded[:7].any()
    assert not padded[23:].any()
    assert padded[8:22].any()
    upright = run([Resize("i", (20, 40), swap_upright=True)], {"i": image.swapaxes(0, 1)})["i"]
    assert upright.shape == (40, 20, 3)
    zoomed = run([Resize("i", (30, 30), zoom=0.5)], {"i": image})["i"]
    assert np.array_equal(zoomed, image[15:45, 45:75])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="aspect='fill'"):
        Resize("i", (3, 3), aspect="fill")
    with pytest.raises(ConfigError, match="zoom=2"):
        Resize("i", (3, 3), zoom=2)
    with pytest.raises(ConfigError, match="normalize='imagenet'"):
        ToTensor("i", normalize="imagenet")
    with pytest.raises(ConfigError, match="uint8 pixels, not float32"):
        run([Resize("i", (3, 3))], {"i": media.smooth().astype(np.float32)})


def test_random_sizes_follow_their_probabilities() -> None:
    pipeline = [Resize("i", {(8, 8): 3, (16, 8): 1})]
    shapes = [run(pipeline, {"i": media.smooth()}, seed)["i"].shape for seed in range(400)]
    assert {shape[:2] for shape in shapes} == {(8, 8), (16, 8)}
    assert 250 < sum(shape[0] == 8 for shape in shapes) < 350
    steps = image_pipeline("jpg", {(100, 50): 1, (20, 200): 1})
    assert steps[0].min_size == (100, 200)


def test_pairs_get_the_same_crop_flip_and_size() -> None:
    source = media.picture(120, 200)
    pair = {"a.png": media.save_png(source), "b.png": media.save_png(255 - source)}
    pipeline = Pipeline(
        image_pipeline(
            ("a.png", "b.png"), {(32, 32): 1, (48, 32): 1}, into=("a", "b"), crop="random", flip=0.5
        )
    )
    seen = set()
    for seed in range(30):
        (result,) = pipeline(dict(pair), seed)
        total = result["a"].int() + result["b"].int()
        assert (total - 255).abs().max() <= 2
        seen.add(result["a"].numpy().tobytes())
    assert len(seen) > 25
    crop = Pipeline(RandomResizedCrop(("a", "b"), (32, 32)))
    for seed in range(30):
        (result,) = crop({"a": source, "b": 255 - source}, seed)
        assert np.abs(result["a"].astype(int) + result["b"] - 255).max() <= 2


def test_random_resized_crops_stay_inside_and_keep_their_area() -> None:
    y, x = np.mgrid[:100, :150]
    image = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    areas = []
    for seed in range(200):
        out = run([RandomResizedCrop("i", (40, 40), mode="nearest")], {"i": image}, seed)["i"]
        out = out.astype(int)
        area = (out[-1, 0, 0] - out[0, 0, 0] + 2) * (out[0, -1, 1] - out[0, 0, 1] + 2)
        areas.append(area / (100 * 150))
    assert min(areas) > 0.05
    assert 0.35 < np.mean(areas) < 0.6
    extreme = run([RandomResizedCrop("i", (8, 8))], {"i": np.zeros((1, 500, 3), np.uint8)})
    assert extreme["i"].shape == (8, 8, 3)


def test_flips() -> None:
    image = media.smooth()
    assert np.array_equal(run([Flip("i", 1.0)], {"i": image})["i"], image[:, ::-1])
    assert np.array_equal(run([Flip("i", 0.0)], {"i": image})["i"], image)
    with pytest.raises(ConfigError, match="probability=2 must be from 0 to 1"):
        Flip("i", 2)
    flips = [not np.array_equal(run([Flip("i")], {"i": image}, n)["i"], image) for n in range(200)]
    assert 70 < sum(flips) < 130


def test_scales_of_tensors() -> None:
    image = np.array([[[0, 128, 255]]], np.uint8)
    unit = run([ToTensor("i", normalize="unit")], {"i": image})["i"]
    assert unit.dtype == torch.float32
    assert torch.allclose(unit.flatten(), torch.tensor([0, 128 / 255, 1.0]))
    signed = run([ToTensor("i", normalize="signed")], {"i": image})["i"].flatten()
    assert torch.allclose(signed, torch.tensor([-1, 256 / 255 - 1, 1.0]), atol=1e-6)
    mean, deviation = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    scaled = run([ToTensor("i", normalize=(mean, deviation))], {"i": image})["i"].flatten()
    expected = (torch.tensor([0, 128 / 255, 1.0]) - torch.tensor(mean)) / torch.tensor(deviation)
    assert torch.allclose(scaled, expected, atol=1e-5)
    arrays = run([ToTensor("i", output="numpy")], {"i": image})["i"]
    assert isinstance(arrays, np.ndarray)
    assert arrays.shape == (3, 1, 1)


def test_an_image_as_a_video_of_one_frame() -> None:
    result = run(image_pipeline("jpg", (8, 8), as_video=True), {"jpg": media.jpeg()})
    assert result["image"].shape == (1, 3, 8, 8)
    assert result["fps"] == 960.0
    assert run([AsVideo("i")], {"i": media.smooth()})["i"].shape == (1, 48, 64, 3)


def test_images_from_bytes_paths_and_arrays(tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(media.jpeg())
    arrays = [
        run([DecodeImage("i")], {"i": value})["i"]
        for value in (media.jpeg(), str(path), memoryview(media.jpeg()), decode_image(media.jpeg()))
    ]
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    assert run([DecodeImage("i", allow_missing=True)], {"i": None}) == {"i": None}
    assert run([DecodeImage("i", allow_missing=True)], {}) == {"i": None}


def test_without_torch_the_same_pipeline_gives_arrays() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torch' else real(name)\n"
        "from shardkit.transforms import Pipeline, image_pipeline\n"
        "sample, = Pipeline(image_pipeline('jpg', (32, 24), flip=1.0, normalize='signed'))"
        "({'jpg': sys.stdin.buffer.read()}, 0)\n"
        "assert type(sample['image']).__name__ == 'ndarray', sample\n"
        "assert sample['image'].shape == (3, 32, 24)\n"
        "assert sample['image'].dtype == 'float32'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=media.jpeg(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
