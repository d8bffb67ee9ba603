"""The Trainer of the recipe: transformers' `Seq2SeqTrainer`, extended for LION and its records.

The optimizer uses the recipe's parameter groups, evaluation respects `generation_max_length`, and
`label_smoothing_factor` and `train_sampling_strategy: group_by_length` work with LION's batches and records.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..processing_lion import LionProcessor
from .feature_cache import FeatureCache
from .optimizer import build_optimizer
from .streams import RecordStream, StreamCollator

DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")

NUM_INDICES = 1 << 16
"""Number of a permutation's indices that are converted to Python integers at once."""


class LionTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` for LION.

    With the stock Trainer, `max_new_tokens` in LION's generation config would take precedence over
    `generation_max_length`, and evaluation would fill the config with transformers' defaults, which would then be saved
    with the model. Here, `generation_max_length` is respected, and evaluation leaves the generation config unchanged.

    Args:
        aggregator_lr_multiplier: see `parameter_groups`.
        feature_cache: cache of the frozen vision tower's outputs, for training steps only.
        **options: arguments of `Seq2SeqTrainer`.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, *, aggregator_lr_multiplier: float = 1.0, feature_cache: FeatureCache | None = None, **options: Any
    ):
        super().__init__(**options)
        self.feature_cache = feature_cache
        self.aggregator_lr_multiplier = aggregator_lr_multiplier
        if isinstance(self.train_dataset, RecordStream):
            if self.args.train_sampling_strategy not in ("random", "sequential"):
                raise ValueError(
                    f"train_sampling_strategy {self.args.train_sampling_strategy!r} needs the lengths of all records, "
                    "but the data is streamed."
                )
            self.args.ignore_data_skip = True  # the stream itself goes to the position of the checkpoint
            self.add_callback(StreamEpochCallback())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer that `args.optim` names, with the groups of `parameter_groups`.

        Raises:
            ValueError: if no parameter is trainable, or the optimizer does not support parameter groups.
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
        """Evaluate a batch; see `Seq2SeqTrainer`."""
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
        """Compute the loss; see `Seq2SeqTrainer`. With label smoothing, the model gets decoder inputs, not labels."""
        takes_labels = self.label_smoother is not None or self.compute_loss_func is not None
        if takes_labels and "labels" in inputs and not any(name in inputs for name in DECODER_INPUTS):
            decoder_input_ids = self.model.prepare_decoder_input_ids_from_labels(inputs["labels"])
            inputs = {**inputs, "decoder_input_ids": decoder_input_ids}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_train_dataloader(self) -> DataLoader:
        """Return the dataloader; that of a `RecordStream` begins at the stream's beginning, or where it is loaded."""
        if not isinstance(self.train_dataset, RecordStream):
            return super().get_train_dataloader()
        args = self.args
        self.train_dataset.set_process(args.process_index, args.world_size, args.dataloader_num_workers)
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=StreamCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            generator=torch.Generator(),  # the global one belongs to the model, and must resume in step with it
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Return the batches of a step, and the number of their tokens; a stream notes its position after them."""
        if isinstance(self.train_dataset, RecordStream):
            epoch_iterator = _noting(self.train_dataset, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _save_rng_state(self, output_dir: str) -> None:
        if isinstance(self.train_dataset, RecordStream):
            self.train_dataset.save(Path(output_dir))
        super()._save_rng_state(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and isinstance(self.train_dataset, RecordStream):
            self.train_dataset.load(Path(checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self._needs_lengths(dataset) and self.args.train_sampling_strategy == "group_by_length":
            batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return _LengthSampler(batch_size, record_lengths(dataset, self.processing_class), self._data_seed)
        sampler = super()._get_train_sampler(self._with_lengths(dataset))
        return ShuffledSampler(len(dataset), self._data_seed) if type(sampler) is RandomSampler else sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        return super()._get_eval_sampler(self._with_lengths(eval_dataset))

    def _needs_lengths(self, dataset: Any) -> bool:
        """Whether the sampler needs lengths that the dataset does not have."""
        asks = self.args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        return asks and isinstance(dataset, Dataset) and self.args.length_column_name not in dataset.column_names

    def _with_lengths(self, dataset: Any) -> Any:
        """Add a column of lengths if the sampler needs it; only the sampler sees this dataset."""
        if not self._needs_lengths(dataset):
            return dataset
        return dataset.add_column(self.args.length_column_name, record_lengths(dataset, self.processing_class))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed


class StreamEpochCallback(TrainerCallback):
    """Makes the epoch in the logs of a stream the fraction of all steps, as it is without an interruption."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch."""
        state.epoch = state.global_step / state.max_steps


def _noting(stream: RecordStream, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield batches, and note that they are used."""
    for batch in batches:
        stream.note(batch)
        yield batch


class ShuffledSampler(Sampler[int]):
    """Shuffles records in the order of accelerate's sampler, with 8 bytes of memory a record instead of 40.

    Args:
        size: number of records.
        seed: seed of the order, which changes with each epoch.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the order depends on; called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for part in order.split(NUM_INDICES):
            yield from part.tolist()


class _LengthSampler(LengthGroupedSampler):
    """Groups records of similar length, in the same order in all processes and after resuming.

    Args:
        batch_size: number of consecutive records of similar length.
        lengths: lengths of the records.
        seed: seed of the order, which changes with each epoch.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the order depends on; called by the Trainer."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def record_lengths(records: Dataset, processor: LionProcessor) -> list[int]:
    """Count the tokens of each record: its tags, longest question and longest answer. (All images have the same size.)

    Args:
        records: a dataset from `load_records`.
        processor: the processor, for its tokenizer.
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
    """Yield generation settings that may be changed within the block, and restore them afterwards."""
    before = copy.deepcopy(vars(settings))
    try:
        yield settings
    finally:
        vars(settings).clear()
        vars(settings).update(before)


__all__ = ["LionTrainer"]
