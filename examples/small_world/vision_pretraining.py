"""Stage 0, the vision tower: learns to classify the content of every cell of its grid, with labels from the renderer.

It replaces the pretraining of LION's own tower, EVA-ViT-g, which learned to reconstruct CLIP features from masked
images. The heads are linear, are attached at two depths of the tower, and are discarded afterwards.

Shape letters: B images, G cells on a side, V vision width.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from transformers_lion.configuration_lion import LionVisionConfig
from transformers_lion.image_processing_lion import LionImageProcessor
from transformers_lion.modeling_lion import LionVisionModel

from .cells import CellLabels
from .scenes import BACKGROUNDS, COLORS, SHAPES, SIZES

CLASSES = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "size": len(SIZES) + 1}
BOX_WEIGHT = 6.0
MIDDLE_WEIGHT = 0.3
"""Loss weight of the heads on the middle block."""


class DenseHeads(nn.Module):
    """Linear heads at one depth: classes and box of each cell, and the background from the CLS token."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.classes = nn.Linear(hidden_size, sum(CLASSES.values()))
        self.box = nn.Linear(hidden_size, 4)
        self.background = nn.Linear(hidden_size, len(BACKGROUNDS))

    def forward(self, hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 1 + G * G, V) -> logits (B, G * G, classes) of each attribute, `box` (B, G * G, 4), `background`."""
        hidden_states = self.norm(hidden_states)
        cells = hidden_states[:, 1:]
        logits = self.classes(cells).split(list(CLASSES.values()), dim=-1)
        side = math.isqrt(cells.shape[1])
        position = (torch.arange(side, device=cells.device) + 0.5) / side
        center = torch.stack(torch.meshgrid(position, position, indexing="xy"), dim=-1).reshape(-1, 2)
        box = center.repeat(1, 2) + 0.25 * self.box(cells)
        return {
            **dict(zip(CLASSES, logits, strict=True)),
            "box": box,
            "background": self.background(hidden_states[:, 0]),
        }


class DenseLabelModel(nn.Module):
    """The tower with heads on its last and its middle block."""

    def __init__(self, config: LionVisionConfig, middle: int):
        super().__init__()
        self.tower = LionVisionModel(config)
        self.middle = middle
        self.heads = nn.ModuleList([DenseHeads(config.hidden_size), DenseHeads(config.hidden_size)])
        _prepare_small_tower(self.tower)

    def forward(self, pixel_values: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """(B, 3, H, W) -> predictions of the heads on the last and on the middle block."""
        outputs = self.tower(pixel_values, feature_layers=(self.middle,), return_dict=True)
        return [self.heads[0](outputs.last_hidden_state), self.heads[1](outputs.feature_maps[0])]


@torch.no_grad()
def _prepare_small_tower(tower: LionVisionModel) -> None:
    """Initialize for a short training: position embeddings and attention that favor neighboring cells.

    Position embeddings start as sines and cosines (arXiv:2010.11929, appendix D.4), queries and keys as near copies of
    each other, and values and outputs as near opposites (arXiv:2305.09828).
    """
    config = tower.config
    side = config.image_size // config.patch_size
    table = tower.embeddings.position_embedding
    table[0, 1:] = 0.5 * _sines(side, config.hidden_size)
    width, heads = config.hidden_size, config.num_attention_heads
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        query, key, value = attention.qkv.weight.split(width)
        for q, k in zip(query.split(width // heads), key.split(width // heads), strict=True):
            q.copy_(torch.randn_like(q) * width**-0.5)
            k.copy_(0.7 * q + 0.7 * torch.randn_like(k) * width**-0.5)
        value.copy_(torch.randn_like(value) * width**-0.5)
        attention.projection.weight.copy_(-0.4 * value.T + 0.4 * torch.randn_like(value) * width**-0.5)
        for linear in (layer.mlp.fc1, layer.mlp.fc2):
            linear.weight.normal_(std=linear.in_features**-0.5)
        layer.mlp.fc2.weight.mul_(0.3)
    tower.embeddings.patch_embedding.weight.normal_(std=0.03)


def _sines(side: int, width: int) -> torch.Tensor:
    """(side * side, width), sines and cosines of the column in the first half and of the row in the second."""
    frequencies = torch.exp(torch.linspace(math.log(0.3), math.log(3.0), width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (side, width / 2)
    return torch.cat([line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)], dim=-1).reshape(-1, width)


def dense_loss(predictions: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy of the attributes and the background, and the box loss of cells with an object."""
    loss = F.cross_entropy(predictions["background"], labels["background"]) * 0.3
    for name in CLASSES:
        loss = loss + F.cross_entropy(predictions[name].flatten(0, 1), labels[name].flatten())
    inside = labels["shape"].flatten(1) > 0
    distance = (predictions["box"] - labels["box"].flatten(1, 2)).abs().sum(-1)
    return loss + BOX_WEIGHT * (distance * inside).sum() / inside.sum().clamp(min=1)


