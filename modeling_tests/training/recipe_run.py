"""A short training by the recipe, on a shuffled mixture and with dropout; prints the figures that it logged.

Run by `test_recipe.py`, which kills it with SIGKILL at a step of its choice.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainer, TrainerCallback

from transformers_lion import LionForConditionalGeneration, LionProcessor
from transformers_lion.training import apply_stage, load_records, make_trainer, mix_datasets, train, training_arguments

NUM_STEPS = 7


class KillAt(TrainerCallback):
    """Kills its own process, without a chance to clean up, after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, lion: Path, output: Path, kill_at: int = 0, **options: Any) -> Seq2SeqTrainer:
    """A trainer that makes the same steps whenever it is asked."""
    processor = LionProcessor.from_pretrained(lion)
    sources = [load_records(folder / f"{name}.json") for name in ("a", "b")]
    model = LionForConditionalGeneration.from_pretrained(lion)
    apply_stage(model, "mixture")
    arguments = training_arguments(
        output, per_device_train_batch_size=2, max_steps=NUM_STEPS, learning_rate=1e-3, bf16=False, use_cpu=True,
        logging_steps=2, save_steps=3, disable_tqdm=True, **options.pop("arguments", {}),
    )  # fmt: skip
    callbacks = [KillAt(kill_at)] if kill_at else []
    data = mix_datasets(sources, [2, 1])
    return make_trainer(model, processor, arguments, data, callbacks=callbacks, **options)


def metrics(trainer: Seq2SeqTrainer) -> list[dict[str, Any]]:
    """What was logged at each step, but for times."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, lion, output = map(Path, sys.argv[1:4])
    options = json.loads(sys.argv[4])
    trainer = build(folder, lion, output, **options)
    train(trainer)
    print(json.dumps(metrics(trainer)))
