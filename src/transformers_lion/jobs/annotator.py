"""`LionAnnotator`: the stage that answers everything a task asks about the images of a batch of rows.

It is a plain callable, for `ray.data.Dataset.map_batches` or for any other loop over tables:

    ray.data.read_parquet("photos.parquet").map_batches(
        LionAnnotator,
        fn_constructor_kwargs={"model": "lion-flant5-xl", "task": AnnotationTask(caption=True), "key_column": "id"},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
        batch_size=64,
    )

While the model computes, threads download the files of the next rows, and others decode them. Each image is resized in
its thread, to the sizes of the model and the tagger, so that at most one image per thread is in memory at full size.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers.utils import logging

from ..columns import is_missing
from ..example import example_checkpoint
from ..grounding import extract_entities, format_boxes
from ..images import to_rgb
from ..inference import LOCATE_QUESTION, REGION_QUESTION, Answer, Lion, Request, as_boxes, to_fractions
from ..pipelines import find_tagger
from ..prefetching import NUM_THREADS, prefetch
from ..ram import ImageTagger
from ..tag_source import Tags, TagSource
from .row_images import RowImages
from .schema import to_table
from .source_row import FIELDS, SourceRow
from .storage import is_remote
from .task import AnnotationTask

logger = logging.get_logger(__name__)

MAX_FAILURES = 8
"""Number of rows in a row on which the model may fail. After that, the reason cannot be the rows."""
NUM_READERS = 8
"""Number of threads that download files, or read them from shards and tables. They wait more than they compute."""
MAX_REASON = 500
"""Maximum length of an error in the results."""

Kind = Literal["caption", "answer", "located", "region"]


@dataclass(frozen=True)
class Item:
    """A row to annotate.

    Attributes:
        key: Key of the row.
        columns: Its other columns, for templates.
        source: Where its image is, or the image in any form that `images` opens.
    """

    key: str
    columns: Mapping[str, Any]
    source: Any


@dataclass(frozen=True)
class SmallImage:
    """An image that has been opened and resized.

    Attributes:
        size: (width, height) of the upright image.
        for_model, for_tagger: The image in the size of each model; `None` if it is not used.
    """

    size: tuple[int, int]
    for_model: Image.Image | None
    for_tagger: Image.Image | None


@dataclass(frozen=True)
class Prompt:
    """A question about an image.

    Attributes:
        kind: What the answer is.
        about: The question, the phrase or the box; `None` for a caption.
        question: The text for the model.
        task_type: "image_level" or "region_level".
    """

    kind: Kind
    about: Any
    question: str
    task_type: str


Opened = tuple[Item, SmallImage | Exception]
Result = dict[str, Any]


class LionAnnotator:
    """Annotates batches of rows. Images that cannot be read, and rows that cannot be annotated, get an `error`.

    Args:
        model: Folder or repository of the model, or a loaded `Lion`. Defaults to the example checkpoint.
        task: What to do. Defaults to a caption.
        image_column: Column with the images, in any form that `images` opens: the bytes of a file, `{"bytes", "path"}`
            as `datasets` stores them, a path or a URL.
        key_column: Column with the keys of the rows. Defaults to the paths or URLs of the images.
        batch_size: Number of images, and of questions, per forward pass.
        tagger: Folder or repository of a tagger. Defaults to the model's own, if there is one.
        device: Device. Defaults to the GPU that Ray assigned, or outside of Ray to the first GPU, or else to the CPU.
        dtype: Data type of the weights. Defaults to the data type they were saved in.
        optimize: See `Lion.from_pretrained`.
        num_threads: Number of threads that decode images. Each of them holds at most one image at full size.

    Raises:
        OSError, ValueError: If the model cannot be loaded, or the task needs a tagger and there is none.
    """

    def __init__(
        self,
        model: str | os.PathLike | Lion | None = None,
        task: AnnotationTask | None = None,
        *,
        image_column: str = "image",
        key_column: str | None = None,
        batch_size: int = 8,
        tagger: str | os.PathLike | None = None,
        device: str | None = None,
        dtype: str | None = None,
        optimize: bool = True,
        num_threads: int = NUM_THREADS,
    ):
        for name, value in (("batch_size", batch_size), ("num_threads", num_threads)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1.")
        self.task = AnnotationTask(caption=True) if task is None else task
        self.image_column = image_column
        self.key_column = key_column
        self.batch_size = batch_size
        self.num_threads = num_threads
        self.images = RowImages()
        self.num_failures = 0
        self.lion: Lion | None = model if isinstance(model, Lion) else None
        self.tagger: ImageTagger | None = self.lion.tagger if self.lion is not None else None
        if self.lion is None:
            use_assigned_cpus()
            self._load(str(model or example_checkpoint()), tagger, device or find_device(), dtype, optimize)
        if not self.task.uses_tagger:
            self.tagger = None
        if self.task.needs_tagger and self.tagger is None:
            raise ValueError(f"The task needs tags, but {model} has no tagger. Set tagger to the folder of one.")

    def _load(self, model: str, tagger: Any, device: str, dtype: str | None, optimize: bool) -> None:
        if self.task.uses_tagger:
            place = torch.device(device)
            self.tagger = find_tagger(model, place) if tagger is None else ImageTagger.from_pretrained(tagger, device)
        if self.task.has_prompts:
            self.lion = Lion.from_pretrained(
                model, tagger=self.tagger or False, device=device, dtype=dtype, optimize=optimize
            )

    def __call__(self, batch: Any) -> pa.Table:
        """Annotate a batch of rows.

        Args:
            batch: A dictionary of columns, a pyarrow table or a pandas data frame. It has the columns `image_column`,
                `key_column` and those that the task uses, or those of `SourceRow`.

        Returns:
            A table with `RESULT_SCHEMA`, with one row per row of the batch, in order.

        Raises:
            ValueError: If a column is missing.
            RuntimeError: If the model fails on `MAX_FAILURES` rows in succession.
        """
        items = list(self._items(to_rows(batch)))
        results: list[Result] = []
        ahead = self.batch_size
        with closing(prefetch(self._read, items, ahead, NUM_READERS)) as contents:
            read = zip(items, contents, strict=True)
            with closing(prefetch(self._open, read, ahead, self.num_threads)) as images:
                pairs = zip(items, images, strict=True)
                while group := list(islice(pairs, self.batch_size)):
                    results += self._annotate(group)
        return to_table(results)

    # --- rows and images -----------------------------------------------------------------------------------------

    def _items(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Item]:
        if rows and set(FIELDS) <= rows[0].keys():
            for fields in rows:
                place = SourceRow(**{name: fields[name] for name in FIELDS})
                yield Item(place.key, json.loads(place.columns), place)
            return
        for row in rows:
            yield Item(self._key(row), row, to_source(self._cell(row, self.image_column)))

    def _key(self, row: Mapping[str, Any]) -> str:
        if self.key_column is not None:
            return str(self._cell(row, self.key_column))
        image = self._cell(row, self.image_column)
        path = image.get("path") if isinstance(image, Mapping) else image
        if not isinstance(path, str) or not path:
            raise ValueError(
                f"The images in column {self.image_column!r} have no paths that could be the keys of the rows. Set "
                f"key_column to one of {', '.join(map(repr, row))}."
            )
        return path

    def _cell(self, row: Mapping[str, Any], column: str) -> Any:
        if column not in row:
            raise ValueError(f"There is no column {column!r}; the columns are {', '.join(map(repr, row))}.")
        return row[column]

    def _read(self, item: Item) -> Any:
        """Read or download the file of an image, in a background thread. Errors are returned."""
        try:
            return self.images.read(item.source) if isinstance(item.source, SourceRow) else None
        except Exception as error:
            return error

    def _open(self, read: tuple[Item, Any]) -> SmallImage | Exception:
        """Decode and resize an image, in a background thread."""
        item, content = read
        if isinstance(content, Exception):
            return content
        try:
            is_row = isinstance(item.source, SourceRow)
            image = self.images.decode(item.source, content) if is_row else open_cell(item.source)
            return SmallImage(
                image.size,
                None if self.lion is None else self.lion.processor.image_processor.shrink(image),
                None if self.tagger is None else self.tagger.image_processor.shrink(image),
            )
        except Exception as error:  # decoders and downloads raise many types of errors
            return error

    # --- annotation ----------------------------------------------------------------------------------------------

    def _annotate(self, group: Sequence[Opened]) -> list[Result]:
        """Annotate a few rows together, or one after the other if that fails."""
        try:
            results = self._annotate_together(group)
            self.num_failures = 0
            return results
        except Exception as error:
            free_memory(error)
            if len(group) > 1:
                return [result for one in group for result in self._annotate([one])]
            self.num_failures += 1
            if self.num_failures >= MAX_FAILURES:
                raise RuntimeError(
                    f"The model failed on {self.num_failures} rows in succession. The last error is: {reason_of(error)}"
                ) from error
            (item, image), = group  # fmt: skip
            return [failed(item, image.size if isinstance(image, SmallImage) else None, error)]

    def _annotate_together(self, group: Sequence[Opened]) -> list[Result]:
        start = time.perf_counter()
        found = self._find_tags(group)
        results: list[Result | None] = []
        asked: list[tuple[int, list[Prompt], list[Request]]] = []
        for position, (item, image) in enumerate(group):
            results.append(None)
            if isinstance(image, Exception):
                results[position] = failed(item, None, image)
                continue
            try:
                prompts = self._prompts(item, image.size, found.get(position))
                tags, tag_source = self._prompt_tags(item, found.get(position))
                requests = [
                    Request(image.for_model, prompt.question, prompt.task_type, tags, tag_source) for prompt in prompts
                ]
            except ValueError as error:  # about this row's columns
                results[position] = failed(item, image.size, error)
                continue
            asked.append((position, prompts, requests))
        answers = iter(self._answer([request for _, _, requests in asked for request in requests]))
        for position, prompts, _ in asked:
            item, image = group[position]
            assert isinstance(image, SmallImage)
            results[position] = {
                "key": item.key,
                "width": image.size[0],
                "height": image.size[1],
                "tags": found.get(position) if self.task.tags else None,
                **self._collect(image.size, prompts, [next(answers) for _ in prompts]),
            }
        seconds = (time.perf_counter() - start) / max(1, len(asked))
        return [{**result, "seconds": None if result.get("error") else seconds} for result in results if result]

    def _find_tags(self, group: Sequence[Opened]) -> dict[int, list[str]]:
        """Tag the images whose tags are needed. Return the tags by position in the group."""
        if self.tagger is None:
            return {}
        needed = {
            position: image.for_tagger
            for position, (item, image) in enumerate(group)
            if isinstance(image, SmallImage) and self._needs_tags(item)
        }
        if not needed:
            return {}
        found = self.tagger.tag(list(needed.values()), batch_size=self.batch_size, show_progress=False)
        return {position: list(tagged.names or []) for position, tagged in zip(needed, found, strict=True)}

    def _needs_tags(self, item: Item) -> bool:
        """Whether the tags of a row's image are a result, or its prompts need them."""
        if self.task.needs_tagger or self.task.tag_column is None:
            return True
        return is_missing(item.columns.get(self.task.tag_column))

    def _prompt_tags(self, item: Item, found: list[str] | None) -> tuple[Tags, TagSource]:
        """Return the tags for the prompts of a row, and their source for `Request`."""
        if self.task.tag_source == "none":
            return None, "none"
        own = self.task.prompt_tags(item.columns)
        return (own if own is not None or self.task.tag_source == "data" else found), "data"

    def _prompts(self, item: Item, size: tuple[int, int], tags: list[str] | None) -> list[Prompt]:
        """Return the questions about a row.

        Raises:
            ValueError: If a column is missing or has an unusable value.
        """
        if self.lion is None:
            return []
        prompts: list[Prompt] = []
        if self.task.caption:
            prompts.append(Prompt("caption", None, self.lion.processor.caption_prompt, "image_level"))
        prompts += [Prompt("answer", text, text, "image_level") for text in self.task.questions(item.columns)]
        for phrase in self.task.phrases(item.columns, tags):
            prompts.append(Prompt("located", phrase, LOCATE_QUESTION.format(phrase=phrase), "region_level"))
        boxes = self.task.boxes(item.columns)
        for box in as_boxes(boxes) if boxes else []:
            question = REGION_QUESTION.format(box=format_boxes([to_fractions(box, size)]))
            prompts.append(Prompt("region", box, question, "region_level"))
        return prompts

    def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        if not requests:
            return []
        assert self.lion is not None
        return self.lion.answer(
            requests, batch_size=self.batch_size, scores=self.task.scores, **dict(self.task.generation)
        )

    def _collect(self, size: tuple[int, int], prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Result:
        """Return the columns with answers. Columns that the task does not ask for are left out."""
        task = self.task
        result: Result = {"prompts": [answer.prompt for answer in answers]}
        if task.ask:
            result["answers"] = []
        if task.locate or task.locate_column or task.locate_tags:
            result["located"] = []
        if task.regions_column:
            result["regions"] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if prompt.kind == "caption":
                result["caption"] = answer.text
            elif prompt.kind == "answer":
                result["answers"].append({"question": prompt.about, "answer": answer.text})
            elif prompt.kind == "located":
                result["located"].append(to_located(prompt.about, answer, size))
            else:
                result["regions"].append({"box": list(prompt.about), "description": answer.text})
        return result


# --- helpers ----------------------------------------------------------------------------------------------------------


def to_rows(batch: Any) -> list[dict[str, Any]]:
    """Convert a batch in any of the formats of Ray Data to rows."""
    if isinstance(batch, pa.Table):
        return batch.to_pylist()
    if hasattr(batch, "to_dict") and not isinstance(batch, Mapping):  # pandas
        return batch.to_dict("records")
    names = list(batch)
    return [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def to_source(cell: Any) -> Any:
    """Return the content of a cell with an image; URLs become rows, which threads download."""
    if isinstance(cell, str) and is_remote(cell):
        return SourceRow(str(cell), str(cell), "file")
    return str(cell) if isinstance(cell, str) else cell


def open_cell(cell: Any) -> Image.Image:
    """Open the image in a cell of a table.

    Raises:
        ValueError: If the cell is empty, or the image cannot be read.
    """
    if is_missing(cell):
        raise ValueError("The row has no image.")
    return to_rgb(cell)


def to_located(phrase: str, answer: Answer, size: tuple[int, int]) -> Result:
    """Return the boxes of an answer, in pixels and as fractions. Boxes without a score have `None`."""
    pixels, fractions = (
        [list(map(float, box)) for _, _, boxes in extract_entities(answer.text, unit)[1] for box in boxes]
        for unit in (size, None)
    )
    scores = None
    if answer.scores is not None:
        scores = [None if np.isnan(score) else float(score) for score in answer.scores]
    return {"phrase": phrase, "boxes": pixels, "fractions": fractions, "scores": scores}


def failed(item: Item, size: tuple[int, int] | None, error: Exception) -> Result:
    """Return the result of a row that could not be annotated."""
    width, height = size or (None, None)
    return {"key": item.key, "error": reason_of(error), "width": width, "height": height}


def reason_of(error: Exception) -> str:
    """Return the message of an error on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def free_memory(error: Exception) -> None:
    """Free the cached memory of the GPU after a forward pass that needed too much."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()


def assigned_resources() -> dict[str, float] | None:
    """Return the resources that Ray assigned to this actor or task; `None` outside of Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_assigned_resources() if context.worker.mode == ray.WORKER_MODE else None


def use_assigned_cpus() -> None:
    """Let torch use as many threads as this actor has CPUs. Without this, an actor of less than one CPU uses all."""
    resources = assigned_resources()
    if resources is not None:
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))


def find_device() -> str:
    """Return the device for this actor: "cuda" if Ray assigned a GPU to it, or outside of Ray if there is one."""
    resources = assigned_resources()
    has_gpu = torch.cuda.is_available() and (resources is None or resources.get("GPU", 0) > 0)
    return "cuda" if has_gpu else "cpu"


__all__ = ["LionAnnotator"]
