"""Records -> a batch for the model and the Trainer.

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
"""Images to the tag names of each, such as `transformers_lion.ImageTagger`."""


@dataclass
class SharedImage:
    """An image, and the records that ask about it."""

    picture: Image.Image
    records: list[Record] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """What tells it from others: its first record's name, or its pixels, and that record's questions."""
        first = self.records[0]
        return f"{first.source or digest_image(self.picture)} {first.questions}"


class LionDataCollator:
    """Turns records into a batch: opens their images, and has the processor make tensors.

    Batches hold `input_ids` and `attention_mask` (B, T), `qformer_input_ids` and `qformer_attention_mask` (B, T'),
    `task_type_ids` (B,), `labels` (B, L) padded with -100, and `pixel_values` (N, 3, H, W). Where images serve several
    questions, N is less than B and `image_indices` (B,) has the row of `pixel_values` of each question.

    With the Trainer use `remove_unused_columns=False`, for streams `accelerator_config={"dispatch_batches": False}`
    (what it dispatches, it cuts where it likes), and `CollatorEpochCallback` if there is an augmentation.

    A DataLoader's workers call copies of the collator. Their bad records are in `report` all the same, and are logged
    where they are found.

    Args:
        processor: makes the tensors.
        tag_source: "data" takes the tags of the records, "tagger" those of the tagger instead, "none" leaves the tag
            sentence out. If it is not set, the tags of a record that has some, otherwise the tagger's if there is one.
        tagger: most often an `ImageTagger`; on a GPU it needs `num_workers=0`.
        augmentation: how image-level images are changed; not at all by default. Tags are those of the whole image.
        share_images: put an image that several records of a batch name into the batch once. (One record with several
            `questions` always has its image once.)
        on_error: what happens to a record that cannot be used, most often because its image cannot be read: "raise"
            stops, "skip" makes the batch of the others.
        report: gets such records.
        image_folder: where relative paths begin; those of `load_records` are complete.
        timeout: of a download, in seconds.
        decoder_start_token_id: `model.config.text_config.decoder_start_token_id`, to add `decoder_input_ids` (B, L),
            the labels shifted right behind this token. The stock Trainer needs them for `label_smoothing_factor`, where
            it keeps the labels from the model; `make_trainer` does without.

    Raises:
        ValueError: if an option has no such value, or there is no tagger.
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
        """The epoch that augmentations are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Have augmentations drawn for `epoch`, in all workers."""
        self._epoch.fill_(epoch)

    def __call__(self, records: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            records: rows of `load_records`, or raw records (see `parse_record`).

        Returns:
            The batch, as described in the class.

        Raises:
            RecordError: for a bad record, if `on_error` is "raise".
            ValueError: if no record is left.
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
        return {**batch, **pixels}  # what has B rows comes first: the Trainer counts samples there

    def _open(self, raws: Sequence[Any]) -> tuple[list[SharedImage], list[tuple[int, Record]]]:
        """The images of good records, and these records in their order, each with the index of its image.

        Raises:
            ValueError: if there are none.
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
                'load_records(..., check_images="decode") leaves unreadable images out before there are batches.'
            )
        return images, rows

    def _open_one(self, record: Record, images: list[SharedImage]) -> int | RecordError:
        """Add the image of a record to `images`; its index, or why there is none."""
        try:
            images.append(SharedImage(open_image(record.image, self.timeout)))
        except RecordError as error:
            return error
        return len(images) - 1

    def _tags(self, images: list[SharedImage], indices: list[int], tags: list[Tags]) -> list[Tags]:
        """The tags of each question."""
        sources = [resolve_tag_source(names, self.tag_source, self.tagger is not None) for names in tags]
        untagged = sorted({index for index, source in zip(indices, sources, strict=True) if source == "tagger"})
        found = self.tagger([images[index].picture for index in untagged]) if untagged and self.tagger else []
        by_tagger = dict(zip(untagged, found, strict=True))
        return [
            {"data": names, "tagger": by_tagger.get(index), "none": None}[source]
            for index, names, source in zip(indices, tags, sources, strict=True)
        ]

    def _augment(self, image: SharedImage) -> Image.Image:
        """The image that the model gets."""
        if self.augmentation is None:
            return image.picture
        return self.augmentation(image.picture, image.records, image.identity, self.epoch)


class CollatorEpochCallback(TrainerCallback):
    """Tells a collator which epoch the Trainer is in, also after a training was resumed."""

    def __init__(self, collator: LionDataCollator):
        self.collator = collator
        self._next = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to count."""
        self._next = int((state.epoch or 0.0) + 1e-6)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an epoch."""
        self.collator.set_epoch(self._next)
        self._next += 1


__all__ = ["CollatorEpochCallback", "LionDataCollator"]
