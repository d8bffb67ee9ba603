"""Key map of LION between the reference's layout and this package's, and keys of the original files that are dropped.

The original names are those of the reference model's state dict. Files that contain only a part of the model are
renamed first: the keys of the vision tower get the prefix `visual_encoder.`, and those of the language model get
`t5_model.`.
"""

import re

import torch

from key_map import KeyMap, Rule, Template, same

VISION_PREFIX = "visual_encoder."
LANGUAGE_MODEL_PREFIX = "t5_model."

EMBEDDING = "t5_model.shared.weight"
EMBEDDING_ALIASES = ("t5_model.encoder.embed_tokens.weight", "t5_model.decoder.embed_tokens.weight")
"""Other names of the tensor `EMBEDDING`."""

DROPPABLE = {
    re.compile(r"Qformer\.bert\.embeddings\.position_ids"): "a buffer that counts 0, 1, 2, ...",
    re.compile(r"Qformer\.cls\..*"): "the pretraining head of the Q-Former, which LION removes",
    re.compile(r"visual_encoder\.(norm|fc_norm|head)\.(weight|bias)"): "EVA's final norm and head, which LION skips",
    re.compile(
        r"visual_encoder\.blocks\.[0-9]+\.attn\.relative_position_index"
    ): "a buffer that LION's vision tower does not have",
    re.compile(r"t5_model\.decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"): (
        "a leftover in early T5 files that T5 never reads"
    ),
}
"""Patterns of keys that the converted model does not need, each with a reason."""


def join_qkv_bias(q_bias: torch.Tensor, v_bias: torch.Tensor) -> torch.Tensor:
    """(V,), (V,) -> (3V,). The key projection has no bias, so its third is zero."""
    return torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])


def split_qkv_bias(bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3V,) -> (V,), (V,).

    Raises:
        ValueError: If the third of the key projection is not zero, because the reference cannot represent it.
    """
    q_bias, k_bias, v_bias = bias.chunk(3)
    if k_bias.count_nonzero():
        raise ValueError(
            f"The bias of the key projection has {int(k_bias.count_nonzero())} nonzero values, but LION's has no bias."
        )
    return q_bias.clone(), v_bias.clone()


def _bert_attention(original: str, converted: str) -> list[Rule]:
    rows = [same(f"{original}.self.{name}.{{p}}", f"{converted}.attention.{name}.{{p}}") for name in BERT_PROJECTIONS]
    return rows + _bert_output(f"{original}.output", f"{converted}.output")


def _bert_output(original: str, converted: str) -> list[Rule]:
    return [same(f"{original}.{name}.{{p}}", f"{converted}.{name}.{{p}}") for name in ("dense", "LayerNorm")]


def t5_attention(original: str, converted: str) -> list[Rule]:
    """Rules for the projections of a T5 attention layer."""
    return [same(f"{original}.{name}.weight", f"{converted}.{name}.weight") for name in "qkvo"]


def _t5_stack(stack: str, feed_forward: int) -> list[Rule]:
    """Rules for T5's encoder or decoder. `feed_forward` is the index of that sublayer in a block."""
    old, new = f"t5_model.{stack}.block.{{n}}", f"language_model.{stack}.block.{{n}}"
    old_ff, new_ff = f"{old}.layer.{feed_forward}", f"{new}.feed_forward"
    position_bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        *t5_attention(f"{old}.layer.0.SelfAttention", f"{new}.layer.0.SelfAttention"),
        same(f"{old}.{position_bias}", f"{new}.{position_bias}"),
        *(
            same(f"{old}.layer.{i}.layer_norm.weight", f"{new}.layer.{i}.layer_norm.weight")
            for i in range(feed_forward)
        ),
        *(same(f"{old_ff}.{name}.weight", f"{new_ff}.{name}.weight") for name in T5_FEED_FORWARD),
        *(same(f"{old_ff}.adapter.router_ratio{k + 1}", f"{new_ff}.adapter.router.{k}.weight") for k in range(2)),
        same(f"{old_ff}.adapter.adapters.{{k}}.scale", f"{new_ff}.adapter.adapters.{{k}}.scale"),
        *(
            same(f"{old_ff}.adapter.adapters.{{k}}.{name}.{{p}}", f"{new_ff}.adapter.adapters.{{k}}.{name}.{{p}}")
            for name in ("down_proj", "up_proj")
        ),
        same(f"t5_model.{stack}.final_layer_norm.weight", f"language_model.{stack}.final_layer_norm.weight"),
    ]


BERT_PROJECTIONS = ("query", "key", "value")
T5_FEED_FORWARD = ("layer_norm", "DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo")

