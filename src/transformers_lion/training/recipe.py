"""The recipe: LION's optimizer, schedule and figures on transformers' `Seq2SeqTrainer`.

Source: LION's reference code: AdamW with betas 0.9 and 0.999, weight decay 0.05 but for biases, norms and vectors, a
linear warm-up and a cosine, bfloat16, and a learning rate of its own for the aggregator. Reading order:
`training_arguments`, `make_trainer`, `optimizer.py`; then `train` in `resuming.py`.
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
from .quantised import check_gradients_pass
from .stages import Stage
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
    # the collator needs the records' own columns, and its batches must not be cut
    "remove_unused_columns": False,
    "accelerator_config": {"dispatch_batches": False},
    "label_names": ["labels"],
    "ddp_find_unused_parameters": False,
}
"""The recipe's own defaults of `Seq2SeqTrainingArguments`; a warm-up below 1 is a share of all steps."""

ARGUMENT_NAMES = {field.name for field in fields(Seq2SeqTrainingArguments) if field.init} - {"output_dir"}


def training_arguments(
    output_dir: str | os.PathLike, activation_checkpointing: bool = False, **options: Any
) -> Seq2SeqTrainingArguments:
    """Arguments of the Trainer with the recipe's defaults, `ARGUMENTS`.

    Args:
        output_dir: for checkpoints.
        activation_checkpointing: compute activations twice instead of keeping them.
        **options: any of `Seq2SeqTrainingArguments`, which go before the defaults.

    Raises:
        ValueError: if there is no such option.
    """
    check_argument_names(options)
    chosen = {**ARGUMENTS, **options}
    chosen.setdefault("data_seed", chosen["seed"])
    if activation_checkpointing:
        new = "activation_checkpointing"  # transformers calls it so from 5.20 on
        name = new if new in ARGUMENT_NAMES else "gradient_checkpointing"
        chosen[name] = True
        chosen.setdefault(f"{name}_kwargs", {"use_reentrant": False})  # the other kind needs inputs that train
    return Seq2SeqTrainingArguments(str(output_dir), **chosen)


def check_argument_names(names: Iterable[str]) -> None:
    """Raise `ValueError` if one of `names` is none of `Seq2SeqTrainingArguments`."""
    for name in names:
        if name not in ARGUMENT_NAMES:
            close = " and ".join(get_close_matches(name, ARGUMENT_NAMES, 2))
            hint = f"; such are {close}" if close else ""
            raise ValueError(f"{name!r} is no argument of the Trainer that can be given{hint}.")


def make_trainer(
    model: nn.Module,
    processor: LionProcessor,
    arguments: Seq2SeqTrainingArguments,
    train_dataset: Dataset | IterableDataset,
    eval_dataset: Dataset | None = None,
    *,
    collator: LionDataCollator | None = None,
    stage: str | int | Stage | None = None,
    trainable_only: bool = False,
    aggregator_lr_multiplier: float = 1.0,
    feature_cache: str | os.PathLike | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> LionTrainer:
    """A Trainer with the recipe's optimizer, collator, figures and callbacks.

    Args:
        model: as it is to be trained: `apply_stage` freezes it, PEFT may wrap it. What trains becomes float32, on a
            base of 16 bits too; see `train_in_float32`.
        processor: saved with each checkpoint.
        arguments: from `training_arguments`.
        train_dataset, eval_dataset: from `load_records` or `mix_datasets`.
        collator: with options of its own; by default `LionDataCollator(processor)`.
        stage: to be noted down in `trainable_only` checkpoints.
        trainable_only: write checkpoints of what is trained alone; see `TrainableCheckpointCallback`.
        aggregator_lr_multiplier: see `parameter_groups`.
        feature_cache: folder that keeps the frozen vision tower's outputs, so that later epochs do not run it; see
            `FeatureCache`. Evaluations do not use it.
        callbacks: further ones.

    Raises:
        ValueError: if nothing is trained, or the model is quantised so that no gradients pass through it; if there is
            a feature cache, but the vision tower is trained or sharded, or images are augmented.
    """
    collator = LionDataCollator(processor) if collator is None else collator
    if feature_cache is not None:
        check_not_augmented(collator.augmentation is not None)
        check_tower(model)
        if fsdp_is_requested(arguments):
            raise ValueError("feature_cache needs the whole vision tower in each process, but fsdp shards it.")
    train_in_float32(model)
    check_gradients_pass(model, is_tower_frozen=not any(map(is_towers, trained_names(model))))
    parameter_groups(model, arguments.learning_rate)  # fails early if nothing trains
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
    if "use_cache" not in noted:  # the Trainer notes it here, where LION does not read it, and it would be saved
        vars(model.config).pop("use_cache", None)
    return trainer


def trained_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def is_towers(name: str) -> bool:
    """Whether a parameter is the vision tower's, but for the norm behind its last block."""
    parts = name.split(".")
    return "vision_model" in parts and "post_layernorm" not in parts


def one_question_each(dataset: Dataset) -> Dataset:
    """Records of one question each: the Trainer's evaluation takes a row for a record."""
    if not any(questions is not None for questions in dataset["questions"]):
        return dataset
    return dataset.map(split_questions, batched=True, features=FEATURES)


def split_questions(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The rows of a batch, those with several questions as one row for each."""
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
