"""The loop of stage 0: fixed steps, checkpoints that a killed run continues from, and a log with the curve.

Matrices of the blocks are trained by Muon (https://kellerjordan.github.io/posts/muon/, as PyTorch has it), all else by
AdamW; the learning rate warms up, stays, and falls to zero.
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
    """How long and how fast.

    Attributes:
        num_steps: in all.
        learning_rate: of both optimizers at its height.
        weight_decay: of the matrices.
        warmup: steps until the learning rate is at its height.
        decay: share of the steps at the end over which it falls to zero.
        save_every: steps between checkpoints.
        bf16: compute in bfloat16 where autocast does.
    """

    num_steps: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.03
    warmup: int = 100
    decay: float = 0.45
    save_every: int = 250
    bf16: bool = True

    def factor(self, step: int) -> float:
        """Of the learning rate at a step."""
        rest = (self.num_steps - step) / (self.decay * self.num_steps)
        return min(1.0, (step + 1) / self.warmup, max(0.0, rest))


def _build_optimizers(model: nn.Module, is_matrix: Callable[[str], bool], settings: LoopSettings) -> list[Any]:
    """Muon for the trainable matrices that `is_matrix` names, AdamW for the other trainable parameters."""
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
    """Train, from the last checkpoint in `folder` if there is one.

    Args:
        model: whose trainable parameters are trained.
        loss_of: from a batch to its loss.
        batches_from: from a step to the batches from there on; the same whenever it is asked.
        is_matrix: whether a parameter of that name belongs to Muon if it is a matrix.
        settings: see `LoopSettings`.
        folder: gets `checkpoint.pt` and `log.jsonl`.
        evaluate: figures for the log at each checkpoint.
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
