"""Configuration of LION. It has a field for every property of the architecture, with the values of the XL model as
defaults.

Source: LION (arXiv:2311.11860), sections 3.2 to 3.4, and the sizes of its reference code. `LionConfig` has four parts:
the vision tower, the Q-Former, the vision aggregator, and the language model with its mixture of adapters.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import InstructBlipQFormerConfig, InstructBlipVisionConfig, PreTrainedConfig, T5Config

TASK_TYPES = ("region_level", "image_level")
"""Names of the tasks in the order of the router's rows. `task_type_ids` are indices into this tuple."""

VISUAL_BRANCHES = ("both", "qformer", "aggregator")
"""Visual features that may precede the text."""

MAX_NUM_ADAPTERS = 2
"""The mixture in the paper has one adapter for each task type."""


MAX_SIZE = 16_777_216
"""Upper bound for any width, length or vocabulary."""

MAX_NUM_LAYERS = 256
"""Upper bound for the depth of any part. Without it, building a model from a damaged config could take hours before
loading fails.
"""


def check_sizes(part: str, config: Any, names: Sequence[str], largest: int = MAX_SIZE) -> None:
    """Raise `ValueError` if a field is not a valid size. `None` is skipped, and each entry of a pair is checked."""
    for name in names:
        value = getattr(config, name)
        for size in value if isinstance(value, list | tuple) else [value]:
            if size is not None and not 1 <= size <= largest:
                raise ValueError(f"{part}: {name} is {value}, but must be from 1 to {largest}.")


def check_divides(heads: int, width: int, part: str) -> None:
    """Raise `ValueError` if `width` is not a multiple of `heads`."""
    if heads < 1 or width % heads:
        raise ValueError(f"{part}: num_attention_heads ({heads}) does not divide hidden_size ({width}).")


@strict
class LionVisionConfig(InstructBlipVisionConfig):
    r"""
    Configuration of the vision tower: InstructBLIP's EVA-ViT-g/14.

    Args:
        post_layernorm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norm after the last block, which only the Q-Former reads. The layer norms inside the
            blocks use `layer_norm_eps`.
    """

    model_type = "lion_vision_model"

    post_layernorm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_sizes("vision_config", self, ("hidden_size", "intermediate_size", "image_size", "patch_size"))
        check_sizes("vision_config", self, ("num_hidden_layers",), MAX_NUM_LAYERS)
        check_divides(self.num_attention_heads, self.hidden_size, "vision_config")
        smallest = self.image_size if isinstance(self.image_size, int) else min(self.image_size)
        if self.patch_size > smallest:
            raise ValueError(
                f"vision_config: image_size is {self.image_size}, but must be at least patch_size ({self.patch_size})."
            )


@strict
class LionQFormerConfig(InstructBlipQFormerConfig):
    r"""
    Configuration of InstructBLIP's text-conditioned Q-Former. Its vocabulary is that of bert-base-uncased plus the
    token `[DEC]`.

    `LionConfig` always sets `encoder_hidden_size` to the `hidden_size` of the vision tower.
    """

    model_type = "lion_qformer"

    vocab_size: int = 30523

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        names = ("vocab_size", "hidden_size", "intermediate_size", "encoder_hidden_size", "max_position_embeddings")
        check_sizes("qformer_config", self, names)
        check_sizes("qformer_config", self, ("num_hidden_layers",), MAX_NUM_LAYERS)
        check_divides(self.num_attention_heads, self.hidden_size, "qformer_config")
        if self.cross_attention_frequency < 1:
            raise ValueError(
                f"qformer_config: cross_attention_frequency is {self.cross_attention_frequency}, but must be 1 or more."
            )


