"""Stage 0 of the small world: `python -m examples.small_world.pretrain PART FOLDER`.

The parts are the vision tower, the language model (first `language`, then `tag_language`) and the tagger. Each resumes
if it is interrupted. The three are independent, so they can run in parallel, each on one core (`OMP_NUM_THREADS=1`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from transformers_lion.modeling_lion_t5 import LionT5ForConditionalGeneration

from . import language_pretraining, vision_pretraining
from .architecture import GRID, IMAGE_SIZE, NUM_QUERY_TOKENS, TAPS, small_config
from .cells import CellLabels, labelled_scenes
from .evaluation import is_right
from .language import ask
from .language_pretraining import SceneWords, SymbolicBatch, SymbolicScene
from .loop import LoopSettings, run_loop
from .tagger_training import train_tagger
from .vocabulary import language_model_tokenizer

NUM_TOWER_SCENES, NUM_LANGUAGE_SCENES, NUM_VALIDATION_SCENES = 60_000, 30_000, 1_000
TOWER = LoopSettings(num_steps=1600)
LANGUAGE = LoopSettings(num_steps=2200, learning_rate=2.5e-3, decay=0.4, save_every=200)
TOWER_BATCH, LANGUAGE_BATCH = 64, 80
FIRST_LANGUAGE_SCENE = 1_000_000
EASY_FORMS = {"slots": 0.9, "text": 0.1}
ALL_FORMS = {"slots": 0.28, "cells": 0.42, "both": 0.22, "text": 0.08}
EASY_SHARE, EASY_NUM_SLOTS = 0.5, 8
"""Fraction of the language model's steps with only the short forms of scenes, and the length of these forms."""

TAG_LANGUAGE = LoopSettings(num_steps=1900, learning_rate=2e-3, decay=0.6, save_every=200)
TAG_SHARE = 0.65
TAG_KIND_WEIGHTS = {
    "caption": 0.12, "existence": 0.12, "color": 0.07, "shape": 0.07, "count": 0.1, "relation": 0.16, "size": 0.04,
    "background": 0.02, "locate": 0.18, "describe": 0.12,
}  # fmt: skip
"""The language model's second part: most prompts have tags, and difficult kinds of questions are more frequent."""

POINTING_WEIGHT, ORDER_WEIGHT, TAG_WEIGHT = 2.0, 1.0, 1.0
ATTENTION_WEIGHT, LATER_ATTENTION_WEIGHT, ATTENTION_STEPS = 2.0, 20.0, 400
"""Loss weights of attention to tags, for these steps and afterwards. Starting with the higher one undoes learning."""

MAX_NUM_EASY = 3
"""Number of objects in the scenes in the first half of these steps."""


def load_scenes(folder: Path, split: str, count: int) -> tuple[np.ndarray, CellLabels]:
    """Return the images and labels of a split, drawn once and cached in the folder."""
    file = folder / f"{split}-{count}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels, labels = labelled_scenes(split, count, IMAGE_SIZE, GRID)
        np.savez(file, pixels=pixels, **vars(labels))
    with np.load(file) as data:
        return data["pixels"], CellLabels(**{name: data[name] for name in CellLabels.__annotations__})


