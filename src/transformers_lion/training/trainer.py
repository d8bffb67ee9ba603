"""The Trainer of the recipe: transformers' `Seq2SeqTrainer`, with what it leaves out for LION and its records.

The optimizer has the recipe's groups of parameters, evaluations respect `generation_max_length`,
`label_smoothing_factor` finds decoder inputs, and `train_sampling_strategy: group_by_length` finds lengths.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import Seq2SeqTrainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..processing_lion import LionProcessor
from .feature_cache import FeatureCache
from .optimizer import build_optimizer

DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")


class LionTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` for LION: see the module.

    A model with `max_new_tokens` in its generation settings, as LION has, generates so many tokens whatever
    `generation_max_length` says. And the stock Trainer fills these settings up with transformers' defaults, which would
    be saved with the model. Here a maximum length counts, and evaluations leave the settings alone, during a training
    as well as in `evaluate` and `predict` by themselves.

    Args:
        aggregator_lr_multiplier: see `parameter_groups`.
        feature_cache: of the frozen vision tower's outputs, for training steps; not for evaluations.
        **options: of `Seq2SeqTrainer`.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, *, aggregator_lr_multiplier: float = 1.0, feature_cache: FeatureCache | None = None, **options: Any
    ):
        super().__init__(**options)
        self.feature_cache = feature_cache
        self.aggregator_lr_multiplier = aggregator_lr_multiplier

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `args.optim` names, on the groups of `parameter_groups`.

        Raises:
            ValueError: if nothing is trained, or the optimizer makes groups of its own.
        """
        if self.optimizer is None:
            chosen = self.model if model is None else model
            self.optimizer = build_optimizer(chosen, self.args, self.aggregator_lr_multiplier)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As of `Seq2SeqTrainer`; with a feature cache, the vision tower runs only for images that are not in it."""
        if self.feature_cache is not None:
            with self.accelerator.autocast():
                inputs = self.feature_cache.apply(self.model, inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """As of `Seq2SeqTrainer`."""
        chosen = gen_kwargs or getattr(self, "_gen_kwargs", {})
        limited = chosen.get("max_length") is not None and chosen.get("max_new_tokens") is None
        with _borrowed_settings(self.model.generation_config) as settings:
            if limited:
                settings.max_new_tokens = None
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As of `Seq2SeqTrainer`; label smoothing keeps the labels from the model, which then gets decoder inputs."""
        takes_labels = self.label_smoother is not None or self.compute_loss_func is not None
        if takes_labels and "labels" in inputs and not any(name in inputs for name in DECODER_INPUTS):
            decoder_input_ids = self.model.prepare_decoder_input_ids_from_labels(inputs["labels"])
            inputs = {**inputs, "decoder_input_ids": decoder_input_ids}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self._needs_lengths(dataset) and self.args.train_sampling_strategy == "group_by_length":
            batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return _LengthSampler(batch_size, record_lengths(dataset, self.processing_class), self._data_seed)
        return super()._get_train_sampler(self._with_lengths(dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        return super()._get_eval_sampler(self._with_lengths(eval_dataset))

    def _needs_lengths(self, dataset: Any) -> bool:
        """Whether a sampler asks for lengths that the dataset does not have."""
        asks = self.args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        return asks and isinstance(dataset, Dataset) and self.args.length_column_name not in dataset.column_names

    def _with_lengths(self, dataset: Any) -> Any:
        """A dataset with a column of lengths for a sampler that asks for it; batches are not made of this one."""
        if not self._needs_lengths(dataset):
            return dataset
        return dataset.add_column(self.args.length_column_name, record_lengths(dataset, self.processing_class))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed


class _LengthSampler(LengthGroupedSampler):
    """transformers' sampler of records of about one length, in the same order in all processes and after resuming.

    Args:
        batch_size: so many records in a row are of about one length.
        lengths: of the records.
        seed: of the order, which is another one in each epoch.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch; the Trainer calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def record_lengths(records: Dataset, processor: LionProcessor) -> list[int]:
    """The number of tokens of each record: tags, the longest question and the longest answer. Images have one size.

    Args:
        records: from `load_records`.
    """

    def count(batch: dict[str, list[Any]]) -> dict[str, list[int]]:
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        return {"length": [text_length(row) for row in rows]}

    def text_length(row: dict[str, Any]) -> int:
        tags = ", ".join(row["tags"] or ())
        texts = [max(row["questions"] or [row["question"]], key=len), max(row["answers"] or [row["answer"]], key=len)]
        return sum(len(ids) for ids in processor.tokenizer([tags, *texts], add_special_tokens=False)["input_ids"])

    columns = ["question", "answer", "questions", "answers", "tags"]
    return list(records.select_columns(columns).map(count, batched=True, remove_columns=columns)["length"])


@contextmanager
def _borrowed_settings(settings: Any) -> Iterator[Any]:
    """Generation settings to be changed within the block, and put back behind it."""
    before = copy.deepcopy(vars(settings))
    try:
        yield settings
    finally:
        vars(settings).clear()
        vars(settings).update(before)


__all__ = ["LionTrainer"]
