"""Callbacks for the stock Trainer.

`CheckpointLogCallback` makes the logs of a resumed run continue exactly. `TrainableCheckpointCallback` writes
checkpoints of only the trained parameters.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling_lion import LionForConditionalGeneration
from .distributed import gather_model
from .stages import Stage
from .trainable_checkpoints import INDEX, TENSORS, save_trainable

WEIGHTS = "model.safetensors"
"""The Trainer's file name for the tensors of a checkpoint."""

FSDP_FILE, FSDP_FOLDER = "pytorch_model_fsdp.bin", "pytorch_model_fsdp_0"
"""accelerate's names for the tensors with FSDP2: as a whole, and in shards."""

NOTE = "CheckpointLogCallback"
"""The key of this callback's entry in the Trainer's state."""


class CheckpointLogCallback(TrainerCallback):
    """Makes the Trainer log before each checkpoint, and record how many processes write the checkpoint.

    A logged loss is the mean since the previous log, but checkpoints do not contain the running sum. Logging before
    each checkpoint leaves no pending sum, so the log of a resumed run matches that of an uninterrupted run.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record in the state, and so in each checkpoint, how many processes save their random states."""
        num_processes = 1 if args.save_only_model else args.world_size
        state.stateful_callbacks[NOTE] = {"args": {}, "attributes": {"num_processes": num_processes}}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log if this step is saved, or may be saved after evaluation."""
        control.should_log |= control.should_save or control.should_evaluate

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do the same for the last step of an epoch."""
        control.should_log |= control.should_save or control.should_evaluate


class TrainableCheckpointCallback(TrainerCallback):
    """Makes the Trainer write only the trained parameters to its checkpoints.

    Instead of `model.safetensors`, each checkpoint contains the files of `save_trainable`, which `load_trainable`
    reads, so that it cannot be mistaken for a whole model. Resume with `train`, which checks that the model has the
    same base.

    Args:
        stage: the stage to record in the checkpoints.
    """

    def __init__(self, stage: str | int | Stage | None = None):
        self.stage = stage
        self._restored: set[str] | list[str] | None = None
        self._model: LionForConditionalGeneration | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Make transformers leave out frozen parameters when it saves the model.

        Raises:
            ValueError: if the model is not a `LionForConditionalGeneration` (checkpoints of PEFT models contain only
                trained parameters anyway), or `load_best_model_at_end` is set, which needs whole checkpoints.
        """
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end needs checkpoints of the whole model, not trainable_only.")
        if not isinstance(model, LionForConditionalGeneration):
            raise ValueError(f"trainable_only is for LionForConditionalGeneration, not for {type(model).__name__}.")
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._model, self._restored = model, model._keys_to_ignore_on_save
        model._keys_to_ignore_on_save = set(model.state_dict()) - trained

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the files of `save_trainable` to the new checkpoint, and only then delete the Trainer's own files."""
        if self._model is None:
            return
        model = gather_model(self._model)  # all processes take part, as each may hold a shard
        if not args.should_save or model is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        unfinished = folder / "trainable.unfinished"
        save_trainable(model, unfinished, self.stage)
        for name in (TENSORS, INDEX):
            os.replace(unfinished / name, folder / name)
        unfinished.rmdir()
        for name in (WEIGHTS, FSDP_FILE):  # in this order: while the first exists, the second may be needed
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / FSDP_FOLDER, ignore_errors=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make transformers save the whole model again."""
        self.restore()

    def restore(self) -> None:
        """Make transformers save the whole model again."""
        if self._model is not None:
            self._model._keys_to_ignore_on_save = self._restored
            self._model = None


__all__ = ["CheckpointLogCallback", "TrainableCheckpointCallback"]
