"""LION's configuration from the tensors: sizes are shapes; what shapes cannot tell comes from files or defaults."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError

from transformers_lion.configuration_lion import LionConfig

Config = TypeVar("Config", bound=Any)

SETTINGS_OF_BERT = ("num_attention_heads", "layer_norm_eps", "hidden_act", "hidden_dropout_prob")
SETTINGS_OF_T5 = (
    "d_kv", "num_heads", "dropout_rate", "layer_norm_epsilon", "relative_attention_max_distance", "initializer_factor",
    "pad_token_id", "eos_token_id", "decoder_start_token_id",
)  # fmt: skip
"""What FlanT5's own config decides. Its activation (`gelu_new`) and its tying are not among it: LION sets both anew."""


class Shapes:
    """Shapes of a state dict in the reference's names."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor.

        Raises:
            ValueError: if it is not there.
        """
        if name not in self._shapes:
            raise ValueError(f"{name} is missing: it is needed to tell the model's sizes.")
        return self._shapes[name]

    def has(self, prefix: str) -> bool:
        """Whether any name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self._shapes)

    def indices(self, pattern: str) -> list[int]:
        """The sorted numbers that stand at the group of `pattern`, over all names."""
        found = (re.match(pattern, name) for name in self._shapes)
        return sorted({int(match.group(1)) for match in found if match})

    def count(self, pattern: str) -> int:
        """How many layers stand at the group of `pattern`.

        Raises:
            ValueError: if one is left out.
        """
        indices = self.indices(pattern)
        missing = sorted(set(range(len(indices))) - set(indices))
        if missing:
            raise ValueError(f"Layer {missing[0]} is missing among the {len(indices)} layers that match {pattern}.")
        return len(indices)


def infer_config(
    tensors: Mapping[str, torch.Tensor],
    language_model_config: Mapping[str, Any],
    qformer_config: Mapping[str, Any],
    soft_prompt_token_id: int,
    overrides: Mapping[str, Any],
) -> LionConfig:
    """The configuration of the model that `tensors` are the weights of.

    Args:
        tensors: a whole state dict in the reference's names.
        language_model_config: FlanT5's `config.json`.
        qformer_config: bert-base-uncased's `config.json`, or nothing.
        soft_prompt_token_id: of the T5 tokenizer.
        overrides: LionConfig's own fields, to go before what was inferred.

    Raises:
        ValueError: if a tensor that tells a size is missing, or if sizes do not fit together.
    """
    shapes = Shapes(tensors)
    has_qformer, has_aggregator = shapes.has("Qformer."), shapes.has("fusion_adapter.")
    if not (has_qformer or has_aggregator):
        raise ValueError("The LION file holds neither a Q-Former nor a vision aggregator.")
    fields: dict[str, Any] = {
        "visual_branch": "both" if has_qformer and has_aggregator else "qformer" if has_qformer else "aggregator",
        "use_soft_prompt": shapes.has("soft_prompt_hint"),
        "soft_prompt_token_id": soft_prompt_token_id,
        "vision_config": vision_fields(shapes),
        "text_config": text_fields(shapes, language_model_config),
    }
    if has_qformer:
        fields["num_query_tokens"] = shapes["query_tokens"][1]
        fields["qformer_config"] = qformer_fields(shapes, qformer_config)
    if has_aggregator:
        fields["aggregator_config"] = aggregator_fields(shapes)
    return build_config(LionConfig, merge(fields, overrides))


def build_config(config_class: type[Config], fields: Mapping[str, Any]) -> Config:
    """The configuration of `fields`.

    Raises:
        ValueError: if fields are of the wrong type or do not fit together.
    """
    try:
        return config_class(**fields)
    except StrictDataclassError as error:  # no ValueError
        raise ValueError(f"the configuration is not valid: {' '.join(str(error).split())}") from error


def vision_fields(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the vision tower."""
    width, _, patch_size, _ = shapes["visual_encoder.patch_embed.proj.weight"]
    num_positions = shapes["visual_encoder.pos_embed"][1]
    grid = math.isqrt(num_positions - 1)
    if grid * grid + 1 != num_positions:
        raise ValueError(f"visual_encoder.pos_embed has {num_positions} positions, which is no square grid and CLS.")
    return {
        "hidden_size": width,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "intermediate_size": shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": shapes.count(r"visual_encoder\.blocks\.(\d+)\."),
    }


def qformer_fields(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the Q-Former, and its heads if BERT's own configuration says them."""
    layer = "Qformer.bert.encoder.layer."
    crossed = shapes.indices(r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    return {
        **pick(config, SETTINGS_OF_BERT),
        "vocab_size": shapes["Qformer.bert.embeddings.word_embeddings.weight"][0],
        "hidden_size": shapes["Qformer.bert.embeddings.word_embeddings.weight"][1],
        "max_position_embeddings": shapes["Qformer.bert.embeddings.position_embeddings.weight"][0],
        "intermediate_size": shapes[f"{layer}0.intermediate.dense.weight"][0],
        "num_hidden_layers": shapes.count(r"Qformer\.bert\.encoder\.layer\.(\d+)\."),
        "cross_attention_frequency": crossed[1] - crossed[0] if len(crossed) > 1 else 2,
    }


def aggregator_fields(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the vision aggregator."""
    return {
        "intermediate_size": shapes["fusion_adapter.blocks.0.intermediate.dense.weight"][0],
        "projection_intermediate_size": shapes["adapter_proj.0.weight"][0],
    }


def text_fields(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the language model and its adapters; heads and token ids from FlanT5's own configuration."""
    feed_forward = "t5_model.encoder.block.0.layer.1"
    num_buckets, num_heads = shapes["t5_model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    return {
        **pick(config, SETTINGS_OF_T5),
        "vocab_size": shapes["t5_model.shared.weight"][0],
        "d_model": shapes["t5_model.shared.weight"][1],
        "d_ff": shapes[f"{feed_forward}.DenseReluDense.wi_0.weight"][0],
        "d_kv": shapes["t5_model.encoder.block.0.layer.0.SelfAttention.q.weight"][0] // num_heads,
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "num_layers": shapes.count(r"t5_model\.encoder\.block\.(\d+)\."),
        "num_decoder_layers": shapes.count(r"t5_model\.decoder\.block\.(\d+)\."),
        "num_adapters": len(shapes.indices(rf"{re.escape(feed_forward)}\.adapter\.adapters\.(\d+)\.")),
        "adapter_hidden_size": shapes[f"{feed_forward}.adapter.adapters.0.down_proj.weight"][0],
    }


def pick(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of `names` that `config` has."""
    return {name: config[name] for name in names if name in config}


def merge(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `overrides` before them, part by part."""
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    for name, value in overrides.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, Mapping) else value
    return merged


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raise `ValueError` if an override names no field of the configuration, or a part is no JSON object."""
    check_fields("LionConfig", LionConfig, overrides)
    for name in overrides.keys() & LionConfig.sub_configs.keys():
        if not isinstance(overrides[name], Mapping):
            raise ValueError(f"overrides: {name} is {overrides[name]!r}, but must be a JSON object.")
        check_fields(name, LionConfig.sub_configs[name], overrides[name])


def check_fields(part: str, config_class: type, names: Iterable[str]) -> None:
    """Raise `ValueError` if a name is no field of the configuration class."""
    unknown = [name for name in names if name not in config_class.__dataclass_fields__]  # type: ignore[attr-defined]
    if unknown:
        raise ValueError(f"overrides: {part} has no field {unknown[0]!r}.")
