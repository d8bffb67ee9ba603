"""Trains the small world's tagger, a small RAM, on true tags, and then determines its thresholds.

Its vision tower also learns to classify the shape at each token, with a linear head that is discarded afterwards: from
tags alone, it takes far longer to learn to distinguish shapes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from transformers_lion.ram import RamForImageTagging, RamImageProcessor

from . import vision_pretraining
from .architecture import small_tagger_config
from .cells import CellLabels
from .loop import LoopSettings, run_loop
from .scenes import BACKGROUNDS, COLORS, SHAPES, TAGS

TAGGER = LoopSettings(num_steps=1000, save_every=250)
BATCH, SHAPE_WEIGHT = 64, 5.0


def tag_labels(labels: CellLabels) -> torch.Tensor:
    """(N, L), one where a tag is true; N scenes, L tags."""
    rows = np.zeros((len(labels), len(TAGS)), dtype=np.float32)
    for first, classes, count in ((0, labels.shape, len(SHAPES)), (len(SHAPES), labels.color, len(COLORS))):
        for index in range(count):
            rows[:, first + index] = (classes == index + 1).any(axis=(1, 2))
    first = len(SHAPES) + len(COLORS)
    rows[np.arange(len(rows)), first + labels.background] = 1.0
    assert first + len(BACKGROUNDS) == len(TAGS)
    return torch.from_numpy(rows)


def _to_tagger_pixels(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, H, W) in 0 to 1 -> (B, 3, size, size), resized and normalized almost as by `RamImageProcessor`."""
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return vision_pretraining.normalize(resized, RamImageProcessor)


def batches(
    images: np.ndarray, labels: CellLabels, size: int, seed: int, first_step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield endless batches of augmented pixels (B, 3, size, size), tags (B, L) and shapes (B, G, G)."""
    tags = tag_labels(labels)
    for rows, pixels, targets in vision_pretraining.augmented_batches(images, labels, BATCH, seed, first_step):
        yield _to_tagger_pixels(pixels, size), tags[rows], targets["shape"]


class _TaggerWithShapes(nn.Module):
    """The tagger, with a head that classifies the shapes at its image tokens."""

    def __init__(self, tagger: RamForImageTagging):
        super().__init__()
        self.tagger = tagger
        self.shapes = nn.Linear(tagger.config.encoder_hidden_size, len(SHAPES) + 1)

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the loss of tags and shapes."""
        pixels, tags, cells = batch
        outputs = self.tagger(pixels, labels=tags)
        rows, columns = self.tagger.config.feature_grid
        picked = cells[:, _nearest(rows, cells.shape[1])][:, :, _nearest(columns, cells.shape[2])]
        logits = self.shapes(outputs.image_embeds[:, 1:])  # the first token is the mean
        return outputs.loss + SHAPE_WEIGHT * F.cross_entropy(logits.float().flatten(0, 1), picked.flatten())


def _nearest(count: int, of: int) -> torch.Tensor:
    """(count,), the cells of a line of `of` in which the middles of `count` equal parts lie."""
    return ((torch.arange(count) + 0.5) / count * of).long()


@torch.no_grad()
def scores(model: RamForImageTagging, images: np.ndarray) -> torch.Tensor:
    """(N, L) probabilities."""
    size, found = model.config.image_size[0], []
    for low in range(0, len(images), 100):
        pixels = vision_pretraining.to_pixels(images[low : low + 100])
        found.append(model(_to_tagger_pixels(pixels, size)).logits.float().sigmoid())
    return torch.cat(found)


def average_precision(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(N, L) scores and truth -> (L,), the mean over a tag's true images of the precision down to each."""
    order = scores.argsort(dim=0, descending=True)
    hits = truth.gather(0, order)
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1).unsqueeze(1)
    return (precision * hits).sum(0) / hits.sum(0)


def best_thresholds(scores: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Return the threshold with the highest F1 for each tag, from 0.05 to 0.95."""
    candidates = torch.linspace(0.05, 0.95, 91)
    f1 = []
    for threshold in candidates:
        present = (scores > threshold).float()
        f1.append(2 * (present * truth).sum(0) / (present.sum(0) + truth.sum(0)).clamp(min=1))
    best = torch.stack(f1)
    ties = best >= best.max(0).values - 1e-4  # use the middle of tied thresholds
    return [float(candidates[column.nonzero().float().mean().round().long()]) for column in ties.T]


def train_tagger(
    folder: Path, scenes: tuple[np.ndarray, CellLabels], unseen: tuple[np.ndarray, CellLabels], seed: int = 0
) -> None:
    """Train the tagger, and save model and image processor in `folder/tagger`."""
    torch.manual_seed(seed)
    config = small_tagger_config()
    config.vision_config._attn_implementation = "eager"
    model, size = RamForImageTagging(config), config.image_size[0]
    learner = _TaggerWithShapes(model)
    truth = tag_labels(unseen[1])

    def evaluate() -> dict[str, Any]:
        return {"mAP": round(average_precision(scores(model, unseen[0]), truth).mean().item(), 4)}

    run_loop(
        learner, learner.loss,
        lambda step: batches(*scenes, size, seed, step),
        lambda name: "relative" not in name and "embedding" not in name, TAGGER, folder / "tagger-training", evaluate,
    )  # fmt: skip
    model.eval()
    model.config.thresholds = [round(x, 2) for x in best_thresholds(scores(model, unseen[0]), truth)]
    model.save_pretrained(folder / "tagger")
    RamImageProcessor(size={"height": size, "width": size}).save_pretrained(folder / "tagger")
