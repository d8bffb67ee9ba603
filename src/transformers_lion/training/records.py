"""One training record in any of the forms that files have -> a checked `Record`, or the reason why it is none.

Source: the records of LION's reference code, objects with `image` (or `image_path`, `image_id`), `question`, `answer`,
`category` and `tags`. Added is the form with several questions on one image: `questions`, `answers`, `categories`.
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
"""What may be wrong with a record."""

IMAGE_NAMES = ("image", "image_path", "image_id")
"""Where a record's image may stand; the first that is filled counts."""

PLURALS = ("answers", "categories", "task_types")
"""What belongs to several questions."""

FIELDS = (*IMAGE_NAMES, "question", "answer", "category", "task_type", "questions", *PLURALS, "tags", "source")
"""What of a record is read."""

NOTES = ("dataset", "split", "width", "height")
"""What else a record may have, beside ids and names that begin with "_"."""

NAMING = ("id", "question_id", *IMAGE_NAMES, "question")
"""Fields that tell a record from others."""

REGION_CATEGORIES = frozenset({"ref", "region", "region_level", "grounding"})
"""Categories of region-level tasks; all others are image level."""

BOX = re.compile(r"\[((?:[^\[\],]*,){3}[^\[\],]*)\]")
"""Four things in brackets, as LION writes a box."""

BEYOND = 0.005
"""So far over the edge of the image a box may be, by rounding."""


class RecordError(ValueError):
    """A record that cannot be used; `kind` says what is wrong in a word, the message in full."""

    def __init__(self, message: str, kind: FaultKind = "wrong type"):
        super().__init__(message)
        self.kind: FaultKind = kind


@dataclass(frozen=True)
class Record:
    """An image with its questions, most often one.

    Attributes:
        image: a path, a URL, base64 text, the bytes of an image file, an image, an array or a tensor.
        questions, answers, task_types: one entry for each question.
        tags: names, `None` where the record has none.
        source: what the record is called in a report.
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
    """Check a record and bring it into one form; the image itself is not looked at.

    `None` and NaN (an empty cell of a table) are as good as a missing field. A number is taken for an answer, whole
    ones without a decimal point. Of the answers in a list the first counts. Boxes in texts of region-level tasks must
    be such: fractions of width and height, the left upper corner first. A field that is not read is an error, unless it
    is a note: ids, `NOTES`, and names that begin with "_".

    Args:
        raw: an object as described on top of this module, or a row that `make_row` made.
        image_folder: where relative paths begin. Absolute ones, and such that lead out of it, are taken as they are.
        categories: the task type of each category; then others are errors. By default those in `REGION_CATEGORIES`
            are region level and all others, also none, image level.

    Raises:
        RecordError: if something is missing, empty, of a wrong type, or unknown.
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
    """A record's field; `None` where it is missing or NaN."""
    return none_if_nan(raw.get(name))


def check_names(raw: Mapping) -> None:
    """Raise `RecordError` if a record has a field that is not read, which would change nothing without a word."""
    unread = unread_fields(raw, (*FIELDS, *NOTES))
    if unread:
        raise RecordError(
            f"it has {', '.join(unread)}, which is not read; fields are {', '.join(FIELDS)}. Names of notes begin with "
            "an underscore.",
            "unread field",
        )


def none_if_nan(value: Any) -> Any:
    """`None` for NaN, which tables have in empty cells."""
    return None if isinstance(value, Real) and value != value else value


def name_record(raw: Any) -> str:
    """What a record is called in a report that stands in no file: its source, or else what tells it from others."""
    if not isinstance(raw, Mapping):
        return f"record {describe(raw)}"
    if field(raw, "source"):
        return str(raw["source"])
    image = field(raw, "image")
    known = {**raw, "image": field(image, "path") if isinstance(image, Mapping) else image}
    parts = [f"{name} {str(known[name])[:60]!r}" for name in NAMING if isinstance(known.get(name), str | int)]
    return f"record with {', '.join(parts)}" if parts else "record without a name"


def describe(value: Any) -> str:
    """A value in an error message."""
    if value is None:
        return "null"
    try:
        return f"{type(value).__name__} {str(value)[:40]!r}"
    except ValueError:  # Python does not write out integers of more than 4,300 digits
        return f"{type(value).__name__} of too many digits"


def read_image(raw: Mapping, image_folder: str | os.PathLike | None) -> Any:
    """The record's image, with its path resolved."""
    for name in IMAGE_NAMES:
        value = field(raw, name)
        if isinstance(value, Mapping):  # as `datasets.Image` stores it
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
    """A path from the image folder on; URLs and base64 text stay as they are."""
    if is_remote(path):
        return path
    joined = path if image_folder is None else os.path.join(image_folder, path)
    return path if is_base64(path) and not os.path.isfile(joined) else joined


