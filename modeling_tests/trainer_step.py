"""One optimisation step of the stock Trainer on four fixed samples; prints the logged loss and gradient norm.

Run by `test_trainer.py`, also under torchrun.
"""

import argparse
import json
import tempfile
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from factories import NO_DROPOUT, tiny_inputs, tiny_labels, tiny_model


def samples() -> list[dict[str, torch.Tensor]]:
    """Four samples whose answers have different lengths, so that a mean of means would be another number."""
    columns = {**tiny_inputs(), "labels": tiny_labels()}
    return [{name: column[row] for name, column in columns.items()} for row in range(4)]


def step(batch_size: int, accumulation: int) -> dict[str, float]:
    """Loss and gradient norm of one step over all four samples."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=1,
            logging_steps=1, learning_rate=1e-3, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            remove_unused_columns=False, seed=0, full_determinism=False,
        )  # fmt: skip
        model: Any = tiny_model(**NO_DROPOUT)
        for layer in model.qformer.encoder.layer[-1:]:  # what no output depends on gets no gradient under DDP
            layer.intermediate.requires_grad_(False)
            layer.output.requires_grad_(False)
        trainer = Trainer(model, arguments, train_dataset=samples())
        trainer.train()
        log = trainer.state.log_history[0]
        return {"loss": float(log["loss"]), "grad_norm": float(log["grad_norm"])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--accumulation", type=int, default=1)
    options = parser.parse_args()
    result = step(options.batch_size, options.accumulation)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print("RESULT", json.dumps(result))
