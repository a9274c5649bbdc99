from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from shardkit.decode.image import decode_image, image_decoder
from shardkit.decode.jpeg import read_jpeg_header
from shardkit.errors import ConfigError, DecodeError
from tests import media


def pillow(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    "data",
    [
        media.jpeg(media.picture(375, 500)),
        media.jpeg(media.picture(31, 17)),
        media.jpeg(media.picture(), progressive=True),
        media.jpeg(media.picture(), subsampling=0),
        media.jpeg(media.picture()[..., 0]),
        media.jpeg(media.picture(1, 1)),
        media.cmyk_jpeg(),
        media.save(Image.fromarray(media.picture()), "png"),
        media.save(Image.fromarray(media.picture()).convert("P"), "png"),
        media.save(Image.fromarray(media.picture()).convert("RGBA"), "png"),
        media.save(Image.fromarray(media.picture()).convert("LA"), "png"),
        media.save(Image.fromarray(media.picture()).convert("1"), "png"),
        media.save(Image.fromarray(media.picture()), "webp", lossless=True),
        media.save(Image.fromarray(media.picture()), "gif"),
        media.save(Image.fromarray(media.picture()), "bmp"),
        media.save(Image.fromarray(media.picture()), "tiff"),
        media.save(Image.fromarray(media.picture()).convert("CMYK"), "tiff"),
    ],
    ids=[
        *("jpg", "odd-jpg", "progressive-jpg", "444-jpg", "grey-jpg", "1x1-jpg", "cmyk-jpg"),
        *("png", "palette-png", "alpha-png", "grey-alpha-png", "1-bit-png", "webp", "gif"),
        *("bmp", "tiff", "cmyk-tiff"),
    ],
)
def test_pixels_equal_those_of_pillow(data: bytes) -> None:
    pixels = decode_image(data)
    expected = pillow(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert np.array_equal(decode_image(memoryview(data)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fast", [True, False])
def test_a_turned_photo_is_upright(
    orientation: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr("shardkit.decode.image.has_module", lambda name: False)
    data = media.turned_jpeg(orientation)
    pixels = decode_image(data)
    assert pixels.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    assert np.abs(pixels.astype(int) - pillow(data)).max() <= 1
    assert pixels.flags.c_contiguous


def test_a_turned_tiff_and_png_are_upright_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("png", "tiff", "webp"):
        options = {"lossless": True} if name == "webp" else {}
        data = media.save(Image.fromarray(media.smooth()), name, exif=exif, **options)
        expected = np.rot90(media.smooth(), -1)
        assert np.array_equal(decode_image(data), expected), name


def test_sixteen_bit_greys_keep_their_range() -> None:
    levels = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("png", "tiff"):
        data = media.save(Image.fromarray(levels), name)
        pixels = decode_image(data)
        assert pixels.shape == (8, 8, 3)
        assert np.abs(pixels[..., 0] * 257.0 - levels).max() <= 129
        assert np.array_equal(decode_image(data, mode="unchanged"), levels)


def test_modes() -> None:
    rgba = np.dstack([media.picture(), np.full((48, 64), 77, np.uint8)])
    data = media.save(Image.fromarray(rgba), "png")
    assert np.array_equal(decode_image(data), rgba[..., :3])
    assert np.array_equal(decode_image(data, mode="RGBA"), rgba)
    assert np.array_equal(decode_image(data, mode="unchanged"), rgba)
    assert decode_image(data, mode="L").shape == (48, 64, 1)
    assert decode_image(media.jpeg(), mode="L").shape == (48, 64, 1)
    mask = (np.arange(64).reshape(8, 8) % 7).astype(np.uint8)
    indexed = Image.fromarray(mask).convert("P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] * 3)
    assert np.array_equal(decode_image(media.save(indexed, "png"), mode="unchanged"), mask)


def test_an_animation_gives_its_first_frame() -> None:
    first, second = (Image.fromarray(media.picture(seed=seed)) for seed in (1, 2))
    data = media.save(first, "webp", save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(decode_image(data), np.asarray(first))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("name", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_truncated_images_are_errors(name: str) -> None:
    kind = "jpeg" if name == "jpg" else name
    data = media.save(Image.fromarray(media.picture(200, 300)), kind)
    for part in (0, 3, 20, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DecodeError):
            decode_image(data[:part])


def test_small_faults_that_everyone_forgives_are_forgiven() -> None:
    data = media.jpeg()
    expected = decode_image(data)
    assert np.array_equal(decode_image(data + b"trailing bytes"), expected)
    start = data.index(b"\xff\xdb")
    assert np.array_equal(decode_image(data[:start] + b"\x00\x00" + data[start:]), expected)


def test_bombs_are_refused_before_they_go_off() -> None:
    with pytest.raises(DecodeError, match=r"larger than Pillow allows|max_pixels"):
        decode_image(media.bomb_png())
    with pytest.raises(DecodeError, match="max_pixels=1000"):
        decode_image(media.jpeg(), max_pixels=1000)
    with pytest.raises(DecodeError, match="max_pixels=1000"):
        decode_image(media.save(Image.fromarray(media.picture()), "png"), max_pixels=1000)


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(DecodeError, match=r"no image format known to Pillow.*<html>"):
        decode_image(b"<html>404 not found</html>")


def test_decodes_into_a_slot_of_a_batch() -> None:
    data = media.jpeg(media.picture(48, 64))
    batch = np.zeros((3, 48, 64, 3), np.uint8)
    pixels = decode_image(data, out=batch[1])
    assert np.shares_memory(pixels, batch)
    assert np.array_equal(batch[1], decode_image(data))
    assert not batch[0].any()
    assert not batch[2].any()
    png = media.save(Image.fromarray(media.picture(48, 64)), "png")
    assert np.shares_memory(decode_image(png, out=batch[2]), batch)
    assert batch[2].any()
    turned = decode_image(media.turned_jpeg(3), out=batch[0])
    assert np.shares_memory(turned, batch)
    flat = np.zeros(100_000, np.uint8)
    assert np.shares_memory(decode_image(data, out=flat), flat)


def test_a_slot_of_another_size_is_refused() -> None:
    data = media.jpeg(media.picture(48, 64))
    for shape in ((48, 64), (64, 48, 3), (10, 10, 3), (100, 100, 3)):
        with pytest.raises(ConfigError, match=r"out= is uint8 \(\d+, \d+.*but the image has"):
            decode_image(data, out=np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match="contiguous"):
        decode_image(data, out=np.zeros((48, 128, 3), np.uint8)[:, ::2])


@pytest.mark.parametrize("size", [(256, 256), (100, 400), (1000, 1000)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_scale_is_at_least_what_was_asked(size: tuple[int, int], orientation: int) -> None:
    data = media.turned_jpeg(orientation, media.smooth(1200, 1600))
    full = decode_image(data)
    pixels = decode_image(data, min_size=size)
    assert pixels.shape[0] >= min(size[0], full.shape[0])
    assert pixels.shape[1] >= min(size[1], full.shape[1])
    if max(size) <= 400:
        assert pixels.size < full.size
    height, width = pixels.shape[:2]
    small = np.asarray(Image.fromarray(full).resize((width, height), Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - small).mean() < 1


def test_what_will_be_scaled_down_is_decoded_faster_and_looks_the_same() -> None:
    data = media.jpeg(media.picture(375, 500))
    exact, fast = decode_image(data).astype(int), decode_image(data, min_size=(256, 256))
    assert fast.shape == exact.shape
    assert np.abs(exact - fast).mean() < 1
    shrunk = [
        np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize((300, 225))).astype(int)
        for pixels in (exact, fast)
    ]
    assert np.abs(shrunk[0] - shrunk[1]).mean() < 0.5
    assert np.array_equal(decode_image(data, min_size=(400, 500)), decode_image(data))


def test_decoder_options() -> None:
    import torch

    data = media.jpeg()
    pixels = decode_image(data)
    tensor = image_decoder(layout="CHW", output="torch")(data)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 48, 64)
    assert np.array_equal(tensor.numpy().transpose(1, 2, 0), pixels)
    assert image_decoder(mode="L")(data).shape == (48, 64, 1)
    with pytest.raises(ConfigError, match="layout='WHC'"):
        image_decoder(layout="WHC")


def test_header_of_a_jpeg() -> None:
    header = read_jpeg_header(media.turned_jpeg(8))
    assert header is not None
    assert (header.height, header.width, header.num_components) == (48, 64, 3)
    assert (header.bits, header.orientation) == (8, 8)
    assert read_jpeg_header(b"\xff\xd8\xff") is None
    assert read_jpeg_header(b"\x89PNG") is None


@pytest.mark.parametrize("cut", range(4, 400, 7))
def test_header_of_a_cut_or_scrambled_jpeg_never_raises(cut: int) -> None:
    data = bytearray(media.turned_jpeg(5))
    read_jpeg_header(bytes(data[:cut]))
    data[cut] ^= 0x5A
    read_jpeg_header(bytes(data))
