"""The key map of RAM: reference layout <-> this package's, and the keys of the original file that may be dropped.

In `RAM_KEYS` this package's names are the map's `originals` and the reference's are its `converted` ones, since the
reference joins query, key and value of Swin's attention in one tensor: converting a file is `revert`, and writing one
is `convert`.
"""

import re
from collections.abc import Iterable

import torch

from key_map import KeyMap, Rule, Template, same

HEAD_ALIASES = {"vision_multi.": "tagging_head."}
"""Other prefixes of the head, and the one that the map uses."""

DROPPABLE = {
    re.compile(r"text_decoder\..*"): "the captioner, which is not used for tagging",
    re.compile(
        r"tag_encoder\..*"
    ): "the tag encoder, which is not used for tagging; the head's tensors are listed there too",
    re.compile(
        r"visual_encoder\.layers\.[0-9]+\.blocks\.[0-9]+\.attn\.relative_position_index"
    ): "a buffer, recomputed",
    re.compile(r"visual_encoder\.layers\.[0-9]+\.blocks\.[0-9]+\.attn_mask"): "a buffer, recomputed",
}
"""Keys that have no place in the converted model, by pattern, with the reason."""

SWIN = "vision_model.encoder.layers.{n}"
SWIN_BLOCK = f"{SWIN}.blocks.{{m}}"
HEAD_LAYER = "head.layers.{n}"


def _split_qkv(joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(3V, ...) -> query's, key's and value's (V, ...)."""
    return tuple(part.clone() for part in joined.chunk(3))


def _joined_qkv(reference: str, package: str) -> Rule:
    """The row of an attention whose three projections are one tensor in the reference."""
    projections = tuple(Template(f"{package}.{name}.{{p}}") for name in ("q_proj", "k_proj", "v_proj"))
    return Rule(projections, Template(f"{reference}.{{p}}"), lambda *parts: torch.cat(parts), _split_qkv)


def rename(reference: str, package: str) -> Rule:
    """The row of a tensor that is the same in both."""
    return same(package, reference)


def _vision_rules() -> list[Rule]:
    """The vision tower."""
    block = "visual_encoder.layers.{n}.blocks.{m}"
    table = "relative_position_bias_table"
    names = {
        "visual_encoder.patch_embed.proj.{p}": "vision_model.embeddings.patch_embeddings.projection.{p}",
        "visual_encoder.patch_embed.norm.{p}": "vision_model.embeddings.norm.{p}",
        "visual_encoder.norm.{p}": "vision_model.layernorm.{p}",
        "visual_encoder.layers.{n}.downsample.norm.{p}": f"{SWIN}.downsample.norm.{{p}}",
        "visual_encoder.layers.{n}.downsample.reduction.weight": f"{SWIN}.downsample.reduction.weight",
        f"{block}.norm1.{{p}}": f"{SWIN_BLOCK}.layernorm_before.{{p}}",
        f"{block}.norm2.{{p}}": f"{SWIN_BLOCK}.layernorm_after.{{p}}",
        f"{block}.mlp.fc1.{{p}}": f"{SWIN_BLOCK}.mlp.fc1.{{p}}",
        f"{block}.mlp.fc2.{{p}}": f"{SWIN_BLOCK}.mlp.fc2.{{p}}",
        f"{block}.attn.proj.{{p}}": f"{SWIN_BLOCK}.attention.o_proj.{{p}}",
        f"{block}.attn.{table}": f"{SWIN_BLOCK}.attention.relative_position_bias.{table}",
    }
    rules = [rename(reference, package) for reference, package in names.items()]
    return [*rules, _joined_qkv(f"{block}.attn.qkv", f"{SWIN_BLOCK}.attention")]


def _head_rules() -> list[Rule]:
    """The head and what stands around it."""
    layer = "tagging_head.encoder.layer.{n}"
    names = {
        "label_embed": "label_embeddings.weight",
        "wordvec_proj.{p}": "label_projection.{p}",
        "image_proj.{p}": "vision_projection.{p}",
        "fc.{p}": "classifier.{p}",
        f"{layer}.intermediate.dense.{{p}}": f"{HEAD_LAYER}.intermediate.dense.{{p}}",
    }
    for name in ("query", "key", "value"):
        names[f"{layer}.crossattention.self.{name}.{{p}}"] = f"{HEAD_LAYER}.crossattention.attention.{name}.{{p}}"
    for output in ("crossattention.output", "output"):
        for name in ("dense", "LayerNorm"):
            names[f"{layer}.{output}.{name}.{{p}}"] = f"{HEAD_LAYER}.{output}.{name}.{{p}}"
    return [rename(reference, package) for reference, package in names.items()]


RAM_KEYS = KeyMap([*_vision_rules(), *_head_rules()])


def _reference_name(key: str) -> str:
    """`key` with the head's usual prefix."""
    for alias, prefix in HEAD_ALIASES.items():
        if key.startswith(alias):
            return prefix + key.removeprefix(alias)
    return key


def droppable(key: str) -> bool:
    """Whether a key of the original file has no place in the converted model."""
    return any(pattern.fullmatch(key) for pattern in DROPPABLE)


def kept_names(keys: Iterable[str]) -> dict[str, str]:
    """The keys that are kept, by their usual names.

    Raises:
        ValueError: if two keys have the same usual name.
    """
    names: dict[str, str] = {}
    for key in keys:
        name = _reference_name(key)
        if droppable(name):
            continue
        if name in names:
            raise ValueError(f"{key} and {names[name]} are the same tensor under two prefixes.")
        names[name] = key
    return names
