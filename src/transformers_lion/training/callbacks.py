"""Callbacks of the stock Trainer.

`CheckpointLogCallback`: logs that a resumed run continues exactly. `TrainableCheckpointCallback`: checkpoints of what
is trained.
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
"""What the Trainer calls the tensors of a checkpoint."""

FSDP_FILE, FSDP_FOLDER = "pytorch_model_fsdp.bin", "pytorch_model_fsdp_0"
"""What accelerate calls them under FSDP2 where they are whole, and in pieces."""

NOTE = "CheckpointLogCallback"
"""Where the Trainer's state has what the callback of that name notes down."""


class CheckpointLogCallback(TrainerCallback):
    """Has the Trainer log before each checkpoint, and note down how many processes write it.

    A logged loss is the mean since the last one, and what was summed up for the next is not in a checkpoint. With this,
    nothing is pending there, and the log of a resumed run is that of one that was never stopped.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note down in the state, where each checkpoint has it, how many processes' random states belong to one."""
        num_processes = 1 if args.save_only_model else args.world_size
        state.stateful_callbacks[NOTE] = {"args": {}, "attributes": {"num_processes": num_processes}}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log if this step is saved, or may be after it was evaluated."""
        control.should_log |= control.should_save or control.should_evaluate

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same for the step that ends an epoch."""
        control.should_log |= control.should_save or control.should_evaluate


class TrainableCheckpointCallback(TrainerCallback):
    """Has the Trainer write only what is trained into its checkpoints, and resume from them.

    Each has the files of `save_trainable`, which `load_trainable` reads, in the place of `model.safetensors`, so that
    nobody takes it for a whole model. Resume with `train`, which checks that the model is on the same base.

    Args:
        stage: to be noted down in the checkpoints.
    """

    def __init__(self, stage: str | int | Stage | None = None):
        self.stage = stage
        self._restored: set[str] | list[str] | None = None
        self._model: LionForConditionalGeneration | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Have transformers leave out what is frozen whenever it saves the model.

        Raises:
            ValueError: if it is no LION (checkpoints of PEFT models hold only what is trained anyway), or the Trainer
                is to load its best checkpoint, which it looks for under another name.
        """
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end needs checkpoints of the whole model, not trainable_only.")
        if not isinstance(model, LionForConditionalGeneration):
            raise ValueError(f"trainable_only is for LionForConditionalGeneration, not for {type(model).__name__}.")
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._model, self._restored = model, model._keys_to_ignore_on_save
        model._keys_to_ignore_on_save = set(model.state_dict()) - trained

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the files of `save_trainable` in the new checkpoint, which is complete at any moment."""
        if self._model is None:
            return
        model = gather_model(self._model)  # of what is sharded every process has a part
        if not args.should_save or model is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        unfinished = folder / "trainable.unfinished"
        save_trainable(model, unfinished, self.stage)
        for name in (TENSORS, INDEX):
            os.replace(unfinished / name, folder / name)
        unfinished.rmdir()
        for name in (WEIGHTS, FSDP_FILE):  # in this order: where the first is, the second may be needed
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / FSDP_FOLDER, ignore_errors=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the model saved as a whole again."""
        self.restore()

    def restore(self) -> None:
        """Have the model saved as a whole again."""
        if self._model is not None:
            self._model._keys_to_ignore_on_save = self._restored
            self._model = None


__all__ = ["CheckpointLogCallback", "TrainableCheckpointCallback"]
