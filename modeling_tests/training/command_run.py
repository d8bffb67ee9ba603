"""`lion train` in one process of several, which may be killed at a step of choice, and may take CPUs for GPUs.

Run by `test_distributed_command.py` under torchrun and `accelerate launch`.

    torchrun --nproc_per_node 2 command_run.py RECIPE KILL_AT CHANGE...
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from training.distributed_run import take_cpus_for_gpus
from training.recipe_run import KillAt
from transformers_lion.training import run_stages
from transformers_lion.training.distributed import check_sharded
from transformers_lion.training.run_settings import load_settings


class SeeShards(TrainerCallback):
    """Fails unless FSDP2 runs where it was asked for."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        check_sharded(model)


def run(recipe: Path, kill_at: int, changes: list[str]) -> None:
    """Run the recipe; each process kills itself after step `kill_at`, if that is not 0."""
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    callbacks = [*([KillAt(kill_at)] if kill_at else []), *([SeeShards()] if is_sharded else [])]
    make_trainer = run_stages.make_trainer
    run_stages.make_trainer = lambda *arguments, **options: make_trainer(*arguments, callbacks=callbacks, **options)
    if is_sharded:
        take_cpus_for_gpus()
    run_stages.run(load_settings(recipe, changes), progress_bar=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    if dist.is_initialized():
        dist.destroy_process_group()
