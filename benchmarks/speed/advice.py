"""Memory that the paper's models need for answering, computed from configurations like `lion info`."""

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
    """Compute the memory in GB for weights, activations of the largest layer, the cache per beam, and the total for
    five beams.
    """
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