VIT, OUR_VIT = "visual_encoder.blocks.{n}", "vision_model.encoder.layers.{n}"
VISION = [
    same("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    same("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    same("visual_encoder.patch_embed.proj.{p}", "vision_model.embeddings.patch_embedding.{p}"),
    same(f"{VIT}.norm1.{{p}}", f"{OUR_VIT}.layer_norm1.{{p}}"),
    same(f"{VIT}.norm2.{{p}}", f"{OUR_VIT}.layer_norm2.{{p}}"),
    same(f"{VIT}.attn.qkv.weight", f"{OUR_VIT}.self_attn.qkv.weight"),
    Rule(
        (Template(f"{VIT}.attn.q_bias"), Template(f"{VIT}.attn.v_bias")),
        Template(f"{OUR_VIT}.self_attn.qkv.bias"),
        join_qkv_bias,
        split_qkv_bias,
    ),
    same(f"{VIT}.attn.proj.{{p}}", f"{OUR_VIT}.self_attn.projection.{{p}}"),
    same(f"{VIT}.mlp.fc1.{{p}}", f"{OUR_VIT}.mlp.fc1.{{p}}"),
    same(f"{VIT}.mlp.fc2.{{p}}", f"{OUR_VIT}.mlp.fc2.{{p}}"),
    same("ln_vision.{p}", "vision_model.post_layernorm.{p}"),
]

BERT, OUR_BERT = "Qformer.bert.encoder.layer.{n}", "qformer.encoder.layer.{n}"
QFORMER = [
    Rule(
        (Template("query_tokens"),),
        Template("query_tokens.weight"),
        lambda tensor: tensor.squeeze(0),  # (1, Q, H) -> (Q, H)
        lambda tensor: (tensor.unsqueeze(0),),
    ),
    same("Qformer.bert.embeddings.word_embeddings.weight", "qformer.embeddings.word_embeddings.weight"),
    same("Qformer.bert.embeddings.position_embeddings.weight", "qformer.embeddings.position_embeddings.weight"),
    same("Qformer.bert.embeddings.LayerNorm.{p}", "qformer.embeddings.layernorm.{p}"),
    *_bert_attention(f"{BERT}.attention", f"{OUR_BERT}.attention"),
    *_bert_attention(f"{BERT}.crossattention", f"{OUR_BERT}.crossattention"),
    same(f"{BERT}.intermediate.dense.{{p}}", f"{OUR_BERT}.intermediate.dense.{{p}}"),
    same(f"{BERT}.intermediate_query.dense.{{p}}", f"{OUR_BERT}.intermediate_query.dense.{{p}}"),
    *_bert_output(f"{BERT}.output", f"{OUR_BERT}.output"),
    *_bert_output(f"{BERT}.output_query", f"{OUR_BERT}.output_query"),
    same("t5_proj.{p}", "language_projection.{p}"),
]

FUSION, OUR_FUSION = "fusion_adapter.blocks.{n}", "aggregator.layers.{n}"
AGGREGATOR = [
    *_bert_attention(f"{FUSION}.attention", f"{OUR_FUSION}.attention"),
    *_bert_attention(f"{FUSION}.crossattention", f"{OUR_FUSION}.crossattention"),
    same(f"{FUSION}.intermediate.dense.{{p}}", f"{OUR_FUSION}.intermediate.dense.{{p}}"),
    *_bert_output(f"{FUSION}.output", f"{OUR_FUSION}.output"),
    same("ln_adapter.{p}", "aggregator_projection.layernorm.{p}"),
    same("adapter_proj.0.{p}", "aggregator_projection.fc1.{p}"),
    same("adapter_proj.2.{p}", "aggregator_projection.fc2.{p}"),
]

LANGUAGE_MODEL = [
    Rule(
        (Template("soft_prompt_hint"),),
        Template("soft_prompt.weight"),
        lambda tensor: tensor.unsqueeze(0),  # (D,) -> (1, D)
        lambda tensor: (tensor.squeeze(0),),
    ),
    same(EMBEDDING, "language_model.shared.weight"),
    same("t5_model.lm_head.weight", "language_model.lm_head.weight"),
    *_t5_stack("encoder", feed_forward=1),
    *_t5_stack("decoder", feed_forward=2),
    *t5_attention(
        "t5_model.decoder.block.{n}.layer.1.EncDecAttention", "language_model.decoder.block.{n}.layer.1.EncDecAttention"
    ),
]

LION_KEYS = KeyMap([*VISION, *QFORMER, *AGGREGATOR, *LANGUAGE_MODEL])