@strict
class LionAggregatorConfig(PreTrainedConfig):
    r"""
    Configuration of the vision aggregator: post-norm BERT layers over three depths of the vision tower, followed by a
    projection.

    Args:
        vision_feature_layers (`list[int]`, *optional*, defaults to `[38, 28, 18]`):
            Zero-based indices of the vision tower blocks whose outputs are read, before any final layer norm. The first
            output is the input of the aggregator. Each of its `len(vision_feature_layers) - 1` layers
            cross-attends to one of the others.
        hidden_size (`int`, *optional*):
            Width. `LionConfig` always sets it to the `hidden_size` of the vision tower.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward layers. The reference uses BERT's default here, not four times `hidden_size`.
        projection_intermediate_size (`int`, *optional*):
            Width between the two linear layers of the projection. Defaults to four times `hidden_size`.
        projection_layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norm before the projection.
    """

    model_type = "lion_aggregator"
    base_config_key = "aggregator_config"

    vision_feature_layers: list[int] | tuple[int, ...] = (38, 28, 18)
    hidden_size: int | None = None
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    projection_intermediate_size: int | None = None
    projection_layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_sizes("aggregator_config", self, ("hidden_size", "intermediate_size", "projection_intermediate_size"))
        self.vision_feature_layers = list(self.vision_feature_layers)
        if len(self.vision_feature_layers) < 2:
            raise ValueError(
                "aggregator_config: vision_feature_layers must have at least 2 entries, the block to start from and "
                f"those to cross-attend to, but has {len(self.vision_feature_layers)}."
            )

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers, one for each depth that is cross-attended to."""
        return len(self.vision_feature_layers) - 1

    @property
    def encoder_hidden_size(self) -> int | None:
        """Width of the states that cross-attention reads: that of the vision tower, like its own."""
        return self.hidden_size

    def attach_to(self, vision_config: LionVisionConfig) -> None:
        """Set the width to that of `vision_config` and check the other fields against it.

        Raises:
            ValueError: If `hidden_size` was set to another width, the heads do not divide the width, or a block in
                `vision_feature_layers` does not exist.
        """
        width = vision_config.hidden_size
        if self.hidden_size not in (None, width):
            raise ValueError(
                f"aggregator_config: hidden_size ({self.hidden_size}) must match the vision tower's ({width})."
            )
        self.hidden_size = width
        self.projection_intermediate_size = self.projection_intermediate_size or 4 * width
        check_divides(self.num_attention_heads, width, "aggregator_config")
        for block in self.vision_feature_layers:
            if not 0 <= block < vision_config.num_hidden_layers:
                raise ValueError(
                    f"aggregator_config: vision_feature_layers has block {block}, but the vision tower has blocks 0 "
                    f"to {vision_config.num_hidden_layers - 1}."
                )


@strict
class LionT5Config(T5Config):
    r"""
    Configuration of FlanT5 with a mixture of adapters parallel to each feed-forward layer.

    As in the reference code, it differs from `T5Config` in two ways: the activation is the exact GELU (FlanT5's config
    has `gelu_new`), and `lm_head` is not tied to the embeddings.

    Args:
        num_adapters (`int`, *optional*, defaults to 2):
            Number of adapters at each feed-forward layer. With 2, a router mixes them per task. With 1, there is no
            router.
        adapter_hidden_size (`int`, *optional*, defaults to 64):
            Bottleneck width of the adapters.
        num_task_types (`int`, *optional*, defaults to 2):
            Number of rows of the router, one for each entry of `TASK_TYPES`.
    """

    model_type = "lion_t5"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    d_model: int = 2048
    d_ff: int = 5120
    num_layers: int = 24
    num_heads: int = 32
    feed_forward_proj: str = "gated-gelu"
    dense_act_fn: str = "gelu"
    scale_decoder_outputs: bool = False
    decoder_start_token_id: int | None = 0
    num_adapters: int = 2
    adapter_hidden_size: int = 64
    num_task_types: int = len(TASK_TYPES)

    def __post_init__(self, **kwargs: Any) -> None:
        stated = {"dense_act_fn": self.dense_act_fn, "scale_decoder_outputs": self.scale_decoder_outputs}
        super().__post_init__(**kwargs)
        for name, value in stated.items():  # T5Config derives both from other fields and overwrites LION's values
            setattr(self, name, value)
        if not 1 <= self.num_adapters <= MAX_NUM_ADAPTERS:
            raise ValueError(
                f"text_config: num_adapters is {self.num_adapters}, but must be from 1 to {MAX_NUM_ADAPTERS}."
            )
        names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "adapter_hidden_size", "num_task_types")
        buckets = ("relative_attention_num_buckets", "relative_attention_max_distance")
        check_sizes("text_config", self, (*names, *buckets))
        check_sizes("text_config", self, ("num_layers", "num_decoder_layers"), MAX_NUM_LAYERS)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "LionT5Config":
        """Return this config. With `decoder=True` alone, return that of the decoder, whose depth defines the size of
        generation caches.
        """
        if not decoder or encoder:
            return self
        config = copy.deepcopy(self)
        config.is_decoder = True
        config.num_layers = self.num_decoder_layers
        return config


if TYPE_CHECKING:  # type of a part after initialization
    VisionPart = LionVisionConfig
    QFormerPart = LionQFormerConfig
    AggregatorPart = LionAggregatorConfig
    TextPart = LionT5Config
else:  # types that are accepted for a part
    VisionPart = QFormerPart = AggregatorPart = TextPart = dict | PreTrainedConfig | None


@strict
class LionConfig(PreTrainedConfig):
    r"""
    Configuration of [`LionForConditionalGeneration`]. The defaults are those of LION-FlanT5-XL.

    Args:
        vision_config, qformer_config, aggregator_config, text_config (`dict` or config, *optional*):
            Configurations of the parts; see `LionVisionConfig`, `LionQFormerConfig`, `LionAggregatorConfig` and
            `LionT5Config`.
        visual_branch (`str`, *optional*, defaults to `"both"`):
            Visual features that precede the text: `"qformer"` (training stage 1), `"aggregator"` (stage 2) or `"both"`.
        num_query_tokens (`int`, *optional*, defaults to 32):
            Number of learned queries of the Q-Former, which is also the number of its output positions.
        use_soft_prompt (`bool`, *optional*, defaults to `True`):
            Whether to replace the embedding of `soft_prompt_token_id` by a learned vector.
        soft_prompt_token_id (`int`, *optional*, defaults to 32099):
            Id of the token that marks the position of the soft prompt in `input_ids`: T5's `<extra_id_0>`.

    Raises:
        ValueError: If the parts are incompatible. The message has both values.
    """

    model_type = "lion"
    sub_configs = {
        "vision_config": LionVisionConfig,
        "qformer_config": LionQFormerConfig,
        "aggregator_config": LionAggregatorConfig,
        "text_config": LionT5Config,
    }
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
        "image_hidden_states",
        "vision_outputs",
        "qformer_outputs",
        "aggregator_outputs",
    ]

    vision_config: VisionPart = None  # type: ignore[assignment]
    qformer_config: QFormerPart = None  # type: ignore[assignment]
    aggregator_config: AggregatorPart = None  # type: ignore[assignment]
    text_config: TextPart = None  # type: ignore[assignment]
    visual_branch: str = "both"
    num_query_tokens: int = 32
    use_soft_prompt: bool = True
    soft_prompt_token_id: int = 32099
    is_encoder_decoder: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():
            part = getattr(self, name)
            if not isinstance(part, PreTrainedConfig):
                setattr(self, name, config_class(**(part or {})))
            elif not isinstance(part, config_class):
                raise ValueError(f"{name} is a {type(part).__name__}, but must be a {config_class.__name__}.")
        super().__post_init__(**kwargs)
        self._check()
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        if self.uses_aggregator:
            self.aggregator_config.attach_to(self.vision_config)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields to save, without `auto_map`, because the code it refers to is not saved."""
        return {name: value for name, value in super().to_dict().items() if name != "auto_map"}

    def _check(self) -> None:
        if self.visual_branch not in VISUAL_BRANCHES:
            raise ValueError(f"visual_branch is {self.visual_branch!r}, but must be one of {VISUAL_BRANCHES}.")
        check_sizes("LionConfig", self, ("num_query_tokens",))
        if self.use_soft_prompt and not 0 <= self.soft_prompt_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"soft_prompt_token_id ({self.soft_prompt_token_id}) is outside the vocabulary of the language "
                "model, which has "
                f"{self.text_config.vocab_size} tokens."
            )

    @property
    def pad_token_id(self) -> int | None:
        """Padding token id of the language model. The Trainer looks for it here."""
        return self.text_config.pad_token_id

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.text_config.pad_token_id = value

    @property
    def uses_qformer(self) -> bool:
        """Whether the model has the Q-Former branch."""
        return self.visual_branch != "aggregator"

    @property
    def uses_aggregator(self) -> bool:
        """Whether the model has the vision aggregator branch."""
        return self.visual_branch != "qformer"


__all__ = [
    "TASK_TYPES",
    "LionAggregatorConfig",
    "LionConfig",
    "LionQFormerConfig",
    "LionT5Config",
    "LionVisionConfig",
]
