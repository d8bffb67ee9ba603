"""Taggers and images of the smallest size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_lion.ram import ImageTagger, RamConfig, RamForImageTagging, RamImageProcessor

NAMES = ("red", "green", "blue", "round", "large")
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def tiny_config(names: Sequence[str] = NAMES, **fields: Any) -> RamConfig:
    """A configuration with two Swin stages of one block, and two layers in the head."""
    vision = {**SWIN, **fields.pop("vision_config", {})}
    sizes = {"label_embed_dim": 12, "encoder_hidden_size": 10, "hidden_size": 16, "intermediate_size": 20}
    return RamConfig(vision_config=vision, id2label=dict(enumerate(names)), **{**sizes, **fields})


def tiny_ram(seed: int = 0, names: Sequence[str] = NAMES, **fields: Any) -> RamForImageTagging:
    """A model in eval mode in which no parameter has its initial value, so that none is without effect."""
    torch.manual_seed(seed)
    model = RamForImageTagging(tiny_config(names, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tiny_tagger(**arguments: Any) -> ImageTagger:
    """A tagger of a tiny model."""
    return ImageTagger(tiny_ram(), RamImageProcessor(size={"height": 32, "width": 32}), **arguments)


def tiny_pixels(batch_size: int = 3, seed: int = 0) -> torch.Tensor:
    """Preprocessed pixels, (B, 3, 32, 32)."""
    return torch.randn(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def noise_image(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """An image of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))
