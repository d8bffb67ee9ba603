import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from recipe import GOLDENS
from transformers_lion import LionImageProcessor
from transformers_lion.images import load_rgb_images

SMALL = {"height": 28, "width": 28}


def wave_image(height: int, width: int) -> Image.Image:
    """The image whose preprocessed pixels the reference computed."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    red = 127.5 + 127.5 * np.sin(2 * np.pi * (7 * x / width + 3 * y / height))
    green = 127.5 + 127.5 * np.cos(2 * np.pi * 11 * x * y / (height * width))
    blue = (31 * x + 17 * y) % 256
    return Image.fromarray(np.rint(np.stack([red, green, blue], -1)).astype(np.uint8))


@pytest.mark.parametrize("size", ["1080x1920", "224x224", "419x640", "97x31"])
def test_pixels_are_exactly_the_references(size: str) -> None:
    expected = load_file(GOLDENS / "lion" / "preprocessing.safetensors")[size]
    height, width = map(int, size.split("x"))
    pixels = LionImageProcessor()(wave_image(height, width), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0, :, ::8, ::8], expected)


def test_another_resampling_would_be_noticed() -> None:
    expected = load_file(GOLDENS / "lion" / "preprocessing.safetensors")["419x640"]
    processor = LionImageProcessor(resample=Image.Resampling.BILINEAR)
    pixels = processor(wave_image(419, 640), return_tensors="pt")["pixel_values"]
    assert (pixels[0, :, ::8, ::8] - expected).abs().max() > 1e-2


def pixels_of(image: Any) -> np.ndarray:
    return np.asarray(load_rgb_images(image)[0])


@pytest.fixture
def rgb_image() -> Image.Image:
    return wave_image(20, 30)


def test_all_ways_to_give_an_image_give_the_same_pixels(rgb_image: Image.Image, tmp_path: Path) -> None:
    rgb_image.save(tmp_path / "a.png")
    array, buffer = np.asarray(rgb_image), io.BytesIO()
    rgb_image.save(buffer, "png")
    text = base64.b64encode(buffer.getvalue()).decode()
    ways = {
        "path": tmp_path / "a.png",
        "path as text": str(tmp_path / "a.png"),
        "base64": text,
        "data url": f"data:image/png;base64,{text}",
        "array": array,
        "channels first": array.transpose(2, 0, 1),
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "floats": array / np.float32(255),
        "sixteen bits": array.astype(np.uint16) * 257,
    }
    for name, image in ways.items():
        assert np.array_equal(pixels_of(image), array), name


def test_the_exif_orientation_is_applied(rgb_image: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    rgb_image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels_of(tmp_path / "a.png"), np.rot90(np.asarray(rgb_image), k=-1))


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "L", "1", "YCbCr"])
def test_images_of_any_mode_become_rgb(mode: str, rgb_image: Image.Image) -> None:
    converted = rgb_image.convert("L").convert("LA") if mode == "LA" else rgb_image.convert(mode)
    assert np.array_equal(pixels_of(converted), np.asarray(converted.convert("RGB")))


def test_sixteen_bit_images_keep_their_tones(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(pixels_of(tmp_path / "a.png")[..., 0], (ramp >> 8).astype(np.uint8))


def test_dark_sixteen_bit_images_stay_dark(tmp_path: Path) -> None:
    dark = np.full((4, 4), 255, np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.png")
    assert pixels_of(dark).max() == 0
    assert pixels_of(tmp_path / "a.png").max() == 0


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_transparency_is_dropped_as_in_the_reference(mode: str, tmp_path: Path) -> None:
    blue = Image.new("RGB", (8, 8), (0, 0, 200)).convert(mode)
    blue.save(tmp_path / "a.png", transparency=(0, 0, 200) if mode == "RGB" else blue.getpixel((0, 0)))
    pixels = LionImageProcessor(size=SMALL)(str(tmp_path / "a.png"), do_normalize=False, return_tensors="pt")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[0, 0] / 255
    assert torch.allclose(pixels["pixel_values"][0, :, 0, 0].double(), torch.from_numpy(expected), atol=1e-6)


def test_a_download_that_fails_names_the_url() -> None:
    with pytest.raises(ValueError, match=r"Image 'http://127\.0\.0\.1:9/a\.png' cannot be read"):
        load_rgb_images("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_of_any_float_dtype_and_with_gradients_are_read(dtype: torch.dtype) -> None:
    tensor = torch.full((3, 4, 4), 0.5, dtype=dtype, requires_grad=True)
    assert (pixels_of(tensor) == 128).all()


def test_batched_and_nested_images_are_flattened_in_order(rgb_image: Image.Image) -> None:
    other = rgb_image.rotate(180)
    batch = np.stack([np.asarray(rgb_image), np.asarray(other)])
    for images in ([rgb_image, other], [[rgb_image], [other]], batch, torch.from_numpy(batch)):
        first, second = load_rgb_images(images)
        assert np.array_equal(np.asarray(first), batch[0])
        assert np.array_equal(np.asarray(second), batch[1])


def test_broken_files_are_named(rgb_image: Image.Image, tmp_path: Path) -> None:
    rgb_image.resize((300, 300)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name, words in {
        "cut.jpg": "truncated",
        "text.png": "not an image",
        "empty.png": "not an image",
        "missing.png": "no such file",
    }.items():
        with pytest.raises(ValueError, match=words) as error:
            LionImageProcessor(size=SMALL)([rgb_image, str(tmp_path / name)])
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((5, 5, 2), np.uint8), "shape|channel"),
        (np.full((4, 4, 3), -1.0), "-1"),
        (np.full((4, 4, 3), 300.0), "300"),
        (np.full((4, 4), np.nan), "nan"),
        (np.zeros(4, np.uint8), "shape"),
        (3, "expected a path"),
        ({"url": "a.png"}, "expected a mapping"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_rgb_images(image)


def test_the_processor_loads_through_the_auto_class(tmp_path: Path, rgb_image: Image.Image) -> None:
    processor = LionImageProcessor(size=SMALL, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LionImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    expected = processor(rgb_image, return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded(rgb_image, return_tensors="pt")["pixel_values"], expected)


def test_pixels_that_are_already_scaled_are_left_alone() -> None:
    scaled = np.random.RandomState(0).rand(3, 28, 28).astype(np.float32)
    pixels = LionImageProcessor()(
        scaled, do_rescale=False, do_resize=False, do_normalize=False, do_convert_rgb=False, return_tensors="pt"
    )
    assert np.array_equal(pixels["pixel_values"][0].numpy(), scaled)