def read_texts(raw: Mapping) -> tuple[list[str], list[str], list[tuple[str, Any]]]:
    """Questions, answers, and the name and value of what tells the task, of each question.

    Raises:
        RecordError: also if lists have different lengths, or a single question stands beside a list of them.
    """
    questions = field(raw, "questions")
    if questions is None:
        several = [name for name in PLURALS if field(raw, name) is not None]
        if several and field(raw, "answer") is not None:
            raise RecordError(f"it has {', '.join(several)} beside a single question", "unread field")
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
    """Raise `RecordError` if `value` is no list or an empty one."""
    if value is not None and not isinstance(value, list | tuple):
        raise RecordError(f"{name} is {describe(value)}, not a list")
    if not value:
        raise RecordError(f"{name} is missing or empty", kind)


def read_question(name: str, value: Any) -> str:
    """A question that is some text."""
    if isinstance(value, list | tuple):
        raise RecordError(f"{name} is {describe(value)}; several questions on one image stand in questions and answers")
    return read_text(name, value, "no question")


def read_answer(name: str, value: Any) -> str:
    """An answer that is some text: the value, a number, or the first of a list."""
    if isinstance(value, list | tuple):
        if not value:
            raise RecordError(f"{name} is an empty list", "no answer")
        if len(value) == 4 and all(isinstance(entry, Real) for entry in value):
            raise RecordError(f"{name} is {describe(value)}; boxes are texts, which grounding.format_boxes writes")
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
    """A text that is neither missing nor blank.

    Raises:
        RecordError: of that `kind` if it is, and others if it is no text or cannot be written as UTF-8.
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
    """Raise `RecordError` if something in a text looks like a box, but is none."""
    for found in BOX.finditer(text):
        try:
            numbers = [float(entry) for entry in found[1].split(",")]
        except ValueError:  # something else in brackets
            continue
        left, top, right, bottom = numbers
        if not all(-BEYOND <= number <= 1 + BEYOND for number in numbers):
            raise RecordError(f"{name} has the box {found[0]}, whose numbers are not all from 0 to 1", "bad box")
        if left > right or top > bottom:
            raise RecordError(f"{name} has the box {found[0]}, whose corners are not in order", "bad box")


def check_encodable(name: str, text: str) -> str:
    """`text`, if it has no half of a surrogate pair in it, which nothing can store."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(f"{name} is no valid Unicode: {error.reason}", "broken text") from error
    return text


def read_task_type(name: str, value: Any, categories: Mapping[str, str] | None) -> str:
    """The task type of a category, or of a `task_type` that is given as such."""
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
    """Names of tags; a text is taken apart at ", ", as it is put together in the prompt."""
    if value is None:
        return None
    if isinstance(value, str):
        value = value.split(", ") if value.strip() else []
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) for tag in value):
        raise RecordError(f"tags are {describe(value)}, not text or a list of texts")
    return tuple(check_encodable("tags", tag) for tag in value)


def is_remote(text: str) -> bool:
    """Whether a text is an image but no path: an address, or a data URI."""
    return is_url(text) or is_data_uri(text)


def check_file(image: Any) -> None:
    """Raise `RecordError` if `image` is the path of no file."""
    if not isinstance(image, str) or is_remote(image) or os.path.isfile(image):
        return
    if os.path.isdir(image):
        raise RecordError(f"its image {image!r} is a folder", "missing file")
    if not is_base64(image):
        raise RecordError(f"its image {image[:200]!r} does not exist", "missing file")


def open_image(image: Any, timeout: float | None = TIMEOUT) -> Image.Image:
    """The image of a record as an upright RGB image, read to its last pixel.

    Args:
        image: as in `Record`.
        timeout: of a download, in seconds.

    Raises:
        RecordError: if there is no such file, or it cannot be read.
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
    """A record as a row of a dataset, which `parse_record` reads back.

    One question stands in `question`, `answer` and `task_type`; several in `questions`, `answers` and `task_types`.

    Raises:
        RecordError: if its image is an image that cannot be read.
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
    """An image as `datasets.Image` stores it; images and arrays become PNG files of their RGB pixels."""
    if isinstance(image, str):
        return {"path": image, "bytes": None}
    if not isinstance(image, bytes):
        file = io.BytesIO()
        open_image(image).save(file, "PNG")
        image = file.getvalue()
    return {"path": None, "bytes": image}


__all__ = ["FaultKind", "Record", "RecordError", "parse_record"]
