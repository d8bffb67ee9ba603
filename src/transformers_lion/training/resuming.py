"""Resumes training that was interrupted at any moment.

Reading order: `train`, `last_checkpoint`.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import is_zipfile

from transformers import Seq2SeqTrainer, TrainerState

from .callbacks import NOTE, WEIGHTS, TrainableCheckpointCallback
from .trainable_checkpoints import INDEX, load_trainable

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
"""The file that the Trainer's first process writes last to a checkpoint."""

RANDOM_STATE = "rng_state_{}.pth"
"""The file that each of several processes writes last."""

NO_WEIGHTS = "model.safetensors.index.json"
"""An index without tensors makes the Trainer load no weights from a checkpoint."""


def train(trainer: Seq2SeqTrainer) -> None:
    """Train, and resume from the latest complete checkpoint in the output folder if there is one.

    On a CPU in float32, the result is bit-identical to that of an uninterrupted run. If the checkpoint is that of the
    last step, it is only loaded.

    Raises:
        ValueError: if the checkpoint has only trained parameters, and the model has a different base.
    """
    checkpoint = last_checkpoint(trainer.args.output_dir)
    if checkpoint is None:
        trainer.train()
        return
    logger.info("Resuming from %s.", checkpoint)
    if (checkpoint / INDEX).exists():
        load_trainable(trainer.model, checkpoint)
    with _trainer_view(checkpoint) as view:
        if not _is_finished(trainer, view):
            trainer.train(resume_from_checkpoint=str(view))
            return
        trainer._load_from_checkpoint(str(view))  # `train` would run one step too many
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TrainableCheckpointCallback):
            callback.restore()


@contextmanager
def _trainer_view(checkpoint: Path) -> Iterator[Path]:
    """Yield a checkpoint that the Trainer can resume from; trained parameters alone are already loaded."""
    if (checkpoint / WEIGHTS).exists() or not (checkpoint / INDEX).exists():
        yield checkpoint
        return
    with TemporaryDirectory(prefix="lion-checkpoint-") as folder:
        for entry in checkpoint.resolve().iterdir():
            Path(folder, entry.name).symlink_to(entry)
        Path(folder, NO_WEIGHTS).write_text(json.dumps({"weight_map": {}}), encoding="utf-8")
        yield Path(folder)


def last_checkpoint(folder: str | os.PathLike) -> Path | None:
    """Return the latest complete checkpoint of the Trainer in `folder`, if any."""
    numbered = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(folder).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    ]
    for _, path in sorted(numbered, reverse=True):
        if _read_state(path) is not None:
            return path
        logger.warning("Skipping %s: it is incomplete.", path)
    return None


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    """Return the Trainer's state in a checkpoint, `None` if any process did not finish writing it."""
    if not (checkpoint / STATE).exists():
        return None
    text = (checkpoint / STATE).read_text(encoding="utf-8")
    try:
        state = json.loads(text)
    except json.JSONDecodeError:  # partially written
        return None
    noted = (state.get("stateful_callbacks") or {}).get(NOTE, {})
    num_processes = noted.get("attributes", {}).get("num_processes", 1)
    others = [checkpoint / RANDOM_STATE.format(rank) for rank in range(num_processes) if num_processes > 1]
    return state if all(map(is_zipfile, others)) else None  # torch writes zip files; only complete ones have an end


def _is_finished(trainer: Seq2SeqTrainer, checkpoint: Path) -> bool:
    """Whether a checkpoint was saved at the last step."""
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    if trainer.args.max_steps > 0:
        return state.global_step >= trainer.args.max_steps
    return state.global_step >= state.max_steps and state.num_train_epochs >= math.ceil(trainer.args.num_train_epochs)


__all__ = ["last_checkpoint", "train"]
