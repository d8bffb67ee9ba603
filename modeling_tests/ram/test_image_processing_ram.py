"""RamImageProcessor: exact pixels, and tags from the model's folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ram.factories import tiny_config, tiny_ram
from ram.recipe import RAM_GOLDENS
from transformers_lion.ram import RamImageProcessor

SIZES = ("1080x1920", "224x224", "419x640", "97x31")  # height x width


def wave(size: str) -> Image.Image:
    """The image whose preprocessed pixels are stored."""
    height, width = map(int, size.split("x"))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    red = 127.5 + 127.5 * np.sin(2 * np.pi * (7 * x / width + 3 * y / height))
    green = 127.5 + 127.5 * np.cos(2 * np.pi * 11 * x * y / (height * width))
    return Image.fromarray(np.stack([red, green, (31 * x + 17 * y) % 256], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_the_references_to_the_bit(size: str) -> None:
    pixels = RamImageProcessor()(wave(size), return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 384, 384)
    assert torch.equal(pixels[:, ::8, ::8], load_file(RAM_GOLDENS / "preprocessing.safetensors")[size])


def test_other_resampling_is_told_from_the_reference() -> None:
    pixels = RamImageProcessor(resample=Image.Resampling.BICUBIC)(wave("419x640"), return_tensors="pt")["pixel_values"]
    golden = load_file(RAM_GOLDENS / "preprocessing.safetensors")["419x640"]
    assert (pixels[0, :, ::8, ::8] - golden).abs().max() > 0.1


def test_a_path_gives_the_pixels_of_the_image(tmp_path: Path) -> None:
    wave("97x31").save(tmp_path / "wave.png")
    both = RamImageProcessor()([tmp_path / "wave.png", wave("97x31")], return_tensors="pt")["pixel_values"]
    assert torch.equal(both[0], both[1])


def test_transparency_is_dropped_as_the_reference_does(tmp_path: Path) -> None:
    opaque = wave("97x31")
    clear = opaque.copy()
    clear.putalpha(0)
    pixels = RamImageProcessor()([opaque, clear], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], pixels[1])


def test_the_tags_come_from_the_models_own_configuration(tmp_path: Path) -> None:
    model = tiny_ram(thresholds=[0.1, 0.2, 0.3, 0.4, 0.5])
    model.save_pretrained(tmp_path)
    RamImageProcessor().save_pretrained(tmp_path)
    loaded = RamImageProcessor.from_pretrained(tmp_path)
    assert loaded.ram_config.thresholds == [0.1, 0.2, 0.3, 0.4, 0.5]
    outputs = {"logits": torch.zeros(1, 5)}  # scores of 0.5
    assert [tag["label"] for tag in loaded.post_process_tagging(outputs)[0]] == ["red", "green", "blue", "round"]
    assert loaded.post_process_tagging(outputs) == model.post_process_tagging(outputs)
    assert "thresholds" not in (tmp_path / "preprocessor_config.json").read_text()


def test_an_image_processor_without_tags_says_so() -> None:
    outputs = {"logits": torch.ones(1, 5)}
    with pytest.raises(ValueError, match=r"config=model\.config"):
        RamImageProcessor().post_process_tagging(outputs)
    assert len(RamImageProcessor().post_process_tagging(outputs, config=tiny_config())[0]) == 5
