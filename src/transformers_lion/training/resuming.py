"""Going on with a training that was stopped, at whatever moment.

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
"""What the Trainer's first process writes last into a checkpoint."""

RANDOM_STATE = "rng_state_{}.pth"
"""What each of several processes writes last, when it comes to it."""

NO_WEIGHTS = "model.safetensors.index.json"
"""With no tensors in it, a checkpoint that the Trainer loads nothing from."""


def train(trainer: Seq2SeqTrainer) -> None:
    """Train, from the newest complete checkpoint in the Trainer's folder on if there is one.

    On a CPU in float32 the result is bit for bit that of a run that was never stopped. A checkpoint of the last step
    is only loaded.

    Raises:
        ValueError: if the checkpoint is one of what was trained alone, on another base.
    """
    checkpoint = last_checkpoint(trainer.args.output_dir)
    if checkpoint is None:
        trainer.train()
        return
    logger.info("Going on from %s.", checkpoint)
    if (checkpoint / INDEX).exists():
        load_trainable(trainer.model, checkpoint)
    with _trainer_view(checkpoint) as view:
        if not _is_finished(trainer, view):
            trainer.train(resume_from_checkpoint=str(view))
            return
        trainer._load_from_checkpoint(str(view))  # `train` would make a step too many
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TrainableCheckpointCallback):
            callback.restore()


@contextmanager
def _trainer_view(checkpoint: Path) -> Iterator[Path]:
    """A checkpoint as the Trainer knows it: of one of what is trained alone, it has the tensors already."""
    if (checkpoint / WEIGHTS).exists() or not (checkpoint / INDEX).exists():
        yield checkpoint
        return
    with TemporaryDirectory(prefix="lion-checkpoint-") as folder:
        for entry in checkpoint.resolve().iterdir():
            Path(folder, entry.name).symlink_to(entry)
        Path(folder, NO_WEIGHTS).write_text(json.dumps({"weight_map": {}}), encoding="utf-8")
        yield Path(folder)


def last_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint of the Trainer in `folder` that was written to its end."""
    numbered = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(folder).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    ]
    for _, path in sorted(numbered, reverse=True):
        if _read_state(path) is not None:
            return path
        logger.warning("%s is passed over: it was not written to its end.", path)
    return None


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state of the Trainer in a checkpoint, `None` if writing it was stopped in any process."""
    if not (checkpoint / STATE).exists():
        return None
    text = (checkpoint / STATE).read_text(encoding="utf-8")
    try:
        state = json.loads(text)
    except json.JSONDecodeError:  # half of it was written
        return None
    noted = (state.get("stateful_callbacks") or {}).get(NOTE, {})
    num_processes = noted.get("attributes", {}).get("num_processes", 1)
    others = [checkpoint / RANDOM_STATE.format(rank) for rank in range(num_processes) if num_processes > 1]
    return state if all(map(is_zipfile, others)) else None  # torch writes zip files, whose end says that they are whole


def _is_finished(trainer: Seq2SeqTrainer, checkpoint: Path) -> bool:
    """Whether a checkpoint is that of the last step."""
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    if trainer.args.max_steps > 0:
        return state.global_step >= trainer.args.max_steps
    return state.global_step >= state.max_steps and state.num_train_epochs >= math.ceil(trainer.args.num_train_epochs)


__all__ = ["last_checkpoint", "train"]
