"""Models and inputs of the smallest size that still has every part."""

from typing import Any

import torch

from transformers_lion import LionConfig, LionForConditionalGeneration

SOFT_PROMPT = 98

NO_DROPOUT: dict[str, Any] = {
    "text_config": {"dropout_rate": 0.0},
    "qformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "aggregator_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def tiny_config(**fields: Any) -> LionConfig:
    """A configuration with six vision blocks and two layers everywhere else."""
    parts: dict[str, dict[str, Any]] = {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 6, "num_attention_heads": 4,
            "image_size": 28, "initializer_range": 0.2,
        },
        "qformer_config": {
            "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 99, "max_position_embeddings": 32, "initializer_range": 0.2,
        },
        "aggregator_config": {
            "vision_feature_layers": [5, 3, 1], "num_attention_heads": 4, "intermediate_size": 37,
        },
        "text_config": {
            "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4,
            "adapter_hidden_size": 6,
        },
    }  # fmt: skip
    for name, part in parts.items():
        parts[name] = {**part, **fields.pop(name, {})}
    return LionConfig(**{"num_query_tokens": 5, "soft_prompt_token_id": SOFT_PROMPT, **parts, **fields})


def tiny_model(seed: int = 0, **fields: Any) -> LionForConditionalGeneration:
    """A model in eval mode in which no parameter has its initial value, so that none is without effect."""
    torch.manual_seed(seed)
    model = LionForConditionalGeneration(tiny_config(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_inputs(batch_size: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with prompts of different lengths, a soft prompt in the first half, and both tasks."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, 90, (batch_size, 7), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    input_ids[: batch_size // 2, 1] = SOFT_PROMPT
    for row in range(1, batch_size):
        input_ids[row, 7 - row % 4 :] = 0
        attention_mask[row, 7 - row % 4 :] = 0
    qformer_input_ids = torch.randint(3, 90, (batch_size, 4), generator=generator)
    qformer_attention_mask = torch.ones_like(qformer_input_ids)
    qformer_attention_mask[-1, 2:] = 0
    return {
        "pixel_values": torch.randn(batch_size, 3, 28, 28, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "qformer_input_ids": qformer_input_ids,
        "qformer_attention_mask": qformer_attention_mask,
        "task_type_ids": torch.arange(batch_size) % 2,
    }


def tiny_labels(batch_size: int = 4, seed: int = 1) -> torch.Tensor:
    """Answers of different lengths, padded with -100."""
    labels = torch.randint(3, 90, (batch_size, 5), generator=torch.Generator().manual_seed(seed))
    for row in range(batch_size):
        labels[row, 5 - row % 3 :] = -100
    return labels


def row_of(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One sample of a batch, without the batch's padding."""
    sample = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
    for ids, mask in (("input_ids", "attention_mask"), ("qformer_input_ids", "qformer_attention_mask")):
        length = int(sample[mask].sum())
        sample[ids], sample[mask] = sample[ids][:, :length], sample[mask][:, :length]
    return sample
