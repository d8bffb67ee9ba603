"""Configurations of the small world's LION and tagger: all parts of the full models, sized to train on two cores."""

from typing import Any

from transformers import SwinConfig

from transformers_lion.configuration_lion import LionConfig
from transformers_lion.ram import RamConfig

from .scenes import TAGS
from .vocabulary import SOFT_PROMPT_TOKEN, language_model_tokenizer, qformer_tokenizer

IMAGE_SIZE, PATCH_SIZE = 100, 10
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_QUERY_TOKENS = 16
VISION = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 10, "num_attention_heads": 4,
    "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE,
}  # fmt: skip
TAPS = (9, 6, 3)
QFORMER = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "cross_attention_frequency": 1, "max_position_embeddings": 128, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
AGGREGATOR = {
    "vision_feature_layers": list(TAPS), "num_attention_heads": 4, "intermediate_size": 256,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TEXT = {
    "d_model": 128, "d_kv": 32, "d_ff": 320, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 4,
    "dropout_rate": 0.0, "adapter_hidden_size": 64, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip


def small_config(visual_branch: str = "both") -> LionConfig:
    """Return the configuration of the small LION, with two adapters if it has both branches, otherwise one."""
    tokenizer, questions = language_model_tokenizer(), qformer_tokenizer()
    num_adapters = 2 if visual_branch == "both" else 1
    text: dict[str, Any] = {**TEXT, "vocab_size": len(tokenizer), "num_adapters": num_adapters}
    return LionConfig(
        vision_config=dict(VISION), qformer_config={**QFORMER, "vocab_size": len(questions)},
        aggregator_config=dict(AGGREGATOR), text_config=text, visual_branch=visual_branch,
        num_query_tokens=NUM_QUERY_TOKENS, soft_prompt_token_id=tokenizer.convert_tokens_to_ids(SOFT_PROMPT_TOKEN),
    )  # fmt: skip


def small_tagger_config() -> RamConfig:
    """Return the configuration of the small tagger."""
    vision = SwinConfig(
        image_size=96,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2, 2],
        num_heads=[1, 2, 4],
        window_size=6,
        mlp_ratio=2.0,
        initializer_range=0.1,
    )
    return RamConfig(
        vision_config=vision, id2label=dict(enumerate(TAGS)), default_threshold=0.5, label_embed_dim=64,
        encoder_hidden_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1, loss_gamma_negative=0.0,
        loss_clip=0.0,  # a third of the tags are present, so negatives need no down-weighting
    )  # fmt: skip


__all__ = ["GRID", "IMAGE_SIZE", "small_config", "small_tagger_config"]
