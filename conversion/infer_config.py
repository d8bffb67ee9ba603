"""Infer a configuration from tensors. Sizes come from shapes, everything else from files or defaults.

This module has tools for any model (`Shapes`, `build_config`, `merge`, `check_overrides`) and the rules for LION.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError

from key_map import KeyMapError
from lion_keys import EMBEDDING
from sources import first_fault
from transformers_lion.configuration_lion import LionConfig

Config = TypeVar("Config", bound=Any)

SETTINGS_OF_BERT = ("num_attention_heads", "layer_norm_eps", "hidden_act", "hidden_dropout_prob")
SETTINGS_OF_T5 = (
    "d_kv", "num_heads", "dropout_rate", "layer_norm_epsilon", "relative_attention_max_distance", "initializer_factor",
    "pad_token_id", "eos_token_id", "decoder_start_token_id",
)  # fmt: skip
"""Fields that FlanT5's own config defines. `dense_act_fn` (`gelu_new`) and weight tying are not included, because LION
changes both.
"""


DECIDED = {"dtype", "architectures", "transformers_version"}
"""Fields that cannot be overridden, because the conversion sets them."""


SIZE = re.compile(r"^(num_|d_|depths)|_(size|dim|layers|heads)$")
"""Pattern for the names of fields that are sizes or counts."""


class Shapes:
    """Shapes of the tensors in a state dict with the reference's names."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def sizes(self, name: str, num_dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            KeyMapError: If the tensor is missing or has another number of dimensions.
        """
        if name not in self._shapes:
            raise KeyMapError(f"{name} is missing: it is needed to infer the sizes of the model.")
        shape = self._shapes[name]
        if len(shape) != num_dimensions:
            raise KeyMapError(f"{name} has shape {shape}, but should have {num_dimensions} dimensions.")
        return shape

    def has(self, prefix: str) -> bool:
        """Whether any name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self._shapes)

    def indices(self, pattern: str) -> list[int]:
        """Return the sorted integers that the group of `pattern` matches, over all names."""
        found = (re.match(pattern, name) for name in self._shapes)
        return sorted({int(match.group(1)) for match in found if match})

    def count(self, prefix: str) -> int:
        """Count the layers under `prefix`.

        Raises:
            KeyMapError: If there are none, or one is missing.
        """
        indices = self.indices(rf"{re.escape(prefix)}(\d+)\.")
        if not indices:
            raise KeyMapError(f"{prefix}0 is missing: it is needed to infer the sizes of the model.")
        missing = sorted(set(range(len(indices))) - set(indices))
        if missing:
            raise KeyMapError(f"{prefix}{missing[0]} is missing, although there are {len(indices)} layers.")
        return len(indices)


def infer_config(
    tensors: Mapping[str, torch.Tensor],
    language_model_config: Mapping[str, Any],
    qformer_config: Mapping[str, Any],
    soft_prompt_token_id: int,
    overrides: Mapping[str, Any],
) -> LionConfig:
    """Infer the configuration of the model with these weights.

    Args:
        tensors: Complete state dict with the reference's names.
        language_model_config: FlanT5's `config.json`.
        qformer_config: The `config.json` of bert-base-uncased, or an empty dict.
        soft_prompt_token_id: Id of the soft prompt token in the T5 tokenizer.
        overrides: `LionConfig` fields that replace inferred values.

    Raises:
        ValueError: If a tensor that defines a size is missing, or sizes are inconsistent.
    """
    shapes = Shapes(tensors)
    has_qformer, has_aggregator = shapes.has("Qformer."), shapes.has("fusion_adapter.")
    if not (has_qformer or has_aggregator):
        raise ValueError("The LION file contains neither a Q-Former nor a vision aggregator.")
    fields: dict[str, Any] = {
        "visual_branch": "both" if has_qformer and has_aggregator else "qformer" if has_qformer else "aggregator",
        "use_soft_prompt": shapes.has("soft_prompt_hint"),
        "soft_prompt_token_id": soft_prompt_token_id,
        "vision_config": _vision_fields(shapes),
        "text_config": _text_fields(shapes, language_model_config),
    }
    if has_qformer:
        fields["num_query_tokens"] = shapes.sizes("query_tokens", 3)[1]
        fields["qformer_config"] = _qformer_fields(shapes, qformer_config)
    if has_aggregator:
        fields["aggregator_config"] = _aggregator_fields(shapes)
    config = build_config(LionConfig, merge(fields, overrides))
    image_size, patch_size = config.vision_config.image_size, config.vision_config.patch_size
    if image_size < patch_size:
        raise ValueError(f"vision_config: image_size is {image_size}, but must be at least patch_size ({patch_size}).")
    return config


