"""Configuration of LION: every fact of the architecture is a field here, with the XL model's value as its default.

Source: LION (arXiv:2311.11860), sections 3.2 to 3.4, and the sizes of its reference code. `LionConfig` composes four
parts: the vision tower, the Q-Former, the vision aggregator, and the language model with its mixture of adapters.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import InstructBlipQFormerConfig, InstructBlipVisionConfig, PreTrainedConfig, T5Config

TASK_TYPES = ("region_level", "image_level")
"""Names of the tasks in the order of the router's rows: `task_type_ids` index this tuple."""

VISUAL_BRANCHES = ("both", "qformer", "aggregator")
"""What may stand before the text."""

MAX_NUM_ADAPTERS = 2
"""The paper's mixture has one adapter for each task type."""


MAX_SIZE = 16_777_216
"""More than any width, length or vocabulary has."""

MAX_NUM_LAYERS = 256
"""More than any part has; a model of a damaged number would be built for hours before its weights do not fit."""


def check_sizes(part: str, config: Any, names: Sequence[str], largest: int = MAX_SIZE) -> None:
    """Raise `ValueError` if a field is no size. One that is `None` is passed over, of a pair each entry counts."""
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
    Vision tower: EVA-ViT-g/14 as InstructBLIP has it.

    Args:
        post_layernorm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the norm after the last block, which only the Q-Former sees; the blocks' own is `layer_norm_eps`.
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
                f"vision_config: image_size is {self.image_size}, less than one patch: patch_size is {self.patch_size}."
            )


@strict
class LionQFormerConfig(InstructBlipQFormerConfig):
    r"""
    Text-conditioned Q-Former of InstructBLIP. Its vocabulary is bert-base-uncased's and one added token, `[DEC]`.

    `encoder_hidden_size` is always the vision tower's `hidden_size`: `LionConfig` sets it.
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
    Vision aggregator: post-norm BERT layers over three depths of the vision tower, and the projection behind them.

    Args:
        vision_feature_layers (`list[int]`, *optional*, defaults to `[38, 28, 18]`):
            Zero-based blocks of the vision tower whose outputs are read, before any final norm. The first is where the
            aggregator starts from; each further one is what one layer cross-attends to, so there are
            `len(vision_feature_layers) - 1` layers.
        hidden_size (`int`, *optional*):
            Width; always the vision tower's `hidden_size`: `LionConfig` sets it.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward (the reference takes BERT's default here, not four times the width).
        projection_intermediate_size (`int`, *optional*):
            Width between the projection's two linear layers; four times `hidden_size` by default.
        projection_layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the norm in front of the projection.
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
                "aggregator_config: vision_feature_layers needs the block to start from and at least one to "
                f"cross-attend to, so 2 or more entries, but has {len(self.vision_feature_layers)}."
            )

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers: one for each cross-attended depth."""
        return len(self.vision_feature_layers) - 1

    @property
    def encoder_hidden_size(self) -> int | None:
        """Width of what the cross-attention reads: the vision tower's, like its own."""
        return self.hidden_size

    def attach_to(self, vision_config: LionVisionConfig) -> None:
        """Take the width of `vision_config`, and check the rest against it.

        Raises:
            ValueError: if an own width was given and differs, if the heads do not divide the width, or if a
                tapped block does not exist.
        """
        width = vision_config.hidden_size
        if self.hidden_size not in (None, width):
            raise ValueError(
                f"aggregator_config: hidden_size ({self.hidden_size}) is not the vision tower's ({width})."
            )
        self.hidden_size = width
        self.projection_intermediate_size = self.projection_intermediate_size or 4 * width
        check_divides(self.num_attention_heads, width, "aggregator_config")
        for block in self.vision_feature_layers:
            if not 0 <= block < vision_config.num_hidden_layers:
                raise ValueError(
                    f"aggregator_config: vision_feature_layers reads block {block}, but the vision tower has blocks 0 "
                    f"to {vision_config.num_hidden_layers - 1}."
                )


