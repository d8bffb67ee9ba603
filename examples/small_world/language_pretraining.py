"""Stage 0, the language model: learns the small world's language from text and from scenes encoded as words.

No pixels are used here. A scene precedes the question as word vectors, in the two forms of LION's image features: a
small set (as from the Q-Former), and one vector per cell of a grid (as from the aggregator). The module that encodes
words as vectors (`SceneWords`) is discarded; the visual branches learn to produce such vectors. Some samples have a
text description instead of a scene.

Shape letters: B samples, Q query slots, G cells on a side, D language-model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from transformers_lion.grounding import format_boxes
from transformers_lion.modeling_lion_t5 import LionT5ForConditionalGeneration
from transformers_lion.processing_lion import TAG_PROMPT

from .cells import cell_objects
from .language import KIND_WEIGHTS, Sample, ask, full_description, roughen
from .scene_records import noisy_tags
from .scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, sample_scene

BACKGROUND, OBJECT = 1, 2
"""Kinds of word vectors; 0 is empty."""

FIELDS = 5
"""Kind, color, shape, size and background of each vector; classes start at 1, and 0 means unspecified."""


FREQUENCIES = (0.5, 1.0, 2.0, 4.0)
"""Frequencies that encode a coordinate, in periods per image; few and low, because a visual branch must learn them."""


class SceneWords(nn.Module):
    """Sums, for each vector, the language model's embeddings of its words, and embeddings of its box and position.

    Args:
        tokenizer: the language model's tokenizer.
        width: width of the language model.
        grid: number of cells per side.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int, grid: int):
        super().__init__()
        self.kind = nn.Embedding(3, width)
        self.place = nn.Embedding(1 + grid * grid, width)
        self.box = nn.Linear(4 * (1 + 2 * len(FREQUENCIES)), width)
        for index, words in enumerate((COLORS, SHAPES, SIZES, BACKGROUNDS)):
            ids = tokenizer.convert_tokens_to_ids([f"▁{word}" for word in words])
            assert tokenizer.unk_token_id not in ids
            self.register_buffer(f"word_ids_{index}", torch.tensor([0, *ids]), persistent=False)
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES) * 2 * torch.pi, persistent=False)
        for embedding in (self.kind, self.place):
            nn.init.normal_(embedding.weight, std=0.6)
        nn.init.normal_(self.box.weight, std=0.25)  # gives a box the magnitude of one or two words

    def forward(self, fields: torch.Tensor, boxes: torch.Tensor, embed: nn.Module, on_grid: bool) -> torch.Tensor:
        """(B, N, FIELDS) and (B, N, 4) -> (B, N, D)."""
        embeds = self.kind(fields[..., 0])
        for index in range(FIELDS - 1):
            column = fields[..., index + 1]
            embeds = embeds + embed(self.get_buffer(f"word_ids_{index}")[column]) * (column > 0).unsqueeze(-1)
        angles = boxes[..., None] * self.get_buffer("frequencies")  # (B, N, 4, frequencies)
        waves = torch.cat([boxes[..., None] * 4, angles.sin(), angles.cos()], dim=-1).flatten(-2)
        embeds = embeds + self.box(waves) * (fields[..., 0] == OBJECT).unsqueeze(-1)
        return embeds + self.place.weight if on_grid else embeds


@torch.no_grad()
def prepare_small_language_model(model: LionT5ForConditionalGeneration) -> None:
    """Initialize for a short training: self-attention queries that match similar tokens."""
    for layer in model.encoder.block:
        attention: Any = layer.get_submodule("layer.0.SelfAttention")
        scale = float(attention.q.weight.std() / attention.k.weight.std())
        noise = torch.randn_like(attention.k.weight) * attention.k.weight.std()
        attention.q.weight.copy_(scale * (0.8 * attention.k.weight + 0.6 * noise))
    model.lm_head.weight.mul_(model.config.d_model**-0.5)


