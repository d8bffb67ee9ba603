"""Parses a training record in any supported format into a checked `Record`, or reports why it is invalid.

Source: the records of LION's reference code, objects with `image` (or `image_path`, `image_id`), `question`, `answer`,
`category` and `tags`. In addition, a record may hold several questions about one image: `questions`, `answers`,
`categories`.
"""

import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ..columns import unread_fields
from ..configuration_lion import TASK_TYPES
from ..images import TIMEOUT, is_base64, is_data_uri, is_url, to_rgb

FaultKind = Literal[
    "no object", "broken JSON", "no image", "missing file", "unreadable image", "no question", "no answer",
    "wrong type", "unknown category", "uneven lists", "broken text", "bad box", "unread field",
]  # fmt: skip
"""The kinds of faults in a record."""

IMAGE_NAMES = ("image", "image_path", "image_id")
"""Fields that may hold a record's image; the first non-empty one is used."""

PLURALS = ("answers", "categories", "task_types")
"""Fields that go with `questions`."""

FIELDS = (*IMAGE_NAMES, "question", "answer", "category", "task_type", "questions", *PLURALS, "tags", "source")
"""Fields that are read."""

NOTES = ("dataset", "split", "width", "height")
"""Other fields that a record may have, besides ids and names that start with "_"."""

NAMING = ("id", "question_id", *IMAGE_NAMES, "question")
"""Fields that identify a record in messages."""

REGION_CATEGORIES = frozenset({"ref", "region", "region_level", "grounding"})
"""Categories of region-level tasks; all others are image-level."""

BOX = re.compile(r"\[((?:[^\[\],]*,){3}[^\[\],]*)\]")
"""Four comma-separated items in brackets, LION's format of a box."""

BEYOND = 0.005
"""How far a box may extend over the edge of the image because of rounding."""


class RecordError(ValueError):
    """Raised for a record that cannot be used; `kind` classifies the fault, and the message describes it."""

    def __init__(self, message: str, kind: FaultKind = "wrong type"):
        super().__init__(message)
        self.kind: FaultKind = kind


@dataclass(frozen=True)
class Record:
    """An image with one or more questions.

    Attributes:
        image: a path, a URL, base64 text, the bytes of an image file, an image, an array or a tensor.
        questions, answers, task_types: one entry per question.
        tags: tag names; `None` if the record has none.
        source: the record's name in reports.
    """

    image: Any
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    task_types: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    source: str = ""


def parse_record(
    raw: Any, image_folder: str | os.PathLike | None = None, categories: Mapping[str, str] | None = None
) -> Record:
    """Check a record and normalize it; the image itself is not opened.

    `None` and NaN (an empty cell of a table) count as missing fields. An answer may be a number; integral numbers are
    written without a decimal point. If the answer is a list, its first entry is used. Boxes in texts of region-level
    tasks must be valid: fractions of the width and height, upper left corner first. Unknown fields raise an error,
    except for ids, the fields in `NOTES`, and names that start with "_".

    Args:
        raw: an object as described in the module docstring, or a row from `make_row`.
        image_folder: folder that relative paths are resolved against; absolute paths are kept, and paths may lead out
            of the folder.
        categories: the task type of each category; other categories then raise an error. By default, the categories in
            `REGION_CATEGORIES` are region-level, and all others are image-level, as are records without a category.

    Raises:
        RecordError: if something is missing, empty, of the wrong type, or unknown.
    """
    if not isinstance(raw, Mapping):
        raise RecordError(f"it is {describe(raw)}, not an object with fields", "no object")
    check_names(raw)
    image = read_image(raw, image_folder)
    questions, answers, found = read_texts(raw)
    task_types = tuple(read_task_type(name, value, categories) for name, value in found)
    for question, answer, task_type in zip(questions, answers, task_types, strict=True):
        if task_type == "region_level":
            check_boxes("question", question)
            check_boxes("answer", answer)
    return Record(
        image=image,
        questions=tuple(questions),
        answers=tuple(answers),
        task_types=task_types,
        tags=read_tags(field(raw, "tags")),
        source=str(field(raw, "source") or ""),
    )


def field(raw: Mapping, name: str) -> Any:
    """Return a field of a record; `None` if it is missing or NaN."""
    return none_if_nan(raw.get(name))


def check_names(raw: Mapping) -> None:
    """Raise `RecordError` if a record has an unknown field, which would be ignored silently."""
    unread = unread_fields(raw, (*FIELDS, *NOTES))
    if unread:
        raise RecordError(
            f"it has {', '.join(unread)}, which is not read; the fields are {', '.join(FIELDS)}. Start the names of "
            "other fields with an underscore.",
            "unread field",
        )


def none_if_nan(value: Any) -> Any:
    """Return `None` for NaN, the value of empty cells in tables."""
    return None if isinstance(value, Real) and value != value else value


