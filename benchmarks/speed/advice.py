"""Memory that the paper's models need to answer, computed from configurations, as `lion info` does."""

from typing import Any

import torch

from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.cli.info import DTYPES, memory
from transformers_lion.cli.placement import kept_in_float32

from .sections import Bench

PAPER = {
    "XL": LionConfig(),
    "XXL": LionConfig(text_config={"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240}),
}
GENERATION = {"num_beams": 1, "max_new_tokens": 256}
NUM_BEAMS = 5


def paper_memory(bench: Bench) -> list[dict[str, Any]]:
    """GB of weights, of the largest layer's work, and of the cache of each beam; and what five beams need in all."""
    found = []
    for name, config in PAPER.items():
        with torch.device("meta"):
            model = LionForConditionalGeneration(config)
        kept = sum(model.get_parameter(name).numel() for name in kept_in_float32(model))
        for dtype, itemsize in DTYPES.items():
            parts = memory(model, config, GENERATION, itemsize)
            weights = parts["weights"] + (2 * kept if dtype == "float16" else 0)
            work, cache = parts["estimated_activations"], parts["estimated_cache"]
            total = weights + work + NUM_BEAMS * cache
            sizes = {"weights": weights, "activations": work, "cache of a beam": cache, "with 5 beams": total}
            found.append({"model": name, "dtype": dtype, **{key: value / 1e9 for key, value in sizes.items()}})
    return found