def _train_tower(folder: Path, seed: int = 0) -> None:
    """Train the vision tower, and save it as `tower.pt`."""
    torch.manual_seed(seed)
    images, labels = load_scenes(folder, "train", NUM_TOWER_SCENES)
    unseen = load_scenes(folder, "validation", NUM_VALIDATION_SCENES)
    config = small_config().vision_config
    config._attn_implementation = "eager"  # faster than sdpa in training at this size on a CPU
    model = vision_pretraining.DenseLabelModel(config, TAPS[1])

    def loss_of(batch: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
        last, middle = ({name: x.float() for name, x in found.items()} for found in model(batch[0]))
        loss = vision_pretraining.dense_loss
        return loss(last, batch[1]) + vision_pretraining.MIDDLE_WEIGHT * loss(middle, batch[1])

    run_loop(
        model, loss_of, lambda step: vision_pretraining.batches(images, labels, TOWER_BATCH, seed, step),
        lambda name: ".encoder.layers." in name, TOWER, folder / "tower",
        lambda: {name: round(x, 4) for name, x in vision_pretraining.evaluate(model, *unseen).items()},
    )  # fmt: skip
    torch.save(model.tower.state_dict(), folder / "tower.pt")


class SymbolicLanguageModel(nn.Module):
    """The language model, with modules that encode scenes as words and auxiliary heads, both discarded afterwards.

    Args:
        tags: whether to also predict which of two objects a question names first and which words are tags, and to keep
            scene and question from attending to tags. Without this, the model confused tags with words of the question.
    """

    def __init__(self, tags: bool = False) -> None:
        super().__init__()
        config = small_config("qformer").text_config
        config._attn_implementation = "eager"
        self.language_model = LionT5ForConditionalGeneration(config)
        self.scene_words = SceneWords(language_model_tokenizer(), config.d_model, GRID)
        self.pointer = nn.Linear(config.d_model, 1)
        self.order_pointer = nn.Linear(config.d_model, 1) if tags else None
        self.tag_pointer = nn.Linear(config.d_model, 1) if tags else None
        self.attention_weight = ATTENTION_WEIGHT
        language_pretraining.prepare_small_language_model(self.language_model)
        for name, parameter in self.language_model.named_parameters():
            parameter.requires_grad_(".adapter." not in name)

    def embed(self, batch: SymbolicBatch) -> dict[str, torch.Tensor]:
        """The encoder's inputs."""
        embed_batch = language_pretraining.embed_batch
        embeds, attention_mask = embed_batch(batch, self.scene_words, self.language_model.shared)
        return {"inputs_embeds": embeds, "attention_mask": attention_mask}

    def loss(self, parts: Sequence[SymbolicBatch]) -> torch.Tensor:
        """Return the cross-entropy, averaged first per answer, so that a word counts as much as a caption.

        It includes the auxiliary loss of predicting which objects the question is about.
        """
        total = torch.zeros(())
        for part in parts:
            tags = self.tag_pointer is not None
            outputs = self.language_model(
                **self.embed(part), labels=part.labels, output_hidden_states=tags, output_attentions=tags
            )
            losses = nn.functional.cross_entropy(outputs.logits.float().transpose(1, 2), part.labels, reduction="none")
            total = total + (losses.sum(1) / (part.labels != -100).sum(1)).sum()
            states = outputs.encoder_last_hidden_state
            pointing = POINTING_WEIGHT * _read_out_loss(self.pointer, states, part.asked)
            if self.order_pointer is not None:
                pointing = pointing + ORDER_WEIGHT * _read_out_loss(self.order_pointer, states, part.first)
                pointing = pointing + TAG_WEIGHT * self.tag_loss(outputs, part)
            total = total + pointing * len(part.labels)
        return total / sum(len(part.labels) for part in parts)

    def tag_loss(self, outputs: Any, batch: SymbolicBatch) -> torch.Tensor:
        """Return the losses of telling tags from the question in the first layer, and of attention to tags."""
        num_visual = batch.asked.shape[1]
        text = outputs.encoder_hidden_states[1][:, num_visual:]
        assert self.tag_pointer is not None
        loss = _read_out_loss(self.tag_pointer, text, batch.is_tag)
        is_tag = (batch.is_tag == 1).float()
        with_tags = is_tag.any(1)
        if num_visual and with_tags.any():
            is_question = (batch.is_tag == 0)[with_tags].float()
            for layer in outputs.encoder_attentions:  # (B, H, N, N)
                given = torch.einsum("bhnt,bt->bn", layer[with_tags, :, :, num_visual:].float(), is_tag[with_tags])
                given = given / layer.shape[1]
                of_scene, of_question = given[:, :num_visual].mean(), given[:, num_visual:] * is_question
                share = of_scene + of_question.sum() / is_question.sum()
                loss = loss + self.attention_weight * share / len(outputs.encoder_attentions)
        return loss


def _read_out_loss(read_out: nn.Module, hidden_states: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of a linear head on (B, N, D) with labels 0 and 1, (B, N'), N' <= N; -1 is ignored."""
    logits = read_out(hidden_states[:, : expected.shape[1]]).squeeze(-1).float()
    known = (expected >= 0).float()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, expected.clamp(min=0), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def _evaluate_language(
    model: SymbolicLanguageModel, scenes: Sequence[SymbolicScene], form: str, tag_share: float = 0.35
) -> dict[str, Any]:
    """Return the accuracy by kind of question; boxes are correct if their IoU is at least 0.5."""
    tokenizer, generator = language_model_tokenizer(), np.random.default_rng(7)
    right: dict[str, list[bool]] = {}
    for low in range(0, len(scenes), 100):
        chosen = list(scenes[low : low + 100])
        samples = [ask(generator, item.scene) for item in chosen]
        batch = language_pretraining.make_batch(
            generator, chosen, tokenizer, form, NUM_QUERY_TOKENS, samples, tag_share
        )
        ids = model.language_model.generate(**model.embed(batch), max_new_tokens=64, num_beams=1, do_sample=False)
        for sample, text in zip(samples, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            right.setdefault(sample.kind, []).append(is_right(sample, text))
    return {kind: round(float(np.mean(values)), 3) for kind, values in sorted(right.items())}


def _language_scenes() -> tuple[list[SymbolicScene], list[SymbolicScene]]:
    """Return the training scenes and the unseen scenes of the language model."""
    build, first = SymbolicScene.build, FIRST_LANGUAGE_SCENE
    scenes = [build("train", index, 0, GRID) for index in range(first, first + NUM_LANGUAGE_SCENES)]
    return scenes, [build("validation", index, 0, GRID) for index in range(300)]


def _is_language_matrix(name: str) -> bool:
    """Whether a parameter of the language model belongs to Muon if it is a matrix."""
    return ".block." in name and "relative" not in name


def _train_language(folder: Path, seed: int = 0) -> None:
    """Train the language model, and save it as `language.pt`."""
    torch.manual_seed(seed)
    tokenizer = language_model_tokenizer()
    scenes, unseen = _language_scenes()
    few = [item for item in scenes if len(item.scene.objects) <= MAX_NUM_EASY]
    model = SymbolicLanguageModel()
    easy = int(EASY_SHARE * LANGUAGE.num_steps)

    def batches_from(step: int) -> Any:
        while True:
            forms, num_slots = (EASY_FORMS, EASY_NUM_SLOTS) if step < easy else (ALL_FORMS, NUM_QUERY_TOKENS)
            seen = few if step < easy // 2 else scenes
            yield language_pretraining.step_batch(seen, tokenizer, forms, LANGUAGE_BATCH, num_slots, seed, step)
            step += 1

    run_loop(
        model, model.loss, batches_from, _is_language_matrix, LANGUAGE, folder / "language",
        lambda: {form: _evaluate_language(model, unseen, form) for form in ("slots", "cells")},
    )  # fmt: skip
    torch.save(model.language_model.state_dict(), folder / "language.pt")


def _train_tag_language(folder: Path, seed: int = 0) -> None:
    """Continue to train the language model, mostly with tags in prompts, and save it as `language.pt`."""
    torch.manual_seed(seed)
    tokenizer = language_model_tokenizer()
    scenes, unseen = _language_scenes()
    model = SymbolicLanguageModel(tags=True)
    saved = torch.load(folder / "language" / "checkpoint.pt", weights_only=True)["model"]
    missing, unexpected = model.load_state_dict(saved, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(("order_pointer.", "tag_pointer.")) for name in missing), missing

    def batches_from(step: int) -> Any:
        while True:
            model.attention_weight = ATTENTION_WEIGHT if step < ATTENTION_STEPS else LATER_ATTENTION_WEIGHT
            yield language_pretraining.step_batch(
                scenes, tokenizer, ALL_FORMS, LANGUAGE_BATCH, NUM_QUERY_TOKENS, seed + 1, step, TAG_KIND_WEIGHTS,
                TAG_SHARE,
            )  # fmt: skip
            step += 1

    run_loop(
        model, model.loss, batches_from, _is_language_matrix, TAG_LANGUAGE, folder / "tag_language",
        lambda: {
            f"{form}, {share:.0%} with tags": _evaluate_language(model, unseen, form, share)
            for form, share in (("cells", 0.0), ("cells", 1.0))
        },
    )  # fmt: skip
    torch.save(model.language_model.state_dict(), folder / "language.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("tower", "language", "tag_language", "tagger"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.part == "tower":
        _train_tower(options.folder)
    elif options.part == "language":
        _train_language(options.folder)
    elif options.part == "tag_language":
        _train_tag_language(options.folder)
    else:
        seen, unseen = (
            load_scenes(options.folder, split, count)
            for split, count in (("train", NUM_TOWER_SCENES), ("validation", NUM_VALIDATION_SCENES))
        )
        train_tagger(options.folder, seen, unseen)