def name_record(raw: Any) -> str:
    """Name a record in reports: by its source, or else by identifying fields."""
    if not isinstance(raw, Mapping):
        return f"record {describe(raw)}"
    if field(raw, "source"):
        return str(raw["source"])
    image = field(raw, "image")
    known = {**raw, "image": field(image, "path") if isinstance(image, Mapping) else image}
    parts = [f"{name} {str(known[name])[:60]!r}" for name in NAMING if isinstance(known.get(name), str | int)]
    return f"record with {', '.join(parts)}" if parts else "record without a name"


def describe(value: Any) -> str:
    """Describe a value for an error message."""
    if value is None:
        return "null"
    try:
        return f"{type(value).__name__} {str(value)[:40]!r}"
    except ValueError:  # Python does not convert integers of more than 4,300 digits to strings
        return f"{type(value).__name__} with too many digits"


def read_image(raw: Mapping, image_folder: str | os.PathLike | None) -> Any:
    """Return the record's image, with its path resolved."""
    for name in IMAGE_NAMES:
        value = field(raw, name)
        if isinstance(value, Mapping):  # storage format of `datasets.Image`
            value = value.get("bytes") or value.get("path")
        if value is None or (isinstance(value, str | bytes) and not value[:1].strip() and not value.strip()):
            continue
        if isinstance(value, bytes | Image.Image | np.ndarray | torch.Tensor):
            return value
        if not isinstance(value, str | os.PathLike):
            raise RecordError(f"{name} is {describe(value)}, not a path, a URL or an image")
        check_encodable(name, os.fspath(value))
        return resolve(os.fspath(value), image_folder)
    raise RecordError(f"it has no image: {', '.join(IMAGE_NAMES)} are missing or empty", "no image")


def resolve(path: str, image_folder: str | os.PathLike | None) -> str:
    """Resolve a path against the image folder; URLs and base64 text are returned unchanged."""
    if is_remote(path):
        return path
    joined = path if image_folder is None else os.path.join(image_folder, path)
    return path if is_base64(path) and not os.path.isfile(joined) else joined


def read_texts(raw: Mapping) -> tuple[list[str], list[str], list[tuple[str, Any]]]:
    """Return the questions, the answers, and the name and value of the field that specifies each question's task.

    Raises:
        RecordError: if a text is missing, lists differ in length, or both `question` and `questions` are set.
    """
    questions = field(raw, "questions")
    if questions is None:
        several = [name for name in PLURALS if field(raw, name) is not None]
        if several and field(raw, "answer") is not None:
            raise RecordError(f"it has {', '.join(several)} together with a single question", "unread field")
        task = "category" if field(raw, "task_type") is None else "task_type"
        texts = read_question("question", field(raw, "question")), read_answer("answer", field(raw, "answer"))
        return [texts[0]], [texts[1]], [(task, field(raw, task))]
    if field(raw, "question") is not None:
        raise RecordError("it has both question and questions")
    if field(raw, "answer") is not None:
        raise RecordError("it has answer beside several questions", "unread field")
    check_list("questions", questions, "no question")
    answers = field(raw, "answers")
    check_list("answers", answers, "no answer")
    single = "category" if field(raw, "task_type") is None else "task_type"
    task = next((name for name in ("task_types", "categories") if field(raw, name) is not None), single)
    tasks = field(raw, task)
    tasks = list(tasks) if isinstance(tasks, list | tuple) else [tasks] * len(questions)
    for name, entries in (("answers", answers), (task, tasks)):
        if len(entries) != len(questions):
            raise RecordError(f"it has {len(questions)} questions, but {len(entries)} {name}", "uneven lists")
    return (
        [read_question(f"questions[{index}]", text) for index, text in enumerate(questions)],
        [read_answer(f"answers[{index}]", text) for index, text in enumerate(answers)],
        [(task, value) for value in tasks],
    )


def check_list(name: str, value: Any, kind: FaultKind) -> None:
    """Raise `RecordError` if `value` is not a list, or is empty."""
    if value is not None and not isinstance(value, list | tuple):
        raise RecordError(f"{name} is {describe(value)}, not a list")
    if not value:
        raise RecordError(f"{name} is missing or empty", kind)


def read_question(name: str, value: Any) -> str:
    """Check a question and return it."""
    if isinstance(value, list | tuple):
        raise RecordError(f"{name} is {describe(value)}; for several questions, use the fields questions and answers")
    return read_text(name, value, "no question")


def read_answer(name: str, value: Any) -> str:
    """Convert an answer to text: a string, a number, or the first entry of a list."""
    if isinstance(value, list | tuple):
        if not value:
            raise RecordError(f"{name} is an empty list", "no answer")
        if len(value) == 4 and all(isinstance(entry, Real) for entry in value):
            raise RecordError(f"{name} is {describe(value)}; write boxes as text, with grounding.format_boxes")
        value = value[0]
    if isinstance(value, Integral) and not isinstance(value, bool):
        try:
            value = str(value)
        except ValueError as error:
            raise RecordError(f"{name} is {describe(value)}, not text") from error
    elif isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        value = str(int(number)) if number.is_integer() else str(value)
    return read_text(name, none_if_nan(value), "no answer")


