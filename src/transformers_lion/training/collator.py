"""Data collator: turns records into a batch for the model and the Trainer.

Shape letters: N images, B questions, T prompt tokens, T' question tokens, L answer tokens.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..images import image_key
from ..processing_lion import LionProcessor
from ..ram.tag_cache import digest_image
from ..tag_source import Tags, TagSource, resolve_tag_source
from .augmentation import ImageAugmentation
from .records import Record, RecordError, name_record, open_image, parse_record
from .report import Fault, OnError, RecordReport, check_on_error, summarize

logger = logging.getLogger(__name__)

Tagger = Callable[[Any], Sequence[Sequence[str] | None]]
"""Maps images to the tag names of each image; for example a `transformers_lion.ImageTagger`."""


@dataclass
class SharedImage:
    """An image and the records that ask about it."""

    image: Image.Image
    records: list[Record] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """Identifier of the image: the first record's name, or a digest of the pixels, and that record's questions."""
        first = self.records[0]
        return f"{first.source or digest_image(self.image)} {first.questions}"


class LionDataCollator:
    """Opens the images of records and collates everything into a batch with the processor.

    A batch holds `input_ids` and `attention_mask` (B, T), `qformer_input_ids` and `qformer_attention_mask` (B, T'),
    `task_type_ids` (B,), `labels` (B, L) padded with -100, and `pixel_values` (N, 3, H, W). If several questions share
    an image, N is less than B, and `image_indices` (B,) maps each question to its row of `pixel_values`.

    With the Trainer, set `remove_unused_columns=False`. For streams, also set
    `accelerator_config={"dispatch_batches": False}`, because dispatched batches are split without regard to
    `image_indices`. If you use an augmentation, add `CollatorEpochCallback`.

    Dataloader workers call copies of the collator. Bad records that they find are still added to `report`, and are
    logged in the worker.

    Args:
        processor: Processor that creates the tensors.
        tag_source: "data" uses the tags of the records, "tagger" uses the tagger instead, and "none" omits the tag
            sentence. By default, a record's own tags are used if it has any, otherwise the tagger if there is one.
        tagger: Usually an `ImageTagger`. A tagger on a GPU requires `num_workers=0`.
        augmentation: Augmentation of image-level images. None by default. The tagger always sees the whole image.
        share_images: Whether records in a batch that name the same image share one row of `pixel_values`. (The
            questions of a single record always share one row.)
        on_error: What to do with a record that cannot be used, usually because its image cannot be read. "raise"
            raises an error; "skip" builds the batch from the other records.
        report: Report that collects the bad records.
        image_folder: Folder that relative image paths are resolved against. Rows of `load_records` are already
            resolved.
        timeout: Timeout of a download, in seconds.
        decoder_start_token_id: Pass `model.config.text_config.decoder_start_token_id` to add `decoder_input_ids` (B,
            L), the labels shifted right after this token. The stock Trainer needs them for `label_smoothing_factor`,
            because it then does not pass the labels to the model; `make_trainer` does not need them.

    Raises:
        ValueError: If an option has an invalid value, or a tagger is required but missing.
    """

    def __init__(
        self,
        processor: LionProcessor,
        *,
        tag_source: TagSource | None = None,
        tagger: Tagger | None = None,
        augmentation: ImageAugmentation | None = None,
        share_images: bool = False,
        on_error: OnError = "raise",
        report: RecordReport | None = None,
        image_folder: str | os.PathLike | None = None,
        timeout: float | None = 30.0,
        decoder_start_token_id: int | None = None,
    ):
        check_on_error(on_error)
        resolve_tag_source(None, tag_source, tagger is not None)
        self.processor = processor
        self.tag_source: TagSource | None = tag_source
        self.tagger = tagger
        self.augmentation = augmentation
        self.share_images = share_images
        self.on_error: OnError = on_error
        self.report = RecordReport() if report is None else report
        self.image_folder = image_folder
        self.timeout = timeout
        self.decoder_start_token_id = decoder_start_token_id
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change

    @property
    def epoch(self) -> int:
        """The current epoch, which augmentations depend on."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that augmentations depend on, in all workers."""
        self._epoch.fill_(epoch)

    def __call__(self, records: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Collate records into a batch.

        Args:
            records: Rows of `load_records`, or raw records (see `parse_record`).

        Returns:
            The batch, as described in the class docstring.

        Raises:
            RecordError: If a record is bad and `on_error` is "raise".
            ValueError: If no usable record remains.
        """
        images, rows = self._open(records)
        prompts = [
            (index, record.tags, *prompt)
            for index, record in rows
            for prompt in zip(record.questions, record.answers, record.task_types, strict=True)
        ]
        indices, tags, questions, answers, task_types = (list(column) for column in zip(*prompts, strict=True))
        batch = self.processor(
            text=questions,
            tags=self._tags(images, indices, tags),
            task_type=task_types,
            text_target=answers,
            return_tensors="pt",
        )
        if self.decoder_start_token_id is not None:
            labels = batch["labels"]
            shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=self.decoder_start_token_id)
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == -100, self.processor.tokenizer.pad_token_id)
        pixels = self.processor(images=[self._augment(image) for image in images], return_tensors="pt")
        if len(images) != len(indices):
            batch["image_indices"] = torch.tensor(indices)
        return {**batch, **pixels}  # tensors with B rows come first: the Trainer counts samples there

    def _open(self, raws: Sequence[Any]) -> tuple[list[SharedImage], list[tuple[int, Record]]]:
        """Return the images of the good records, and these records in order with the index of their image.

        Raises:
            ValueError: If there are none.
        """
        opened: dict[Any, int | RecordError] = {}
        images: list[SharedImage] = []
        rows: list[tuple[int, Record]] = []
        faults: list[Fault] = []
        for position, raw in enumerate(raws):
            try:
                record = parse_record(raw, self.image_folder)
                key = image_key(record.image) if self.share_images else position
                if key not in opened:
                    opened[key] = self._open_one(record, images)
                index = opened[key]
                if isinstance(index, RecordError):
                    raise index
                images[index].records.append(record)
                rows.append((index, record))
            except RecordError as error:
                faults.append(self.report.reject(name_record(raw), error, self.on_error))
                logger.warning("Left out of a batch: %s", faults[-1])
        if not images:
            raise ValueError(
                f"None of the {len(raws)} records of a batch can be used. {summarize(faults)}\n"
                'Use load_records(..., check_images="decode") to leave out unreadable images before training.'
            )
        return images, rows

    def _open_one(self, record: Record, images: list[SharedImage]) -> int | RecordError:
        """Append the image of a record to `images` and return its index, or the error if it cannot be opened."""
        try:
            images.append(SharedImage(open_image(record.image, self.timeout)))
        except RecordError as error:
            return error
        return len(images) - 1

    def _tags(self, images: list[SharedImage], indices: list[int], tags: list[Tags]) -> list[Tags]:
        """Return the tags of each question."""
        sources = [resolve_tag_source(names, self.tag_source, self.tagger is not None) for names in tags]
        untagged = sorted({index for index, source in zip(indices, sources, strict=True) if source == "tagger"})
        found = self.tagger([images[index].image for index in untagged]) if untagged and self.tagger else []
        by_tagger = dict(zip(untagged, found, strict=True))
        return [
            {"data": names, "tagger": by_tagger.get(index), "none": None}[source]
            for index, names, source in zip(indices, tags, sources, strict=True)
        ]

    def _augment(self, shared: SharedImage) -> Image.Image:
        if self.augmentation is None:
            return shared.image
        return self.augmentation(shared.image, shared.records, shared.identity, self.epoch)


class CollatorEpochCallback(TrainerCallback):
    """Keeps a collator's epoch in step with the Trainer's, even after training resumes."""

    def __init__(self, collator: LionDataCollator):
        self.collator = collator
        self._next = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting at the Trainer's current epoch."""
        self._next = int((state.epoch or 0.0) + 1e-6)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass the new epoch to the collator."""
        self.collator.set_epoch(self._next)
        self._next += 1


__all__ = ["CollatorEpochCallback", "LionDataCollator"]
