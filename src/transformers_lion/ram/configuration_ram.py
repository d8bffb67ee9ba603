"""Configuration of RAM, the tagger: sizes of the head, the tag names and each tag's threshold.

Source: Recognize Anything (arXiv:2306.03514) and the sizes of its reference code. The vision tower is transformers' own
Swin, so its part of the configuration is transformers' own `SwinConfig`.
"""

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, SwinConfig

from ..configuration_lion import MAX_NUM_LAYERS, check_divides, check_sizes

NUM_TAGS = 4585
"""Tags of the released model."""

SWIN_LARGE_384 = {
    "image_size": 384,
    "patch_size": 4,
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
}
"""The vision tower of the released model, where it differs from `SwinConfig`'s defaults."""


@strict
class RamConfig(PreTrainedConfig):
    r"""
    Configuration of [`RamForImageTagging`]. The defaults are the released model's, with nameless tags.

    Args:
        vision_config (`dict` or `SwinConfig`, *optional*):
            The vision tower; Swin-L at 384 pixels by default. A dict is completed by `SwinConfig`'s own defaults.
        id2label (`dict[int, str]`, *optional*):
            The tag names, in the order of the logits; 4585 nameless ones by default, or `num_labels=` of them.
        thresholds (`list[float]`, *optional*):
            For each tag the score above which it counts as present.
        default_threshold (`float`, *optional*, defaults to 0.65):
            The threshold of tags that were given none.
        label_embed_dim (`int`, *optional*, defaults to 512):
            Width of the label space, where each tag is a text embedding.
        encoder_hidden_size (`int`, *optional*, defaults to 512):
            Width of the projected image tokens, which the head reads.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, hidden_dropout_prob,
        attention_probs_dropout_prob, layer_norm_eps:
            The head: layers of cross-attention and feed-forward.
        loss_gamma_positive, loss_gamma_negative (`float`, *optional*, default to 0.0 and 7.0):
            Focusing exponents of the asymmetric loss for present and for absent tags.
        loss_clip (`float`, *optional*, defaults to 0.05):
            Probability by which the asymmetric loss shifts absent tags: those that score less do not count.

    Raises:
        ValueError: if the parts do not fit together; the message holds both numbers.
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

    vision_config: Any = None  # a SwinConfig, once the configuration is built
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
                f"vision_config: the last stage has a grid of {grid[0]}x{grid[1]}, but its windows are "
                f"{self.vision_config.window_size} wide; a smaller window_size or a larger image_size fits."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pixels that the vision tower reads."""
        return _as_pair(self.vision_config.image_size)

    @property
    def feature_grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens behind the last stage."""
        patch_size = _as_pair(self.vision_config.patch_size)
        rows, columns = (math.ceil(size / patch) for size, patch in zip(self.image_size, patch_size, strict=True))
        for _ in range(len(self.vision_config.depths) - 1):  # between stages the grid is halved, and padded if odd
            rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
        return rows, columns

    @property
    def projects_labels(self) -> bool:
        """Whether a linear layer stands between the label space and the head: not if their widths are the same."""
        return self.hidden_size != self.label_embed_dim


def _as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """`(size, size)`, or `size` itself if it is a pair."""
    if isinstance(size, int):
        return size, size
    first, second = size
    return first, second


def check_tags(labels: Sequence[str | None], thresholds: Sequence[float]) -> None:
    """Raise `ValueError` unless there is one name and one threshold for each tag, and no name twice."""
    if len(labels) != len(thresholds):
        raise ValueError(f"There are {len(labels)} tags but {len(thresholds)} thresholds; each tag needs one.")
    if None in labels:
        raise ValueError(
            f"id2label has {len(labels)} tags but no number {labels.index(None)}; count from 0 without gaps."
        )
    first: dict[str | None, int] = {}
    for index, (label, threshold) in enumerate(zip(labels, thresholds, strict=True)):
        if first.setdefault(label, index) != index:
            raise ValueError(f"The tag {label!r} is there twice, as number {first[label]} and number {index}.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"The threshold of {label!r} is {threshold}, but must be between 0 and 1.")


__all__ = ["RamConfig"]