@dataclass
class SymbolicBatch:
    """Scenes as word vectors, with questions about them.

    Attributes:
        slots, slot_boxes: (B, Q, FIELDS) and (B, Q, 4), or `None`.
        cells, cell_boxes: (B, 1 + G * G, FIELDS) and (B, 1 + G * G, 4), or `None`.
        input_ids, attention_mask: (B, T).
        labels: (B, L), padded with -100.
        asked: (B, Q + 1 + G * G), or the existing part of it: 1 if a vector belongs to an object that the question is
            about, 0 if not, -1 if the question is not about specific objects.
        first: same shape, for questions about the relation of two objects: 1 for vectors of the first object, 0 for
            those of the second, -1 elsewhere.
        is_tag: (B, T), 1 for tokens of the tag sentence, 0 for those of the question, -1 elsewhere.
    """

    slots: torch.Tensor | None
    slot_boxes: torch.Tensor | None
    cells: torch.Tensor | None
    cell_boxes: torch.Tensor | None
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    asked: torch.Tensor
    first: torch.Tensor
    is_tag: torch.Tensor


def _object_table(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the fields and boxes of the scene's objects, and those of the background in the last row."""
    rows = [
        (OBJECT, list(COLORS).index(x.color) + 1, SHAPES.index(x.shape) + 1, list(SIZES).index(x.size) + 1, 0)
        for x in scene.objects
    ]
    fields = np.array([*rows, (BACKGROUND, 0, 0, 0, BACKGROUNDS.index(scene.background) + 1)])
    return fields, np.array([*(x.box for x in scene.objects), (0.0, 0.0, 0.0, 0.0)])


def slot_rows(generator: np.random.Generator, num_objects: int, num_slots: int) -> np.ndarray:
    """Assign table rows to slots: each row at least once, in random order; other slots repeat rows or are empty."""
    everything = np.arange(num_objects + 1)
    more = generator.integers(-1, num_objects + 1, size=num_slots - len(everything))
    return generator.permutation(np.concatenate([everything, more]))


def _blur(
    generator: np.random.Generator, fields: np.ndarray, boxes: np.ndarray, box_noise: float = 0.012
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate the errors of a vision tower: missing words, a few wrong ones, and slightly shifted boxes."""
    fields = fields.copy()
    is_object = fields[..., 0] == OBJECT
    for column, count in ((1, len(COLORS)), (2, len(SHAPES)), (3, len(SIZES))):
        wrong = generator.random(is_object.shape) < 0.03
        fields[..., column] = np.where(
            wrong & is_object, generator.integers(1, count + 1, is_object.shape), fields[..., column]
        )
        fields[..., column] *= generator.random(is_object.shape) > 0.1
    return fields, boxes + generator.normal(0, box_noise, boxes.shape)


@dataclass(frozen=True)
class SymbolicScene:
    """A scene with its cell labels."""

    scene: Scene
    cells: np.ndarray

    @classmethod
    def build(cls, split: str, index: int, seed: int, grid: int) -> "SymbolicScene":
        """Return a scene of a split."""
        scene = sample_scene(split, index, seed)
        return cls(scene, cell_objects(scene, grid, pixels=5).astype(np.int8))


def told(generator: np.random.Generator, scene: Scene) -> str:
    """Describe the scene as text, with objects in random order and their boxes."""
    order = generator.permutation(len(scene.objects))
    things = [f"{full_description(scene.objects[i])} {format_boxes([scene.objects[i].box])}" for i in order]
    return f"{', '.join(things)} on a {scene.background} background. "


def make_batch(
    generator: np.random.Generator,
    scenes: list[SymbolicScene],
    tokenizer: PreTrainedTokenizerBase,
    form: str,
    num_slots: int,
    samples: list[Sample] | None = None,
    tag_share: float = 0.35,
) -> SymbolicBatch:
    """Build a batch of questions about scenes, with scenes in one of the forms `slots`, `cells`, `both` and `text`.

    Args:
        samples: the questions; drawn at random by default.
        tag_share: fraction of prompts with a tag sentence.
    """
    samples = samples or [ask(generator, item.scene) for item in scenes]
    slots, slot_boxes, cells, cell_boxes, asked, first = [], [], [], [], [], []
    for item, sample in zip(scenes, samples, strict=True):
        shown: list[np.ndarray] = []
        fields, boxes = _object_table(item.scene)
        fields = np.concatenate([fields, np.zeros((1, FIELDS), dtype=fields.dtype)])  # the last row is empty
        boxes = np.concatenate([boxes, np.zeros((1, 4))])
        if form in ("slots", "both"):
            rows = slot_rows(generator, len(item.scene.objects), num_slots)
            kept = _blur(generator, fields[rows], boxes[rows], 0.006)
            slots.append(kept[0])
            slot_boxes.append(kept[1])
            shown.append(rows)
        if form in ("cells", "both"):
            cls = len(item.scene.objects)  # the background's row
            rows = np.concatenate([[cls], item.cells.reshape(-1)])
            kept = _blur(generator, fields[rows], boxes[rows])
            cells.append(kept[0])
            cell_boxes.append(kept[1])
            shown.append(rows)
        held = np.concatenate([*shown, np.empty(0, dtype=int)])
        about = np.isin(held, sample.about or ()).astype(np.float32)
        asked.append(about - (2 * about + 1 if sample.about is None else 0))
        pair = sample.about if sample.kind == "relation" and sample.about else (-2, -2)
        first.append(np.where(held == pair[0], 1.0, np.where(held == pair[1], 0.0, -1.0)).astype(np.float32))
    questions, ends = [], []
    for item, sample in zip(scenes, samples, strict=True):
        tags = ", ".join(noisy_tags(generator, item.scene))
        hint = TAG_PROMPT.format(tags=tags) if generator.random() < tag_share else ""
        text = told(generator, item.scene) if form == "text" else ""
        questions.append(text + hint + roughen(generator, sample.question))
        ends.append([len(tokenizer(part.rstrip())["input_ids"]) - 1 for part in (text, text + hint)])
    prompt = tokenizer(questions, padding=True, return_tensors="pt")
    labels = tokenizer([sample.answer for sample in samples], padding=True, return_tensors="pt")

    def stacked(rows: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor | None:
        return torch.from_numpy(np.stack(rows)).to(dtype) if rows else None

    return SymbolicBatch(
        stacked(slots, torch.long), stacked(slot_boxes, torch.float32),
        stacked(cells, torch.long), stacked(cell_boxes, torch.float32),
        prompt["input_ids"], prompt["attention_mask"],
        labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100), torch.from_numpy(np.stack(asked)),
        torch.from_numpy(np.stack(first)), _tag_mask(prompt["attention_mask"], torch.tensor(ends)),
    )  # fmt: skip


def _tag_mask(attention_mask: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Compute `SymbolicBatch.is_tag` from (B, 2), the token positions of the start and end of the tags."""
    place = torch.arange(attention_mask.shape[1])
    outside = (place < ends[:, :1]) | (attention_mask == 0)
    return (place < ends[:, 1:]).float().masked_fill(outside, -1.0)


def embed_batch(batch: SymbolicBatch, words: SceneWords, embed: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoder's inputs and mask: slots, cells and text, in LION's order."""
    parts = []
    if batch.slots is not None:
        parts.append(words(batch.slots, batch.slot_boxes, embed, on_grid=False))
    if batch.cells is not None:
        parts.append(words(batch.cells, batch.cell_boxes, embed, on_grid=True))
    visual = sum(part.shape[1] for part in parts)
    ones = batch.attention_mask.new_ones(len(batch.attention_mask), visual)
    return torch.cat([*parts, embed(batch.input_ids)], dim=1), torch.cat([ones, batch.attention_mask], dim=1)


def step_batch(
    scenes: list[SymbolicScene],
    tokenizer: PreTrainedTokenizerBase,
    forms: dict[str, float],
    batch_size: int,
    num_slots: int,
    seed: int,
    step: int,
    kind_weights: Mapping[str, float] = KIND_WEIGHTS,
    tag_share: float = 0.35,
) -> list[SymbolicBatch]:
    """Return the batch of a step, in one form drawn with the weights in `forms`.

    It is split into captions and other answers, to reduce padding.
    """
    generator = np.random.default_rng([seed, step])
    form = str(generator.choice(list(forms), p=np.array(list(forms.values())) / sum(forms.values())))
    chosen = [scenes[index] for index in generator.integers(len(scenes), size=batch_size)]
    samples = [ask(generator, item.scene, kind_weights=kind_weights) for item in chosen]
    parts = [[row for row, x in enumerate(samples) if (x.kind == "caption") == long] for long in (True, False)]
    return [
        make_batch(
            generator, [chosen[i] for i in rows], tokenizer, form, num_slots, [samples[i] for i in rows], tag_share
        )
        for rows in parts
        if rows
    ]
