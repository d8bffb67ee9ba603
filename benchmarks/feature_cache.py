"""Training steps with and without the feature cache, at the XL model's widths with a quarter of its depths.

    python benchmarks/feature_cache.py [--rounds 5]

Weights are random and seeded. In each round, the same batch takes a step in which the tower runs (as in every epoch
without the cache), one in which the cache is empty (the first epoch), and one in which it holds all images (later
epochs); so all three see the same load of the machine. Steps are forward, backward and AdamW, without the data loader.
Times are processor seconds of one thread. The last columns count the floating-point operations of a step (forward and
backward) with and without the tower, for the measured size and for the XL model in full: the ratio that the cache
comes to if reading it takes no time. `benchmarks/feature_cache.md` holds a result.
"""

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.training import FeatureCache, apply_stage
from transformers_lion.training.feature_cache import image_bytes

STAGES = ("image_level", "region_level", "released")
BRANCHES = {"image_level": "qformer", "region_level": "aggregator", "released": "both"}
LENGTHS = {"input_ids": 40, "qformer_input_ids": 12, "labels": 12}
"""Tokens of a sample: the prompt with its tags, the question alone, and the answer."""

KINDS = ("without", "first epoch", "second epoch")


def quarter_config(stage: str) -> LionConfig:
    """XL's widths; 10 of 39 blocks, 3 of 12 layers in the Q-Former, 1 of 2 in the aggregator, 6 + 6 of 24 + 24."""
    return LionConfig(
        visual_branch=BRANCHES[stage],
        vision_config={"num_hidden_layers": 10},
        qformer_config={"num_hidden_layers": 3},
        aggregator_config={"vision_feature_layers": [9, 6]},
        text_config={"num_layers": 6, "num_decoder_layers": 6, "num_adapters": 2 if stage == "released" else 1},
    )


def make_batch(model: LionForConditionalGeneration, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Random inputs: each sample has an image of its own."""
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vision_config.image_size
    batch = {
        name: torch.randint(3, 9000, (batch_size, length), generator=generator) for name, length in LENGTHS.items()
    }
    batch["pixel_values"] = torch.randn(batch_size, 3, size, size, generator=generator)
    batch["task_type_ids"] = torch.arange(batch_size) % 2
    return batch


def step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any], cache: FeatureCache | None) -> float:
    """Take a step, and return its loss."""
    torch.manual_seed(0)  # of dropout
    if cache is not None:
        batch = cache.apply(model, batch)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def full_config(stage: str) -> LionConfig:
    """XL in full."""
    num_adapters = 2 if stage == "released" else 1
    return LionConfig(visual_branch=BRANCHES[stage], text_config={"num_adapters": num_adapters})


def operations_ratio(stage: str, config: LionConfig, batch_size: int) -> float:
    """Floating-point operations of a step without the cache, over those of a step that finds all images in it."""
    with torch.device("meta"):
        model = LionForConditionalGeneration(config).train()
    apply_stage(model, stage)
    batch: dict[str, Any] = {name: x.to("meta") for name, x in make_batch(model, batch_size, 0).items()}
    looks_at_no_values = patch.object(torch.compiler, "is_exporting", lambda: True)  # there are none on this device
    with looks_at_no_values, FlopCounterMode(display=False) as whole:
        model(**batch).loss.backward()
    with FlopCounterMode(display=False) as tower, torch.no_grad():
        model.get_vision_states(batch["pixel_values"])
    total, saved = whole.get_total_flops(), tower.get_total_flops()
    return total / (total - saved)


def measure(stage: str, rounds: int, batch_size: int) -> dict[str, Any]:
    """Median seconds of each kind of step, and the bytes of an image."""
    torch.manual_seed(0)
    model = LionForConditionalGeneration(quarter_config(stage)).train()
    apply_stage(model, stage)
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=0.0, weight_decay=0.0)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder)
        for number in range(rounds + 1):  # the first one warms up: the weights are digested
            batch = make_batch(model, batch_size, number)
            losses = []
            for kind in KINDS:
                start = time.process_time()
                losses.append(step(model, optimizer, batch, None if kind == "without" else cache))
                if number:
                    seconds[kind].append(time.process_time() - start)
            assert len(set(losses)) == 1, losses
        start = time.process_time()
        with torch.no_grad():
            model.get_vision_states(batch["pixel_values"])
        tower = time.process_time() - start
    return {**{kind: statistics.median(x) for kind, x in seconds.items()}, "tower": tower, "bytes": image_bytes(model)}


def processor_name() -> str:
    """The processor, as the system names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main(rounds: int, batch_size: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        f"{processor_name()}, one thread, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; batch {batch_size}, float32, medians of {rounds}; load "
        f"{os.getloadavg()[0]:.1f}\n"
    )
    heads = ["stage", *(f"{kind}, s" for kind in KINDS), "tower alone, s", "without / second epoch"]
    heads += ["by operations", "by operations, XL in full", "MB an image"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for stage in STAGES:
        found = measure(stage, rounds, batch_size)
        times = [f"{found[kind]:.2f}" for kind in (*KINDS, "tower")]
        ratios = [found["without"] / found["second epoch"]]
        ratios += [operations_ratio(stage, of(stage), batch_size) for of in (quarter_config, full_config)]
        cells = [stage, *times, *(f"{ratio:.2f}" for ratio in ratios), f"{found['bytes'] / 1e6:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    main(options.rounds, options.batch_size)
