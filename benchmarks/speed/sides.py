"""One interface for LION, for LION as the reference composes it, and for InstructBLIP."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from transformers import InstructBlipForConditionalGeneration

from transformers_lion import LionForConditionalGeneration
from transformers_lion.training.stages import apply_stage, get_stage, part_of

from .composed import ComposedLion, compose_lion
from .models import Size, build_instructblip, build_lion, lion_config

STAGE = "mixture"
PENALTY = 1.5
"""Repetition penalty of the reference."""
Tensors = dict[str, torch.Tensor]


class Side(Protocol):
    """Interface of a model to measure.

    Attributes:
        name: Column in the tables.
        model: The module, for training.
    """

    name: str
    model: nn.Module

    def encode(self, inputs: Tensors) -> torch.Tensor:
        """Compute the visual features that precede the text, (B, N, D)."""

    def language_inputs(self, inputs: Tensors) -> Tensors:
        """Compute the inputs of the language model, to measure it alone."""

    def answer(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        """Generate answers of exactly `new_tokens` tokens."""

    def ask(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        """Generate answers to several questions about the first image."""

    def loss(self, inputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a batch."""

    def thaw(self) -> list[nn.Parameter]:
        """Set the model to training mode, and return the parameters to train."""


def exactly(num_beams: int, new_tokens: int) -> dict[str, Any]:
    """Return options for `generate` with a fixed length."""
    return {
        "num_beams": num_beams,
        "min_new_tokens": new_tokens,
        "max_new_tokens": new_tokens,
        "repetition_penalty": PENALTY,
    }


def repeat_image(inputs: Tensors) -> Tensors:
    """Repeat the first image for each question."""
    count = len(inputs["input_ids"])
    return {**inputs, "pixel_values": inputs["pixel_values"][:1].expand(count, -1, -1, -1).contiguous()}


def first_token(side: Side, language_inputs: Tensors) -> torch.Tensor:
    """Run prefill: the encoder of the language model, and the first step of its decoder."""
    start = torch.zeros(len(language_inputs["inputs_embeds"]), 1, dtype=torch.long)
    return side.model.language_model(**language_inputs, decoder_input_ids=start).logits


class LionSide:
    """The package, through its public methods."""

    name = "lion"

    def __init__(self, model: LionForConditionalGeneration):
        self.model = model

    def encode(self, inputs: Tensors) -> torch.Tensor:
        features = self.model.get_image_features(inputs["pixel_values"])
        queries, _ = self.model.get_query_features(
            features, inputs["qformer_input_ids"], inputs["qformer_attention_mask"]
        )
        return torch.cat([queries, features.pooler_output], dim=1)

    def language_inputs(self, inputs: Tensors) -> Tensors:
        visual = self.encode(inputs)
        embeds = torch.cat([visual, self.model.embed_text(inputs["input_ids"])], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return {"inputs_embeds": embeds, "attention_mask": mask, "task_type_ids": inputs["task_type_ids"]}

    def answer(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        return self.model.generate(**inputs, **exactly(num_beams, new_tokens))

    def ask(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        return self.answer({**inputs, "pixel_values": inputs["pixel_values"][:1]}, num_beams, new_tokens)

    def loss(self, inputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
        return self.model(**inputs, labels=labels).loss

    def thaw(self) -> list[nn.Parameter]:
        apply_stage(self.model, STAGE)
        self.model.train()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class ComposedSide:
    """The composition that follows the reference."""

    name = "composed"

    def __init__(self, model: ComposedLion):
        self.model = model

    def encode(self, inputs: Tensors) -> torch.Tensor:
        return self.model.encode(inputs["pixel_values"], inputs["qformer_input_ids"], inputs["qformer_attention_mask"])

    def language_inputs(self, inputs: Tensors) -> Tensors:
        return self.model.language_inputs(inputs)

    def answer(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        return self.model.generate(inputs, **exactly(num_beams, new_tokens))

    def ask(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        return self.answer(repeat_image(inputs), num_beams, new_tokens)

    def loss(self, inputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
        return self.model.loss(inputs, labels)

    def thaw(self) -> list[nn.Parameter]:
        parts = get_stage(STAGE).parts
        for name, parameter in self.model.named_parameters():
            adapter = ".layer." in name and ".adapter." in name
            parameter.requires_grad_(adapter or part_of(name) in parts)
        self.model.train()
        self.model.vision_model.eval()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class InstructBlipSide:
    """transformers' InstructBLIP. Image tokens precede the prompt."""

    name = "instructblip"

    def __init__(self, model: InstructBlipForConditionalGeneration):
        self.model = model

    def prepare(self, inputs: Tensors) -> Tensors:
        """Convert inputs to arguments for the same question."""
        shape = (len(inputs["input_ids"]), self.model.config.num_query_tokens)
        images = torch.full(shape, self.model.config.image_token_index)
        input_ids = torch.cat([images, inputs["input_ids"]], dim=1)
        prepared = {**inputs, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        del prepared["task_type_ids"]
        return prepared

    def encode(self, inputs: Tensors) -> torch.Tensor:
        names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
        return self.model.get_image_features(**{name: inputs[name] for name in names}, return_dict=True).pooler_output

    def language_inputs(self, inputs: Tensors) -> Tensors:
        text = self.model.get_input_embeddings()(inputs["input_ids"])
        embeds = torch.cat([self.encode(inputs), text], dim=1)
        return {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long)}

    def answer(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        return self.model.generate(**self.prepare(inputs), **exactly(num_beams, new_tokens))

    def ask(self, inputs: Tensors, num_beams: int, new_tokens: int) -> torch.Tensor:
        return self.answer(repeat_image(inputs), num_beams, new_tokens)

    def loss(self, inputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
        return self.model(**self.prepare(inputs), labels=labels).loss

    def thaw(self) -> list[nn.Parameter]:
        """Train the Q-Former, its queries and its projection, like InstructBLIP."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(("query_tokens", "qformer.", "language_projection.")))
        self.model.train()
        self.model.vision_model.eval()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def build_sides(size: Size, names: Iterable[str] = ("lion", "instructblip", "composed")) -> list[Any]:
    """Build sides of the same size. The two LIONs have the same weights.

    Args:
        names: Sides to build. A single "composed" gets its own random weights, so that no other LION is in memory.
    """
    wanted = tuple(names)
    if wanted == ("composed",):
        torch.manual_seed(0)
        return [ComposedSide(ComposedLion(lion_config(size)).eval())]
    lion = build_lion(size) if wanted != ("instructblip",) else None
    builders = {
        "lion": lambda: LionSide(lion),
        "instructblip": lambda: InstructBlipSide(build_instructblip(size)),
        "composed": lambda: ComposedSide(compose_lion(lion)),
    }
    return [builders[name]() for name in wanted]
