"""Key map of RAM between the reference's layout and this package's, and keys of the original file that are dropped.

In `RAM_KEYS`, this package's names are the `originals` of the map and the reference's are `converted`, because the
reference joins the query, key and value projections of Swin's attention in one tensor. `revert` converts a file to this
package's layout, and `convert` writes one.
"""

import re
from collections.abc import Iterable

import torch

from key_map import KeyMap, Rule, Template, same

HEAD_ALIASES = {"vision_multi.": "tagging_head."}
"""Other prefixes of the head, and the prefix that the map uses."""

DROPPABLE = {
    re.compile(r"text_decoder\..*"): "the captioner, which tagging does not need",
    re.compile(
        r"tag_encoder\..*"
    ): "the tag encoder, which tagging does not need; it also lists the tensors of the head",
    re.compile(
        r"visual_encoder\.layers\.[0-9]+\.blocks\.[0-9]+\.attn\.relative_position_index"
    ): "a buffer, recomputed",
    re.compile(r"visual_encoder\.layers\.[0-9]+\.blocks\.[0-9]+\.attn_mask"): "a buffer, recomputed",
}
"""Patterns of keys that the converted model does not need, each with a reason."""

SWIN = "vision_model.encoder.layers.{n}"
SWIN_BLOCK = f"{SWIN}.blocks.{{m}}"
HEAD_LAYER = "head.layers.{n}"


def _split_qkv(joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(3V, ...) -> (V, ...) for query, key and value."""
    return tuple(part.clone() for part in joined.chunk(3))


def _joined_qkv(reference: str, package: str) -> Rule:
    """Rule for an attention layer whose three projections are one tensor in the reference."""
    projections = tuple(Template(f"{package}.{name}.{{p}}") for name in ("q_proj", "k_proj", "v_proj"))
    return Rule(projections, Template(f"{reference}.{{p}}"), lambda *parts: torch.cat(parts), _split_qkv)


def rename(reference: str, package: str) -> Rule:
    """Rule for a tensor that only changes its name."""
    return same(package, reference)


def _vision_rules() -> list[Rule]:
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
    """Rules for the head and the projections around it."""
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
    """Return `key` with the usual prefix of the head."""
    for alias, prefix in HEAD_ALIASES.items():
        if key.startswith(alias):
            return prefix + key.removeprefix(alias)
    return key


def droppable(key: str) -> bool:
    """Whether the converted model does not need a key of the original file."""
    return any(pattern.fullmatch(key) for pattern in DROPPABLE)


def kept_names(keys: Iterable[str]) -> dict[str, str]:
    """Map the usual names of the keys to keep to the keys.

    Raises:
        ValueError: If two keys have the same usual name.
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
