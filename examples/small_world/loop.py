"""The training loop of stage 0, with a fixed number of steps, resumable checkpoints, and a log.

Muon (https://kellerjordan.github.io/posts/muon/, PyTorch's implementation) trains the matrices of the blocks, and AdamW
all other parameters. The learning rate warms up, stays constant, and decays to zero.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop.

    Attributes:
        num_steps: total number of steps.
        learning_rate: peak learning rate of both optimizers.
        weight_decay: weight decay of matrices.
        warmup: number of warmup steps.
        decay: fraction of the steps, at the end, over which the learning rate decays to zero.
        save_every: number of steps between checkpoints.
        bf16: whether to use autocast with bfloat16.
    """

    num_steps: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.03
    warmup: int = 100
    decay: float = 0.45
    save_every: int = 250
    bf16: bool = True

    def factor(self, step: int) -> float:
        """Return the factor on the learning rate at a step."""
        rest = (self.num_steps - step) / (self.decay * self.num_steps)
        return min(1.0, (step + 1) / self.warmup, max(0.0, rest))


def _build_optimizers(model: nn.Module, is_matrix: Callable[[str], bool], settings: LoopSettings) -> list[Any]:
    """Create Muon for the trainable matrices that `is_matrix` selects, and AdamW for other trainable parameters."""
    named = [(name, x) for name, x in model.named_parameters() if x.requires_grad]
    matrices = [x for name, x in named if x.ndim == 2 and is_matrix(name)]
    others = [x for name, x in named if not (x.ndim == 2 and is_matrix(name))]
    rate = settings.learning_rate
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.97), weight_decay=0.0)]


def run_loop(
    model: nn.Module,
    loss_of: Callable[[Any], torch.Tensor],
    batches_from: Callable[[int], Iterator[Any]],
    is_matrix: Callable[[str], bool],
    settings: LoopSettings,
    folder: Path,
    evaluate: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Train, and resume from the last checkpoint in `folder` if there is one.

    Args:
        model: the model; its trainable parameters are trained.
        loss_of: computes the loss of a batch.
        batches_from: yields the batches from a given step on; it must be deterministic.
        is_matrix: whether Muon trains a parameter with a given name, if it is a matrix.
        settings: settings of the loop.
        folder: folder for `checkpoint.pt` and `log.jsonl`.
        evaluate: returns metrics for the log at each checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _build_optimizers(model, is_matrix, settings)
    file, step, seconds = folder / "checkpoint.pt", 0, 0.0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, seconds = saved["step"], saved["seconds"]
    start, mean_loss, trained = time.time() - seconds, 0.0, [x for x in model.parameters() if x.requires_grad]
    stream = batches_from(step) if step < settings.num_steps else iter(())
    while step < settings.num_steps:
        model.train()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.factor(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            loss = loss_of(next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean_loss += loss.item()
        step += 1
        if step % 50 == 0:
            log(folder, step=step, loss=round(mean_loss / 50, 4), seconds=round(time.time() - start))
            mean_loss = 0.0
        if step % settings.save_every == 0 or step == settings.num_steps:
            if evaluate is not None:
                model.eval()
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
                    log(folder, step=step, **evaluate())
            state = {"model": model.state_dict(), "optimizers": [x.state_dict() for x in optimizers], "step": step}
            torch.save({**state, "seconds": time.time() - start}, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)


def log(folder: Path, **metrics: Any) -> None:
    """Add a line to the log, and print it."""
    line = json.dumps(metrics)
    print(folder.name, line, flush=True)
    with (folder / "log.jsonl").open("a") as stream:
        stream.write(line + "\n")


__all__ = ["LoopSettings", "run_loop"]
