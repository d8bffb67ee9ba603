"""Peak memory of each side, in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .measures import Row, Settings
from .models import SIZES, make_inputs, make_labels
from .sections import TRAINING_BATCH, Bench, training_step
from .sides import build_sides

ROOT = Path(__file__).parents[2]
TASKS = ("answer", "training")
UNMAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Make the C library return freed memory to the system, so that the peak shows memory in use."""


def peak_bytes() -> int:
    """Return the peak memory of this program. (`ru_maxrss` would include that of its parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measure_here(settings: Settings, side_name: str, task: str) -> dict[str, int]:
    """Measure the peaks before building a model, of building it, and of running the task."""
    size = SIZES[settings.size]
    libraries = peak_bytes()
    [side] = build_sides(size, (side_name,))
    built = peak_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    if task == "training":
        step = training_step(side, make_inputs(size, TRAINING_BATCH), make_labels(size, TRAINING_BATCH))
        step()
        step()
    else:
        with torch.no_grad():
            side.answer(make_inputs(size, 4), 5, settings.new_tokens)
    return {"libraries": libraries, "model": built, "peak": peak_bytes()}


def measure_apart(settings: Settings, side_name: str, task: str) -> dict[str, int]:
    """Measure in a new process."""
    options = ["--size", settings.size, "--threads", str(settings.threads), "--new-tokens", str(settings.new_tokens)]
    command = [sys.executable, "-m", "benchmarks.speed", *options, "--peak", side_name, task]
    environment = {**os.environ, **UNMAPPED}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def memory(bench: Bench) -> list[Row]:
    """Measure the peaks of answers with 5 beams at batch 4, and of training."""
    titles = {"answer": "peak memory, answer, 5 beams, batch 4", "training": "peak memory, training step, batch 4"}
    sides = ("lion", "composed") if bench.settings.quick else ("lion", "instructblip", "composed")
    rows = []
    for task in TASKS:
        found = {name: measure_apart(bench.settings, name, task) for name in sides}
        values = {name: [peaks["peak"] / 1e9] for name, peaks in found.items()}
        rows.append(Row(titles[task], "GB", values, {"before any model, and of building it": found}))
    return rows