def augment(
    pixels: torch.Tensor, labels: dict[str, torch.Tensor], generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Flip some images with their labels, and vary the brightness, sharpness and noise of all.

    Args:
        pixels: (B, 3, H, W) in 0 to 1.
        labels: the fields of `CellLabels`.
        generator: the random number generator.
    """
    count = len(pixels)
    mirrored = torch.rand(count, generator=generator) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    changed = dict(labels)
    for name in CLASSES:
        changed[name] = torch.where(mirrored[:, None, None], labels[name].flip(-1), labels[name])
    box = labels["box"].flip(2)
    box = torch.stack([1 - box[..., 2], box[..., 1], 1 - box[..., 0], box[..., 3]], dim=-1)
    changed["box"] = torch.where(mirrored[:, None, None, None], box, labels["box"])

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low

    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, blurred, uniform(-0.4, 0.8))
    pixels = (pixels - 0.5) * uniform(0.85, 1.15) + 0.5 + uniform(-0.06, 0.06)
    pixels = pixels + torch.randn(pixels.shape, generator=generator) * uniform(0, 0.03)
    return pixels.clamp(0, 1), changed


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the indices (batch_size,) of the images of a step, out of `count`; each image occurs once per epoch."""
    epoch, place = divmod(step, count // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return np.sort(order[place * batch_size : (place + 1) * batch_size])


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in 0 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def normalize(pixels: torch.Tensor, processor: type[LionImageProcessor] = LionImageProcessor) -> torch.Tensor:
    """(B, 3, H, W) in 0 to 1 -> the same with the statistics of an image processor."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixels - mean) / std


def augmented_batches(
    images: np.ndarray, labels: CellLabels, batch_size: int, seed: int, first_step: int = 0
) -> Iterator[tuple[np.ndarray, torch.Tensor, dict[str, torch.Tensor]]]:
    """Yield endless augmented batches; the batch of a step does not depend on the first step.

    Yields:
        (B,) indices of the images, (B, 3, H, W) pixels in 0 to 1, and the labels.
    """
    step = first_step
    while True:
        rows = batch_rows(len(images), batch_size, seed, step)
        chosen = labels[rows]
        generator = torch.Generator().manual_seed(hash((seed, step)) % 2**31)
        targets = {name: torch.from_numpy(getattr(chosen, name)) for name in (*CLASSES, "box", "background")}
        yield rows, *augment(to_pixels(images[rows]), targets, generator)
        step += 1


def batches(
    images: np.ndarray, labels: CellLabels, batch_size: int, seed: int, first_step: int = 0
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Yield `augmented_batches` with pixels (B, 3, H, W) normalized as for LION, without indices."""
    for _, pixels, targets in augmented_batches(images, labels, batch_size, seed, first_step):
        yield normalize(pixels), targets


@torch.no_grad()
def evaluate(model: DenseLabelModel, images: np.ndarray, labels: CellLabels, batch_size: int = 100) -> dict[str, float]:
    """Return the accuracy of classes in object cells, the accuracy of objects vs. background, and the box error."""
    model.eval()
    sums: dict[str, float] = {}
    inside_total = 0
    for low in range(0, len(images), batch_size):
        rows = slice(low, low + batch_size)
        predictions, chosen = model(normalize(to_pixels(images[rows])))[0], labels[rows]
        inside = torch.from_numpy(chosen.shape).flatten(1) > 0
        inside_total += int(inside.sum())
        scores = {"object": ((predictions["shape"].argmax(-1) > 0) == inside).float().mean(1).sum()}
        for name in CLASSES:
            right = predictions[name].argmax(-1) == torch.from_numpy(getattr(chosen, name)).flatten(1)
            scores[name] = (right & inside).sum().float()
        error = (predictions["box"] - torch.from_numpy(chosen.box).flatten(1, 2)).abs().mean(-1)
        scores["box"] = (error * inside).sum()
        scores["background"] = (
            (predictions["background"].argmax(-1) == torch.from_numpy(chosen.background)).sum().float()
        )
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {
        name: value / (len(images) if name in ("object", "background") else inside_total)
        for name, value in sums.items()
    }
