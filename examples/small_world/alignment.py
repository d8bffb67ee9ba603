"""Aligns the aggregator with the language model, between stage 0 and stage 2.

LION's aggregator starts stage 2 from scratch, with FlanT5 as the language model. The small language model is trained on
so little text that its answers cannot train a new aggregator (in stage 2 alone, the loss did not decrease for 200
steps). The aggregator and its projection therefore first learn to imitate the word vectors (`SceneWords`) of each cell.

Shape letters: B images, G cells on a side.
"""

from pathlib import Path

import torch
from torch import nn

from transformers_lion.modeling_lion import LionForConditionalGeneration

from . import vision_pretraining
from .language_pretraining import BACKGROUND, FIELDS, OBJECT, SceneWords
from .loop import LoopSettings, run_loop
from .pretrain import NUM_TOWER_SCENES, NUM_VALIDATION_SCENES, SymbolicLanguageModel, load_scenes

ALIGNMENT = LoopSettings(num_steps=600, save_every=150)
BATCH = 64


def _cell_words(labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert labels of cells to inputs of `SceneWords`: (B, 1 + G * G, FIELDS) and (B, 1 + G * G, 4)."""
    shape = labels["shape"].flatten(1)
    fields = torch.zeros(*shape.shape, FIELDS, dtype=torch.long)
    fields[..., 0] = (shape > 0) * OBJECT
    for index, name in enumerate(("color", "shape", "size"), start=1):
        fields[..., index] = labels[name].flatten(1)
    first = torch.zeros(len(shape), 1, FIELDS, dtype=torch.long)
    first[:, 0, 0] = BACKGROUND
    first[:, 0, 4] = labels["background"] + 1
    boxes = labels["box"].flatten(1, 2)
    return torch.cat([first, fields], dim=1), torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)


class _AlignedAggregator(nn.Module):
    """A LION whose aggregator and projection learn to imitate word vectors."""

    def __init__(self, model: LionForConditionalGeneration, words: SceneWords, embed: nn.Module):
        super().__init__()
        self.model = model
        self.words = words
        self.embed = embed
        self.requires_grad_(False)
        model.aggregator.requires_grad_(True)
        model.aggregator_projection.requires_grad_(True)

    def loss(self, batch: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
        """Return the mean squared error, relative to the mean square of the word vectors."""
        pixels, labels = batch
        fields, boxes = _cell_words(labels)
        target = self.words(fields, boxes, self.embed, on_grid=True).float()
        found = self.model.get_image_features(pixels, return_dict=True).pooler_output.float()
        return (found - target).square().mean() / target.square().mean()


def align(folder: Path, model: LionForConditionalGeneration, seed: int = 0) -> None:
    """Train the aggregator of `model`, and save it with its projection as `folder/aggregator.pt`."""
    images, labels = load_scenes(folder, "train", NUM_TOWER_SCENES)
    unseen = load_scenes(folder, "validation", NUM_VALIDATION_SCENES)
    file = folder / "tag_language" / "checkpoint.pt"
    told = SymbolicLanguageModel(tags=file.exists())
    saved = torch.load(file if file.exists() else folder / "language" / "checkpoint.pt", weights_only=True)
    told.load_state_dict(saved["model"])
    model.set_attn_implementation("eager")
    learner = _AlignedAggregator(model, told.scene_words, told.language_model.shared)
    check = next(vision_pretraining.batches(*unseen, 256, seed))
    run_loop(
        learner, learner.loss, lambda step: vision_pretraining.batches(images, labels, BATCH, seed, step),
        lambda name: ".layers." in name or "aggregator_projection" in name, ALIGNMENT, folder / "alignment",
        lambda: {"unseen": round(float(learner.loss(check)), 4)},
    )  # fmt: skip
    parts = ("aggregator.", "aggregator_projection.")
    torch.save({k: v for k, v in model.state_dict().items() if k.startswith(parts)}, folder / "aggregator.pt")
