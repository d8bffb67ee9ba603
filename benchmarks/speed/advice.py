"""Memory that the paper's models need to answer, computed from configurations, as `lion info` does."""

import re
from typing import Any

import torch

from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.cli.info import memory

from .sections import Bench

PAPER = {
    "XL": LionConfig(),
    "XXL": LionConfig(text_config={"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240}),
}
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
GENERATION = {"num_beams": 1, "max_new_tokens": 256}
NUM_BEAMS = 5


def kept_in_float32(model: LionForConditionalGeneration) -> int:
    """Numbers that stay in float32 when a model is loaded in float16."""
    patterns = model.language_model._keep_in_fp32_modules
    return sum(
        tensor.numel()
        for name, tensor in model.named_parameters()
        if any(re.match(pattern, name) for pattern in patterns)
    )


def paper_memory(bench: Bench) -> list[dict[str, Any]]:
    """GB of weights, of the largest layer's work, and of the cache of each beam; and what five beams need in all."""
    found = []
    for name, config in PAPER.items():
        with torch.device("meta"):
            model = LionForConditionalGeneration(config)
        for dtype, itemsize in DTYPES.items():
            parts = memory(model, config, GENERATION, itemsize)
            weights = parts["weights"] + (2 * kept_in_float32(model) if dtype == "float16" else 0)
            work, cache = parts["estimated_activations"], parts["estimated_cache"]
            total = weights + work + NUM_BEAMS * cache
            sizes = {"weights": weights, "activations": work, "cache of a beam": cache, "with 5 beams": total}
            found.append({"model": name, "dtype": dtype, **{key: value / 1e9 for key, value in sizes.items()}})
    return found
