"""Memory for training: computed for the paper's models, and computed and measured for a small model.

    python benchmarks/training_memory.py

The small model has 0.15 billion random parameters and trains on a CPU, in one process or in two (gloo), with new
processes for each row. The measurement is the growth of the first process's resident memory, from before building the
model to the peak of the second step.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh

from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.training import apply_stage
from transformers_lion.training.distributed import shard_model
from transformers_lion.training.memory import enable_activation_checkpointing, training_memory

STAGE = "mixture"
PAPER = {
    "XL": LionConfig(),
    "XXL": LionConfig(text_config={"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240}),
}
PAPER_ROWS = [("ddp", 1), ("fsdp2", 8), ("fsdp2", 16), ("zero3", 8)]
PAPER_STEPS = [(16, False), (16, True), (1, True)]


def small_config(width: int) -> LionConfig:
    """Create a configuration with eight layers of the given width in each part, and four in the Q-Former."""
    heads = {"num_attention_heads": 8}
    return LionConfig(
        vision_config={"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 8, **heads},
        qformer_config={"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 4, **heads},
        aggregator_config={"vision_feature_layers": [7, 5, 3], "intermediate_size": 4 * width, **heads},
        text_config={"d_model": width, "d_kv": width // 8, "num_heads": 8, "d_ff": 2 * width, "num_layers": 8},
    )


SMALL, TINY = small_config(512), small_config(16)
LENGTHS = {"batch_size": 4, "prompt_length": 64, "question_length": 16, "answer_length": 16}
SMALL_METHODS = [("one process", "float32"), ("ddp", "float32"), ("fsdp2", "float32"), ("one process", "bfloat16")]
SMALL_ROWS = [(method, checkpointing, dtype) for method, dtype in SMALL_METHODS for checkpointing in (False, True)]

UNMAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Make the C library return the memory of freed tensors to the system."""


def status(key: str) -> int:
    """Return a value from this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def make_batch(config: LionConfig) -> dict[str, torch.Tensor]:
    """Create random inputs with the sizes in `LENGTHS`."""
    size, batch_size = config.vision_config.image_size, LENGTHS["batch_size"]
    shapes = {"input_ids": "prompt_length", "qformer_input_ids": "question_length", "labels": "answer_length"}
    batch = {name: torch.randint(3, 90, (batch_size, LENGTHS[length])) for name, length in shapes.items()}
    batch["pixel_values"] = torch.randn(batch_size, 3, size, size)
    batch["task_type_ids"] = torch.arange(batch_size) % 2
    return batch


def step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], dtype: str) -> None:
    """Run one training step."""
    with torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext():
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def measure(config: LionConfig, method: str, checkpointing: bool, dtype: str) -> int:
    """Measure the growth of this process's memory up to the peak of a second step."""
    batch = make_batch(config)
    before = status("VmRSS")
    torch.manual_seed(0)
    model: Any = LionForConditionalGeneration(config).train()
    apply_stage(model, STAGE)
    if checkpointing:
        enable_activation_checkpointing(model)
    if method == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif method == "fsdp2":
        model = shard_model(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    step(model, optimizer, batch, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step(model, optimizer, batch, dtype)
    return status("VmHWM") - before


def measure_here(method: str, checkpointing: bool, dtype: str) -> None:
    """Measure in this process, after a small step that loads all libraries. Only the first process prints."""
    torch.set_num_threads(1)
    if method != "one process":
        dist.init_process_group("gloo")
    measure(TINY, method, checkpointing, dtype)
    result = measure(SMALL, method, checkpointing, dtype)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print("RESULT", json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()


def measure_apart(method: str, checkpointing: bool, dtype: str) -> int:
    """Measure in new processes."""
    launcher = (
        [] if method == "one process" else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    )
    command = [sys.executable, *launcher, __file__, "--row", json.dumps([method, checkpointing, dtype])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **UNMAPPED}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(next(line for line in process.stdout.splitlines() if line.startswith("RESULT")).split(" ", 1)[1])


def computed_small(method: str, checkpointing: bool, dtype: str) -> int:
    """Compute a row with `training_memory`."""
    parallel = "ddp" if method == "one process" else method
    found = training_memory(
        SMALL,
        STAGE,
        parallel,
        2,
        activation_checkpointing=checkpointing,
        compute_dtype=getattr(torch, dtype),
        **LENGTHS,
    )
    return found.total - (found.communication if method == "one process" else 0)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}"


def paper_row(name: str, method: str, num_devices: int) -> str:
    """Format a row for a model of the paper: persistent memory, and the total for three kinds of steps."""
    cells = [name, method, str(num_devices)]
    for batch_size, checkpointing in PAPER_STEPS:
        options = {"batch_size": batch_size, "activation_checkpointing": checkpointing}
        found = training_memory(PAPER[name], STAGE, method, num_devices, **options)
        if len(cells) == 3:
            cells += map(gigabytes, (found.weights, found.gradients, found.optimizer, found.communication))
        cells += [f"{gigabytes(found.step)}, {gigabytes(found.total)}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print both tables, in GB."""
    print(f"torch {torch.__version__}, transformers {transformers.__version__}\n")
    steps = [f"batch {size}{', checkpointing' * checkpointing}: step, total" for size, checkpointing in PAPER_STEPS]
    heads = ["model", "method", "devices", "weights", "gradients", "optimizer", "communication", *steps]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in PAPER:
        for row in PAPER_ROWS:
            print(paper_row(name, *row), flush=True)
    heads = ["small model", "checkpointing", "compute dtype", "estimated", "measured", "estimated / measured"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in SMALL_ROWS:
        computed, measured = computed_small(*row), measure_apart(*row)
        method, checkpointing, dtype = row
        cells = [method, "yes" if checkpointing else "no", dtype, f"{computed / 1e9:.2f}", f"{measured / 1e9:.2f}"]
        print(f"| {' | '.join(cells)} | {computed / measured:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", help="measure one row of the small model in this process")
    options = parser.parse_args()
    if options.row:
        measure_here(*json.loads(options.row))
    else:
        main()
