"""Configuration of the tagger RAM: the sizes of the head, the names of the tags and the threshold of each tag.

Source: Recognize Anything (arXiv:2306.03514) and the sizes of its reference code. The vision tower is transformers'
Swin, configured by `SwinConfig`.
"""

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, SwinConfig

from ..configuration_lion import MAX_NUM_LAYERS, check_divides, check_sizes

NUM_TAGS = 4585
"""Number of tags of the released model."""

SWIN_LARGE_384 = {
    "image_size": 384,
    "patch_size": 4,
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
}
"""Fields of the released model's vision tower that differ from the defaults of `SwinConfig`."""


@strict
class RamConfig(PreTrainedConfig):
    r"""
    Configuration of [`RamForImageTagging`]. The defaults are those of the released model, with generic tag names.

    Args:
        vision_config (`dict` or `SwinConfig`, *optional*):
            Configuration of the vision tower. Defaults to Swin-L at 384 pixels. Fields missing from a dict have the
            defaults of `SwinConfig`.
        id2label (`dict[int, str]`, *optional*):
            Names of the tags, in the order of the logits. By default there are `num_labels` or 4585 generic names.
        thresholds (`list[float]`, *optional*):
            Threshold of each tag: its score must be higher for the tag to be reported.
        default_threshold (`float`, *optional*, defaults to 0.65):
            Threshold used if `thresholds` is not set.
        label_embed_dim (`int`, *optional*, defaults to 512):
            Width of the label embeddings, which are text embeddings of the tags.
        encoder_hidden_size (`int`, *optional*, defaults to 512):
            Width of the projected image tokens that the head reads.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, hidden_dropout_prob,
        attention_probs_dropout_prob, layer_norm_eps:
            Settings of the head, which has cross-attention and feed-forward layers.
        loss_gamma_positive, loss_gamma_negative (`float`, *optional*, default to 0.0 and 7.0):
            Focusing exponents of the asymmetric loss for present and absent tags.
        loss_clip (`float`, *optional*, defaults to 0.05):
            Probability shift of the asymmetric loss: absent tags with lower scores do not contribute.

    Raises:
        ValueError: If the parts are incompatible. The message has both values.
    """

    model_type = "ram"
    sub_configs = {"vision_config": SwinConfig}
    keys_to_ignore_at_inference = [
        "image_embeds",
        "last_hidden_state",
        "hidden_states",
        "cross_attentions",
        "vision_hidden_states",
        "vision_attentions",
    ]

    vision_config: Any = None  # a SwinConfig after initialization
    thresholds: list[float] | tuple[float, ...] | None = None
    default_threshold: float = 0.65
    label_embed_dim: int = 512
    encoder_hidden_size: int = 512
    hidden_size: int = 768
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    loss_gamma_positive: float | int = 0.0
    loss_gamma_negative: float | int = 7.0
    loss_clip: float | int = 0.05
    problem_type: str | None = "multi_label_classification"

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = SwinConfig(**(SWIN_LARGE_384 if self.vision_config is None else self.vision_config))
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = NUM_TAGS if self.thresholds is None else len(self.thresholds)
        super().__post_init__(**kwargs)
        self.label2id = {label: index for index, label in self.id2label.items()}
        if self.thresholds is None:
            self.thresholds = [self.default_threshold] * self.num_labels
        self.thresholds = [float(threshold) for threshold in self.thresholds]
        check_tags([self.id2label.get(index) for index in range(self.num_labels)], self.thresholds)
        self._check_sizes()

    def _check_sizes(self) -> None:
        check_sizes("RamConfig", self, ("label_embed_dim", "encoder_hidden_size", "hidden_size", "intermediate_size"))
        check_sizes("RamConfig", self, ("num_hidden_layers",), MAX_NUM_LAYERS)
        names = ("image_size", "patch_size", "embed_dim", "num_heads", "window_size", "num_channels")
        check_sizes("vision_config", self.vision_config, names)
        check_sizes("vision_config", self.vision_config, ("depths",), MAX_NUM_LAYERS)
        check_divides(self.num_attention_heads, self.hidden_size, "RamConfig")
        grid = self.feature_grid
        if min(grid) < self.vision_config.window_size:
            raise ValueError(
                f"vision_config: the grid of the last stage ({grid[0]}x{grid[1]}) is smaller than its window_size "
                f"({self.vision_config.window_size}); reduce window_size or increase image_size."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the vision tower reads."""
        return _as_pair(self.vision_config.image_size)

    @property
    def feature_grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens after the last stage."""
        patch_size = _as_pair(self.vision_config.patch_size)
        rows, columns = (math.ceil(size / patch) for size, patch in zip(self.image_size, patch_size, strict=True))
        for _ in range(len(self.vision_config.depths) - 1):  # each stage halves the grid, after padding odd sizes
            rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
        return rows, columns

    @property
    def projects_labels(self) -> bool:
        """Whether the head has a projection for label embeddings, which it needs if the widths differ."""
        return self.hidden_size != self.label_embed_dim


def _as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    first, second = size
    return first, second


def check_tags(labels: Sequence[str | None], thresholds: Sequence[float]) -> None:
    """Raise `ValueError` unless each tag has a unique name and a threshold between 0 and 1."""
    if len(labels) != len(thresholds):
        raise ValueError(f"Got {len(labels)} tags but {len(thresholds)} thresholds; each tag needs one.")
    if None in labels:
        raise ValueError(
            f"id2label has {len(labels)} tags but no id {labels.index(None)}; number them from 0 without gaps."
        )
    first: dict[str | None, int] = {}
    for index, (label, threshold) in enumerate(zip(labels, thresholds, strict=True)):
        if first.setdefault(label, index) != index:
            raise ValueError(f"Duplicate tag {label!r} with ids {first[label]} and {index}.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"The threshold of {label!r} is {threshold}, but must be between 0 and 1.")


__all__ = ["RamConfig"]
