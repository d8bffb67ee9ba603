"""The training recipe: LION's optimizer, schedule and metrics on transformers' `Seq2SeqTrainer`.

Source: LION's reference code, which uses AdamW with betas 0.9 and 0.999, weight decay 0.05 except for biases, norms and
vectors, linear warmup with cosine decay, bfloat16, and a separate learning rate for the aggregator. Reading order:
`training_arguments`, `make_trainer`, `optimizer.py`, then `train` in `resuming.py`.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from ..processing_lion import LionProcessor
from .answer_metrics import AnswerMetrics
from .callbacks import CheckpointLogCallback, TrainableCheckpointCallback
from .collator import CollatorEpochCallback, LionDataCollator
from .data import FEATURES
from .distributed import FsdpCallback, PreparedModelCallback, ProcessCheckCallback, fsdp_is_requested
from .feature_cache import FeatureCache, check_not_augmented, check_tower
from .optimizer import parameter_groups
from .precision import train_in_float32
from .quantized import check_gradients_pass
from .stages import Stage
from .streams import RecordStream
from .trainer import LionTrainer

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.02,
    "bf16": True,
    "seed": 0,
    "predict_with_generate": True,
    "logging_steps": 10,
    "save_total_limit": 2,
    "report_to": [],
    # the collator needs all columns of the records, and its batches must not be split
    "remove_unused_columns": False,
    "accelerator_config": {"dispatch_batches": False},
    "label_names": ["labels"],
    "ddp_find_unused_parameters": False,
}
"""The recipe's defaults for `Seq2SeqTrainingArguments`; `warmup_steps` below 1 is a fraction of all steps."""

ARGUMENT_NAMES = {field.name for field in fields(Seq2SeqTrainingArguments) if field.init} - {"output_dir"}


def training_arguments(
    output_dir: str | os.PathLike, activation_checkpointing: bool = False, **options: Any
) -> Seq2SeqTrainingArguments:
    """Return training arguments with the recipe's defaults, `ARGUMENTS`.

    Args:
        output_dir: the folder for checkpoints.
        activation_checkpointing: whether to recompute activations in the backward pass instead of storing them.
        **options: any arguments of `Seq2SeqTrainingArguments`; they override the defaults.

    Raises:
        ValueError: if an option is unknown.
    """
    check_argument_names(options)
    chosen = {**ARGUMENTS, **options}
    chosen.setdefault("data_seed", chosen["seed"])
    if activation_checkpointing:
        new = "activation_checkpointing"  # its name since transformers 5.20
        name = new if new in ARGUMENT_NAMES else "gradient_checkpointing"
        chosen[name] = True
        chosen.setdefault(f"{name}_kwargs", {"use_reentrant": False})  # reentrant needs inputs that require gradients
    return Seq2SeqTrainingArguments(str(output_dir), **chosen)


def check_argument_names(names: Iterable[str]) -> None:
    """Raise `ValueError` if one of `names` is not an argument of `Seq2SeqTrainingArguments`."""
    for name in names:
        if name not in ARGUMENT_NAMES:
            close = " or ".join(get_close_matches(name, ARGUMENT_NAMES, 2))
            hint = f"; did you mean {close}?" if close else "."
            raise ValueError(f"{name!r} is not a training argument that can be set{hint}")


def make_trainer(
    model: nn.Module,
    processor: LionProcessor,
    arguments: Seq2SeqTrainingArguments,
    train_dataset: Dataset | IterableDataset | RecordStream,
    eval_dataset: Dataset | None = None,
    *,
    collator: LionDataCollator | None = None,
    stage: str | int | Stage | None = None,
    trainable_only: bool = False,
    aggregator_lr_multiplier: float = 1.0,
    feature_cache: str | os.PathLike | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> LionTrainer:
    """Build a Trainer with the recipe's optimizer, collator, metrics and callbacks.

    Args:
        model: the model, ready to train: frozen with `apply_stage`, or wrapped by PEFT. Its trainable parameters are
            converted to float32, even if the frozen base is in 16 bits; see `train_in_float32`.
        processor: the processor, saved with each checkpoint.
        arguments: arguments from `training_arguments`.
        train_dataset, eval_dataset: datasets from `load_records` or `mix_datasets`. A `RecordStream` can be trained on
            too, for a number of steps.
        collator: a collator with your own options; `LionDataCollator(processor)` by default.
        stage: the stage recorded in `trainable_only` checkpoints.
        trainable_only: whether checkpoints hold only the trained parameters; see `TrainableCheckpointCallback`.
        aggregator_lr_multiplier: see `parameter_groups`.
        feature_cache: folder that caches the outputs of the frozen vision tower, so that later epochs do not run it;
            see `FeatureCache`. Evaluation does not use it.
        callbacks: additional callbacks.

    Raises:
        ValueError: if no parameter is trainable, gradients cannot pass through the quantized model, or there is a
            feature cache but the vision tower is trained or sharded, or images are augmented.
    """
    collator = LionDataCollator(processor) if collator is None else collator
    if feature_cache is not None:
        check_not_augmented(collator.augmentation is not None)
        check_tower(model)
        if fsdp_is_requested(arguments):
            raise ValueError("feature_cache needs the whole vision tower in each process, but fsdp shards it.")
    train_in_float32(model)
    check_gradients_pass(model, is_tower_frozen=not any(map(is_towers, trained_names(model))))
    parameter_groups(model, arguments.learning_rate)  # fails early if no parameter is trainable
    own: list[TrainerCallback] = [
        CheckpointLogCallback(),
        CollatorEpochCallback(collator),
        ProcessCheckCallback(),
        PreparedModelCallback(),
        FsdpCallback(),
    ]
    if trainable_only:
        own.append(TrainableCheckpointCallback(stage))
    metrics = None
    if eval_dataset is not None:
        eval_dataset = one_question_each(eval_dataset)
        if arguments.predict_with_generate:
            metrics = AnswerMetrics(processor, num_samples=len(eval_dataset))
    noted = dict(vars(model.config))
    trainer = LionTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=metrics,
        callbacks=[*own, *callbacks],
        aggregator_lr_multiplier=aggregator_lr_multiplier,
        feature_cache=None if feature_cache is None else FeatureCache(feature_cache),
    )
    if "use_cache" not in noted:  # the Trainer sets it, LION does not read it, and it would be saved
        vars(model.config).pop("use_cache", None)
    return trainer


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def is_towers(name: str) -> bool:
    """Whether a parameter belongs to the vision tower, apart from the norm after its last block."""
    parts = name.split(".")
    return "vision_model" in parts and "post_layernorm" not in parts


def one_question_each(dataset: Dataset) -> Dataset:
    """Split records into one question each: the Trainer's evaluation expects one row per sample."""
    if not any(questions is not None for questions in dataset["questions"]):
        return dataset
    return dataset.map(split_questions, batched=True, features=FEATURES)


def split_questions(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the rows of a batch, with one row per question."""
    result: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for index, questions in enumerate(batch["questions"]):
        row = {name: batch[name][index] for name in FEATURES}
        for position in range(len(questions or [None])):
            single = dict(row)
            if questions is not None:
                for name in ("question", "answer", "task_type"):
                    single[name], single[f"{name}s"] = row[f"{name}s"][position], None
            for name, values in result.items():
                values.append(single[name])
    return result


__all__ = ["ARGUMENTS", "make_trainer", "training_arguments"]