@strict
class LionT5Config(T5Config):
    r"""
    FlanT5 with a mixture of adapters in parallel to every feed-forward layer.

    It differs from `T5Config` in two facts that the reference code sets: the activation is the exact GELU (FlanT5's own
    config says `gelu_new`), and `lm_head` is not tied to the embeddings.

    Args:
        num_adapters (`int`, *optional*, defaults to 2):
            Adapters at each feed-forward layer. With 2 a router mixes them per task; with 1 there is no router.
        adapter_hidden_size (`int`, *optional*, defaults to 64):
            Width of the adapters' bottleneck.
        num_task_types (`int`, *optional*, defaults to 2):
            Rows of the router, one for each entry of `TASK_TYPES`.
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
        for name, value in stated.items():  # T5Config derives both from other fields, and not to LION's values
            setattr(self, name, value)
        if not 1 <= self.num_adapters <= MAX_NUM_ADAPTERS:
            raise ValueError(
                f"text_config: num_adapters is {self.num_adapters}, but LION mixes 1 to {MAX_NUM_ADAPTERS} adapters."
            )
        names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "adapter_hidden_size", "num_task_types")
        buckets = ("relative_attention_num_buckets", "relative_attention_max_distance")
        check_sizes("text_config", self, (*names, *buckets))
        check_sizes("text_config", self, ("num_layers", "num_decoder_layers"), MAX_NUM_LAYERS)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "LionT5Config":
        """The whole, or with `decoder=True` alone the decoder's, whose depth sizes the caches of generation."""
        if not decoder or encoder:
            return self
        config = copy.deepcopy(self)
        config.is_decoder = True
        config.num_layers = self.num_decoder_layers
        return config


if TYPE_CHECKING:  # what a part is
    VisionPart = LionVisionConfig
    QFormerPart = LionQFormerConfig
    AggregatorPart = LionAggregatorConfig
    TextPart = LionT5Config
else:  # what may be given for it
    VisionPart = QFormerPart = AggregatorPart = TextPart = dict | PreTrainedConfig | None


@strict
class LionConfig(PreTrainedConfig):
    r"""
    Configuration of [`LionForConditionalGeneration`]. The defaults are LION-FlanT5-XL.

    Args:
        vision_config, qformer_config, aggregator_config, text_config (`dict` or config, *optional*):
            The parts; see `LionVisionConfig`, `LionQFormerConfig`, `LionAggregatorConfig` and `LionT5Config`.
        visual_branch (`str`, *optional*, defaults to `"both"`):
            What stands before the text: `"qformer"` (stage 1 of the training), `"aggregator"` (stage 2) or `"both"`.
        num_query_tokens (`int`, *optional*, defaults to 32):
            Learned queries of the Q-Former, and so its output positions.
        use_soft_prompt (`bool`, *optional*, defaults to `True`):
            Whether the embedding at `soft_prompt_token_id` is replaced by a learned vector.
        soft_prompt_token_id (`int`, *optional*, defaults to 32099):
            Position marker of the soft prompt in `input_ids`: `<extra_id_0>` of the T5 tokenizer.

    Raises:
        ValueError: if the parts do not fit together; the message holds both numbers.
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
        """As in transformers, without `auto_map`: what is saved has none of the code that it would lead to."""
        return {name: value for name, value in super().to_dict().items() if name != "auto_map"}

    def _check(self) -> None:
        if self.visual_branch not in VISUAL_BRANCHES:
            raise ValueError(f"visual_branch is {self.visual_branch!r}, but must be one of {VISUAL_BRANCHES}.")
        check_sizes("LionConfig", self, ("num_query_tokens",))
        if self.use_soft_prompt and not 0 <= self.soft_prompt_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"soft_prompt_token_id ({self.soft_prompt_token_id}) is outside of the language model's vocabulary of "
                f"{self.text_config.vocab_size}."
            )

    @property
    def pad_token_id(self) -> int | None:
        """The language model's, which the Trainer looks for here."""
        return self.text_config.pad_token_id

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.text_config.pad_token_id = value

    @property
    def uses_qformer(self) -> bool:
        """Whether the Q-Former branch is part of the model."""
        return self.visual_branch != "aggregator"

    @property
    def uses_aggregator(self) -> bool:
        """Whether the vision aggregator branch is part of the model."""
        return self.visual_branch != "qformer"


__all__ = [
    "TASK_TYPES",
    "LionAggregatorConfig",
    "LionConfig",
    "LionQFormerConfig",
    "LionT5Config",
    "LionVisionConfig",
]
