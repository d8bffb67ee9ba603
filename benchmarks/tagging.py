"""Full-size tagging on the CPU.

    python benchmarks/tagging.py [--repeats 3] [--threads 1] [--output benchmarks/tagging.md]

The weights are random (Swin-L, 4585 tags). "optimized" is the model after `optimize_for_inference`, which the tagger's
`from_pretrained` calls. "Products" are its matrix products alone, which limit what any optimization can gain: each
shape as often as it occurs for one image, as `torch.nn.functional.linear` and as a float32 pack.

The best time is reported. Times are processor time over all threads, which other processes on the machine hardly
affect: with one thread, they give the images per second of one idle core. Peak memory is that of a separate process.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from machine import cpu_name

from transformers_lion.cpu_inference import optimize_for_inference
from transformers_lion.cpu_inference.packs import Float32Pack
from transformers_lion.ram import RamConfig, RamForImageTagging
from transformers_lion.ram.tag_cache import weights_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("float32", "float32, optimized", "bfloat16", "bfloat16, float16 packs")
BATCH_SIZES = (1, 8)


def head(model: RamForImageTagging, image_embeds: torch.Tensor) -> torch.Tensor:
    """Run the part of `forward` after the vision tower."""
    queries = model.get_label_queries(image_embeds.device).expand(len(image_embeds), -1, -1)
    return model.classifier(model.head(queries, image_embeds).last_hidden_state).squeeze(-1)


def build(form: str, batch_size: int) -> tuple[RamForImageTagging, torch.Tensor]:
    torch.manual_seed(0)
    dtype, _, change = form.partition(", ")
    model = RamForImageTagging(RamConfig()).eval().to(DTYPES[dtype])
    if change:
        optimize_for_inference(model, weights="float16" if dtype == "bfloat16" else "float32")
    return model, torch.randn(batch_size, 3, 384, 384).to(model.dtype)


@torch.no_grad()
def measure_products() -> None:
    """Print the seconds of the products for one image, as linear layers and as packs, and their operations."""
    torch.manual_seed(0)
    model = RamForImageTagging(RamConfig()).eval()
    shapes: Counter[tuple[int, int, int]] = Counter()
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.register_forward_hook(
                lambda layer, args, output: shapes.update([(args[0].numel() // args[0].shape[-1], *layer.weight.shape)])
            )
    model(torch.randn(1, 3, 384, 384))
    totals, operations = [0.0, 0.0], 0
    for (rows, outputs, inputs), count in shapes.items():
        weight, states = torch.randn(outputs, inputs), torch.randn(rows, inputs)
        ways = partial(torch.nn.functional.linear, weight=weight), Float32Pack([weight])
        for index, way in enumerate(ways):
            totals[index] += count * min(seconds(partial(way, states)) for _ in range(3))
        operations += 2 * count * rows * outputs * inputs
    print(*totals, operations)


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@torch.no_grad()
def measure_times(dtype: str, batch_size: int, repeats: int) -> None:
    """Print the best times of the tagger, of its head alone, and of the additional work of `ImageTagger`, in "
    "seconds."""
    model, pixels = build(dtype, batch_size)
    image_embeds = torch.randn(batch_size, 145, 512).to(model.dtype)
    whole = min(seconds(partial(model, pixels)) for _ in range(repeats))
    alone = min(seconds(partial(head, model, image_embeds)) for _ in range(2 * repeats))
    print(whole, alone, min(seconds(partial(weights_state, model)) for _ in range(5)))


@torch.no_grad()
def measure_memory(dtype: str, batch_size: int) -> None:
    """Print the peak resident memory in MB."""
    model, pixels = build(dtype, batch_size)
    model(pixels)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_process(*arguments: object) -> list[float]:
    """Return the numbers that a new process prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return [float(word) for word in subprocess.check_output(command, text=True).split()]


def table(repeats: int, threads: int) -> str:
    """Format the results in Markdown."""
    lines = [
        "# Tagging",
        "",
        f"`python benchmarks/tagging.py --repeats {repeats} --threads {threads}`: full-size `RamForImageTagging` "
        f"(Swin-L, 384 pixels, 4585 tags, random weights) on {cpu_name()}, {threads} of {os.cpu_count()} cores, torch "
        f"{torch.__version__}, transformers {transformers.__version__}. Best of {repeats} runs, in CPU time.",
        "",
        "| weights | batch size | images/s | head only, ms per image | peak MB | weight check in `ImageTagger`, ms |",
        "|" + "---|" * 6,
    ]
    for dtype in FORMS:
        for batch_size in BATCH_SIZES:
            whole, alone, check = in_process("times", dtype, batch_size, threads, repeats)
            [memory] = in_process("memory", dtype, batch_size, threads)
            lines.append(
                f"| {dtype} | {batch_size} | {batch_size / whole:.3f} | {1000 * alone / batch_size:.0f} | "
                f"{memory:.0f} | {1000 * check:.1f} |"
            )
    plain, packed, operations = in_process("products", "float32", 1, threads)
    lines += [
        "",
        f"The matrix products of one image, {operations / 1e9:.0f} billion operations, take {plain:.2f} s as linear "
        f"layers and {packed:.2f} s as float32 packs.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] in (["times"], ["memory"], ["products"]):
        task, dtype, batch_size, threads, *repeats = sys.argv[1:]
        torch.set_num_threads(int(threads))
        if task == "times":
            return measure_times(dtype, int(batch_size), int(repeats[0]))
        return measure_products() if task == "products" else measure_memory(dtype, int(batch_size))
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