def read_text(name: str, value: Any, kind: FaultKind) -> str:
    """Check that a text is neither missing nor blank, and return it.

    Raises:
        RecordError: with the given `kind` if it is; with other kinds if it is not text or not valid Unicode.
    """
    if value is None:
        raise RecordError(f"{name} is missing", kind)
    if not isinstance(value, str):
        raise RecordError(f"{name} is {describe(value)}, not text")
    check_encodable(name, value)
    if not any(letter.isprintable() and not letter.isspace() for letter in value):
        raise RecordError(f"{name} is empty", kind)
    return value


def check_boxes(name: str, text: str) -> None:
    """Raise `RecordError` if a text contains an invalid box."""
    for found in BOX.finditer(text):
        try:
            numbers = [float(entry) for entry in found[1].split(",")]
        except ValueError:  # something else in brackets
            continue
        left, top, right, bottom = numbers
        if not all(-BEYOND <= number <= 1 + BEYOND for number in numbers):
            raise RecordError(f"{name} has the box {found[0]}, but coordinates must be from 0 to 1", "bad box")
        if left > right or top > bottom:
            raise RecordError(f"{name} has the box {found[0]}, but the upper left corner must come first", "bad box")


def check_encodable(name: str, text: str) -> str:
    """Raise `RecordError` if `text` contains a lone surrogate, which cannot be stored; return `text`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(f"{name} is not valid Unicode: {error.reason}", "broken text") from error
    return text


def read_task_type(name: str, value: Any, categories: Mapping[str, str] | None) -> str:
    """Return the task type for the value of a category or `task_type` field."""
    if value is not None and not isinstance(value, str):
        raise RecordError(f"{name} is {describe(value)}, not text")
    if name in ("task_type", "task_types"):
        if value not in TASK_TYPES:
            raise RecordError(f"{name} is {describe(value)}, not one of {', '.join(TASK_TYPES)}", "unknown category")
        return value
    if categories is not None:
        if value is None or value not in categories:
            raise RecordError(f"{name} is {describe(value)}, which has no task type in categories", "unknown category")
        return categories[value]
    plain = (value or "").strip().lower().replace("-", "_").replace(" ", "_")
    return "region_level" if plain in REGION_CATEGORIES else "image_level"


def read_tags(value: Any) -> tuple[str, ...] | None:
    """Return tag names; a string is split at ", ", the separator in prompts."""
    if value is None:
        return None
    if isinstance(value, str):
        value = value.split(", ") if value.strip() else []
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) for tag in value):
        raise RecordError(f"tags are {describe(value)}, not text or a list of strings")
    return tuple(check_encodable("tags", tag) for tag in value)


def is_remote(text: str) -> bool:
    """Whether a string is a URL or a data URI."""
    return is_url(text) or is_data_uri(text)


def check_file(image: Any) -> None:
    """Raise `RecordError` if `image` is a path but not that of a file."""
    if not isinstance(image, str) or is_remote(image) or os.path.isfile(image):
        return
    if os.path.isdir(image):
        raise RecordError(f"its image {image!r} is a folder", "missing file")
    if not is_base64(image):
        raise RecordError(f"its image {image[:200]!r} does not exist", "missing file")


def open_image(image: Any, timeout: float | None = TIMEOUT) -> Image.Image:
    """Open the image of a record as an upright RGB image, and decode it completely.

    Args:
        image: the image; see `Record`.
        timeout: timeout of a download, in seconds.

    Raises:
        RecordError: if the file does not exist or cannot be read.
    """
    check_file(image)
    try:
        return to_rgb(image, timeout)
    except ValueError as error:
        if isinstance(image, bytes) and isinstance(error.__cause__, Image.UnidentifiedImageError):
            raise RecordError(
                f"its {len(image)} bytes are not an image in a known format", "unreadable image"
            ) from error
        raise RecordError(str(error), "unreadable image") from error


def make_row(record: Record) -> dict[str, Any]:
    """Convert a record to a row of a dataset, which `parse_record` can read.

    A single question goes to `question`, `answer` and `task_type`; several to `questions`, `answers` and `task_types`.

    Raises:
        RecordError: if the image is an object that cannot be converted.
    """
    several = len(record.questions) > 1
    texts = {
        "question": list(record.questions),
        "answer": list(record.answers),
        "task_type": list(record.task_types),
    }
    return {
        "image": store_image(record.image),
        **{name: None if several else values[0] for name, values in texts.items()},
        "tags": None if record.tags is None else list(record.tags),
        **{f"{name}s": values if several else None for name, values in texts.items()},
        "source": record.source,
    }


def store_image(image: Any) -> dict[str, Any]:
    """Convert an image to the storage format of `datasets.Image`; images and arrays become RGB PNG files."""
    if isinstance(image, str):
        return {"path": image, "bytes": None}
    if not isinstance(image, bytes):
        file = io.BytesIO()
        open_image(image).save(file, "PNG")
        image = file.getvalue()
    return {"path": None, "bytes": image}


__all__ = ["FaultKind", "Record", "RecordError", "parse_record"]