def build_config(config_class: type[Config], fields: Mapping[str, Any]) -> Config:
    """Build the configuration.

    Raises:
        ValueError: If fields have the wrong type or are inconsistent.
    """
    try:
        return config_class(**fields)
    except (StrictDataclassError, TypeError) as error:  # neither is a ValueError
        raise ValueError(f"The configuration is not valid: {first_fault(error)}.") from error


def _vision_fields(shapes: Shapes) -> dict[str, Any]:
    width, _, patch_size, _ = shapes.sizes("visual_encoder.patch_embed.proj.weight", 4)
    _, num_positions, _ = shapes.sizes("visual_encoder.pos_embed", 3)
    grid = math.isqrt(num_positions - 1)
    if grid * grid + 1 != num_positions:
        raise ValueError(
            f"visual_encoder.pos_embed has {num_positions} positions, which is not a square grid plus CLS."
        )
    return {
        "hidden_size": width,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "intermediate_size": shapes.sizes("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": shapes.count("visual_encoder.blocks."),
    }


def _qformer_fields(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the sizes of the Q-Former, and take the other fields from BERT's configuration if there is one."""
    layer = "Qformer.bert.encoder.layer."
    vocab_size, hidden_size = shapes.sizes("Qformer.bert.embeddings.word_embeddings.weight", 2)
    crossed = shapes.indices(r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    return {
        **_pick(config, SETTINGS_OF_BERT),
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "max_position_embeddings": shapes.sizes("Qformer.bert.embeddings.position_embeddings.weight", 2)[0],
        "intermediate_size": shapes.sizes(f"{layer}0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": shapes.count(layer),
        "cross_attention_frequency": crossed[1] - crossed[0] if len(crossed) > 1 else 2,
    }


def _aggregator_fields(shapes: Shapes) -> dict[str, Any]:
    return {
        "intermediate_size": shapes.sizes("fusion_adapter.blocks.0.intermediate.dense.weight", 2)[0],
        "projection_intermediate_size": shapes.sizes("adapter_proj.0.weight", 2)[0],
    }


def _text_fields(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the sizes of the language model and its adapters, and take heads and token ids from FlanT5's "
    "configuration."""
    feed_forward = "t5_model.encoder.block.0.layer.1"
    attention = "t5_model.encoder.block.0.layer.0.SelfAttention"
    num_buckets, num_heads = shapes.sizes(f"{attention}.relative_attention_bias.weight", 2)
    vocab_size, d_model = shapes.sizes(EMBEDDING, 2)
    return {
        **_pick(config, SETTINGS_OF_T5),
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": shapes.sizes(f"{feed_forward}.DenseReluDense.wi_0.weight", 2)[0],
        "d_kv": shapes.sizes(f"{attention}.q.weight", 2)[0] // num_heads,
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "num_layers": shapes.count("t5_model.encoder.block."),
        "num_decoder_layers": shapes.count("t5_model.decoder.block."),
        "num_adapters": len(shapes.indices(rf"{re.escape(feed_forward)}\.adapter\.adapters\.(\d+)\.")),
        "adapter_hidden_size": shapes.sizes(f"{feed_forward}.adapter.adapters.0.down_proj.weight", 2)[0],
    }


def _pick(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}


def merge(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Update `fields` with `overrides`, part by part."""
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    for name, value in overrides.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, Mapping) else value
    return merged


def check_overrides(config_class: type, overrides: Mapping[str, Any]) -> None:
    """Check the overrides of a configuration before its fields are inferred.

    Raises:
        ValueError: If a field is unknown or set by the conversion, or a part is not a JSON object.
    """
    _check_fields(config_class, overrides)
    for name in overrides.keys() & config_class.sub_configs.keys():  # type: ignore[attr-defined]
        if not isinstance(overrides[name], Mapping):
            raise ValueError(f"overrides: {name} is {overrides[name]!r}, but must be a JSON object.")
        _check_fields(config_class.sub_configs[name], overrides[name], f"{name}.")  # type: ignore[attr-defined]


def _check_fields(config_class: type, overrides: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `ValueError` if a field is unknown or set by the conversion, or a size is less than 1."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    for name, value in overrides.items():
        if name in DECIDED:
            raise ValueError(f"overrides: {prefix + name!r} is set by the conversion and cannot be overridden.")
        if name not in fields:
            raise ValueError(f"overrides: {config_class.__name__} has no field {prefix + name!r}.")
        sizes = value if isinstance(value, list) else [value]
        if SIZE.search(name) and any(isinstance(size, int) and size < 1 for size in sizes):
            raise ValueError(f"overrides: {prefix + name} is {value}, but must be 1 or more.")
