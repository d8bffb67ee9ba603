"""Sizes, seeded models and seeded inputs, which are the same for all sides.

The middle size has LION's depth where depth matters (39 blocks in the vision tower, 12 layers in the Q-Former) and
about a quarter of its widths. Weights are random. Adapters and the aggregator get nonzero weights, because freshly
initialized ones have no effect.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, T5Config

from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.ram import RamConfig, RamForImageTagging

IMAGE_LEVEL = 1
NUM_TAGS_IN_PROMPT = 5
TOKENS_IN_QUESTION = 26
"""About 20 words, with either tokenizer."""
TOKENS_IN_SENTENCE = 34
"""Length of the tag sentence with five tags, including its end."""
SOFT_PROMPT_POSITION = 3
LABEL_TOKENS = 20


@dataclass(frozen=True)
class Size:
    """Sizes of the parts of a model.

    Attributes:
        vision, qformer, aggregator, text: Configuration fields of the parts.
        num_query_tokens: Number of queries of the Q-Former.
        ram: Configuration fields of the tagger.
    """

    vision: dict[str, Any]
    qformer: dict[str, Any]
    aggregator: dict[str, Any]
    text: dict[str, Any]
    num_query_tokens: int
    ram: dict[str, Any]


MIDDLE = Size(
    vision={
        "hidden_size": 352, "intermediate_size": int(352 * 4.3637), "num_hidden_layers": 39, "num_attention_heads": 4,
    },
    qformer={"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
    aggregator={"num_attention_heads": 4, "intermediate_size": 768},
    text={"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1280, "num_layers": 8, "num_heads": 8},
    num_query_tokens=32,
    ram={},
)  # fmt: skip
TINY = Size(
    vision={
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 28,
    },
    qformer={
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99,
    },
    aggregator={"vision_feature_layers": [5, 3, 1], "num_attention_heads": 4, "intermediate_size": 37},
    text={"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    num_query_tokens=5,
    ram={
        "vision_config": {
            "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
        },
        "num_labels": 7, "label_embed_dim": 12, "encoder_hidden_size": 10, "hidden_size": 16, "intermediate_size": 20,
    },
)  # fmt: skip
SIZES = {"middle": MIDDLE, "tiny": TINY}


def lion_config(size: Size) -> LionConfig:
    return LionConfig(
        vision_config=size.vision,
        qformer_config=size.qformer,
        aggregator_config=size.aggregator,
        text_config=size.text,
        num_query_tokens=size.num_query_tokens,
        soft_prompt_token_id=size.text["vocab_size"] - 1,
    )


def build_lion(size: Size) -> LionForConditionalGeneration:
    """Build a seeded LION in eval mode in which every part has an effect."""
    torch.manual_seed(0)
    model = LionForConditionalGeneration(lion_config(size)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name or name.startswith("aggregator."):
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def instructblip_config(size: Size) -> InstructBlipConfig:
    """Configure InstructBLIP with the same parts. Image tokens use the second-to-last id of the vocabulary."""
    text = T5Config(**size.text, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    return InstructBlipConfig(
        vision_config=size.vision,
        qformer_config={**size.qformer, "encoder_hidden_size": size.vision["hidden_size"]},
        text_config=text.to_dict(),
        num_query_tokens=size.num_query_tokens,
        image_token_index=size.text["vocab_size"] - 2,
    )


def build_instructblip(size: Size) -> InstructBlipForConditionalGeneration:
    """Build a seeded InstructBLIP with the same parts, in eval mode, with transformers' default attention."""
    torch.manual_seed(0)
    return InstructBlipForConditionalGeneration(instructblip_config(size)).eval()


def build_tagger(size: Size) -> RamForImageTagging:
    """Build a seeded RAM in eval mode. The middle size has Swin-L and 4585 tags, like the released model."""
    torch.manual_seed(0)
    return RamForImageTagging(RamConfig(**size.ram)).eval()


def make_inputs(size: Size, batch_size: int = 1, text_tokens: int | None = None) -> dict[str, torch.Tensor]:
    """Create seeded pixels and image-level questions, each with a tag sentence that contains the soft prompt token.

    Args:
        text_tokens: Length of the whole prompt. Defaults to a question of about 20 words after five tags.
    """
    generator = torch.Generator().manual_seed(1)
    image_size = size.vision.get("image_size", 224)
    length = text_tokens or TOKENS_IN_SENTENCE + TOKENS_IN_QUESTION
    vocabulary = size.text["vocab_size"]
    input_ids = torch.randint(3, vocabulary - 2, (batch_size, length), generator=generator)
    input_ids[:, SOFT_PROMPT_POSITION] = vocabulary - 1
    words = size.qformer.get("vocab_size", 30523)
    questions = torch.randint(3, words, (batch_size, TOKENS_IN_QUESTION), generator=generator)
    return {
        "pixel_values": torch.randn(batch_size, 3, image_size, image_size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "qformer_input_ids": questions,
        "qformer_attention_mask": torch.ones_like(questions),
        "task_type_ids": torch.full((batch_size,), IMAGE_LEVEL),
    }


def make_labels(size: Size, batch_size: int) -> torch.Tensor:
    """Create seeded answers, (B, 20)."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, size.text["vocab_size"] - 2, (batch_size, LABEL_TOKENS), generator=generator)


def tagger_pixels(tagger: RamForImageTagging, batch_size: int) -> torch.Tensor:
    """Create seeded pixels, (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch_size, 3, *tagger.config.image_size, generator=generator)
