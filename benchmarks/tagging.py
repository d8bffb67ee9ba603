"""Tagging at full size on the CPU: the package's forward against a plain composition that recomputes everything.

    python benchmarks/tagging.py [--repeats 3] [--threads 1] [--output benchmarks/tagging.md]

Both run the same weights (random, Swin-L, 4585 tags). The plain composition projects the labels in each call, repeats
them for each image, and projects the first layer's queries of each image. The package does both once, and afterwards
compares the weights. Times are taken in turns and the best is reported. They are processor time over all threads, which
other work on the machine hardly moves: with one thread, images per second of one undisturbed core. Peak memory is that
of a process that does only one of the two.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers

from transformers_lion.ram import RamConfig, RamForImageTagging
from transformers_lion.ram.tag_cache import weights_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_SIZES = (1, 8)
Forward = Callable[[RamForImageTagging, torch.Tensor], torch.Tensor]


def plain_head(model: RamForImageTagging, image_embeds: torch.Tensor) -> torch.Tensor:
    """Everything anew, for each image."""
    labels = torch.relu(model.label_projection(model.label_embeddings.weight))
    queries = labels.unsqueeze(0).repeat(len(image_embeds), 1, 1)
    return model.classifier(model.head(queries, image_embeds).last_hidden_state).squeeze(-1)


def package_head(model: RamForImageTagging, image_embeds: torch.Tensor) -> torch.Tensor:
    """What `forward` does behind the vision tower."""
    queries = model.get_label_queries(image_embeds.device)
    hidden_states = queries.hidden_states.expand(len(image_embeds), -1, -1)
    outputs = model.head(hidden_states, image_embeds, queries.query_states)
    return model.classifier(outputs.last_hidden_state).squeeze(-1)


def plain(model: RamForImageTagging, pixel_values: torch.Tensor) -> torch.Tensor:
    """The vision tower and the plain head."""
    return plain_head(model, model.get_image_features(pixel_values).pooler_output)


def package(model: RamForImageTagging, pixel_values: torch.Tensor) -> torch.Tensor:
    """As users call it."""
    return model(pixel_values).logits


VARIANTS: dict[str, Forward] = {"plain": plain, "package": package}
HEADS: dict[str, Forward] = {"plain": plain_head, "package": package_head}


def build(dtype: str, batch_size: int) -> tuple[RamForImageTagging, torch.Tensor]:
    torch.manual_seed(0)
    model = RamForImageTagging(RamConfig()).eval().to(DTYPES[dtype])
    return model, torch.randn(batch_size, 3, 384, 384).to(DTYPES[dtype])


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def best_seconds(
    variants: dict[str, Forward], model: RamForImageTagging, inputs: torch.Tensor, repeats: int
) -> list[float]:
    """The best of each variant, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, forward in variants.items():
            times[name].append(seconds(partial(forward, model, inputs)))
    return [min(taken) for taken in times.values()]


@torch.no_grad()
def measure_times(dtype: str, batch_size: int, repeats: int) -> None:
    """Print the best seconds of each variant, of each head alone, and of the parts that differ."""
    model, pixels = build(dtype, batch_size)
    difference = (plain(model, pixels) - package(model, pixels)).abs().max()
    assert difference < (1e-4 if dtype == "float32" else 0.1), difference
    whole = best_seconds(VARIANTS, model, pixels, repeats)
    image_embeds = torch.randn(batch_size, 145, 512).to(DTYPES[dtype])
    heads = best_seconds(HEADS, model, image_embeds, 2 * repeats)
    parts = {
        "compute": min(seconds(lambda: model._compute_label_queries(pixels.device)) for _ in range(5)),
        "compare": min(seconds(lambda: model.get_label_queries(pixels.device)) for _ in range(5)),
        "tagger": min(seconds(lambda: weights_state(model)) for _ in range(5)),
    }
    print(*whole, *heads, *parts.values())


@torch.no_grad()
def measure_memory(dtype: str, batch_size: int, variant: str) -> None:
    """Print the peak resident memory in MB."""
    model, pixels = build(dtype, batch_size)
    VARIANTS[variant](model, pixels)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_process(*arguments: object) -> list[float]:
    """The numbers that a fresh process prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return [float(word) for word in subprocess.check_output(command, text=True).split()]


def table(repeats: int, threads: int) -> str:
    """The results in Markdown."""
    lines = [
        "# Tagging",
        "",
        f"`python benchmarks/tagging.py --repeats {repeats} --threads {threads}`: `RamForImageTagging` at full size "
        f"(Swin-L, 384 pixels, 4585 tags, random weights) on {cpu_name()}, {threads} of {os.cpu_count()} cores, torch "
        f"{torch.__version__}, transformers {transformers.__version__}. The best of {repeats}; seconds are processor "
        "time.",
        "",
        "| dtype | batch | images/s, plain | package | | head alone, ms an image, plain | package | "
        "| peak MB, plain | package |",
        "|" + "---|" * 10,
    ]
    parts: dict[str, list[float]] = {}
    for dtype in DTYPES:
        for batch_size in BATCH_SIZES:
            slow, fast, slow_head, fast_head, *parts[dtype] = in_process("times", dtype, batch_size, threads, repeats)
            memory = {name: in_process("memory", dtype, batch_size, threads, name)[0] for name in VARIANTS}
            speeds = f"{batch_size / slow:.3f} | {batch_size / fast:.3f} | {slow / fast - 1:+.1%}"
            milliseconds = [1000 * head / batch_size for head in (slow_head, fast_head)]
            heads = "{:.0f} | {:.0f}".format(*milliseconds) + f" | {slow_head / fast_head - 1:+.1%}"
            lines.append(
                f"| {dtype} | {batch_size} | {speeds} | {heads} | {memory['plain']:.0f} | {memory['package']:.0f} |"
            )
    lines += [
        "",
        "What is saved, and what the saving costs, in milliseconds a call:",
        "",
        "| dtype | label queries computed | kept ones compared | `ImageTagger`: have any weights changed? |",
        "|---|---|---|---|",
    ]
    lines += [f"| {dtype} | " + " | ".join(f"{1000 * part:.1f}" for part in parts[dtype]) + " |" for dtype in DTYPES]
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor()


def main() -> None:
    if sys.argv[1:2] in (["times"], ["memory"]):
        task, dtype, batch_size, threads, last = sys.argv[1:]
        torch.set_num_threads(int(threads))
        if task == "times":
            return measure_times(dtype, int(batch_size), int(last))
        return measure_memory(dtype, int(batch_size), last)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    text = table(arguments.repeats, arguments.threads)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    return None


if __name__ == "__main__":
    main()
