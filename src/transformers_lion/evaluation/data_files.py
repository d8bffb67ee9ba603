"""Read the records of data files. Each record knows its location for error messages.

A file is JSON (a list of records, an object that maps ids to records, or an object that contains lists) or JSON Lines,
regardless of its extension, or Parquet, if it has that extension. This module does not depend on tasks.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .parquet_files import IN_FILE, PARQUET, read_parquet
from .task import Example

IMAGE_NAMES = ("image", "image_path", "img_path", "file_name", "filename", "imageId", "image_id")
"""Fields that may contain the image of a record. The first one with a value counts."""

TRAINING_GROUPS = frozenset({"train", "restval"})

UNREAD = {
    "prompt": "each task has its own prompt",
    "task_type": "each task has its own task type",
    "task_types": "each task has its own task type",
    "tag": "use tags",
}
"""Model inputs that are never read from records, with the reason."""

TAG_SEPARATOR = ", "
"""Separator of tags in a string, as in the prompt."""


@dataclass(frozen=True)
class Row:
    """A record of a data file.

    Attributes:
        fields: Fields of the record.
        where: File and record number, for error messages.
    """

    fields: Mapping[str, Any]
    where: str

    def error(self, expected: str) -> ValueError:
        """Create an error that names this record."""
        return ValueError(f"{self.where}: {expected}")

    def find(self, *names: str) -> Any:
        """Return the first of the named fields that exists and is not null, or `None`."""
        return next((self.fields[name] for name in names if self.fields.get(name) is not None), None)

    def need(self, *names: str) -> Any:
        """Like `find`, but raise an error if there is no such field."""
        value = self.find(*names)
        if value is None:
            raise self.error(f"expected {' or '.join(names)}, but its fields are {name_some(self.fields)}.")
        return value

    def text(self, *names: str) -> str:
        """Return the first of the named fields, which must be a string that is not blank."""
        value = self.need(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"expected a string in {' or '.join(names)}, not {describe(value)}.")
        return value

    def name(self, *names: str) -> str:
        """Return an id: a string or an integer."""
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.error(f"expected a string or an integer in {' or '.join(names)}, not {describe(value)}.")
        return str(value)

    def whole(self, *names: str) -> int:
        """Return an integer."""
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"expected an integer in {' or '.join(names)}, not {describe(value)}.")
        return value

    def list(self, *names: str) -> Sequence[Any]:
        """Return a list that is not empty."""
        value = self.need(*names)
        if not isinstance(value, list) or not value:
            raise self.error(f"expected a non-empty list in {' or '.join(names)}, not {describe(value)}.")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """Return a list of non-empty strings."""
        value = self.list(*names)
        if not all(isinstance(entry, str) and entry for entry in value):
            raise self.error(f"expected non-empty strings in {' or '.join(names)}, not {describe(value)}.")
        return tuple(value)

    def numbers(self, *names: str) -> tuple[float, ...]:
        """Return a list of finite numbers."""
        value = self.list(*names)
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
                raise self.error(f"expected numbers in {' or '.join(names)}, not {describe(value)}.")
        return tuple(float(entry) for entry in value)

    def rows(self, name: str) -> Iterator["Row"]:
        """Yield the objects of a list in this record."""
        yield from number_rows(self.list(name), f"{self.where}, {name}")

    def refuse(self, reasons: Mapping[str, str] = UNREAD) -> "Row":
        """Return this record after checking that it has none of the given fields. The reasons are used in the error."""
        for name, reason in reasons.items():
            if self.find(name) is not None:
                raise self.error(f"{name} is not read: {reason}.")
        return self

    @property
    def tags(self) -> tuple[str, ...] | None:
        """Tags of the image, from a list or a string. `None` if there are none."""
        value = self.find("tags")
        if isinstance(value, str):
            return tuple(value.split(TAG_SEPARATOR)) if value.strip() else ()
        return None if value is None else () if value == [] else self.texts("tags")


def describe(value: Any) -> str:
    """Format a value for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def name_some(names: Mapping[str, Any] | Sequence[str], most: int = 8) -> str:
    """List the first few names and the number of the others."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "none"


def number_rows(records: Sequence[Any], source: str) -> Iterator[Row]:
    """Yield the objects of a list as rows that are numbered from 1."""
    for number, record in enumerate(records, 1):
        where = f"{source}, record {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object, not {describe(record)}.")
        yield Row(record, where)


def read_json(path: Path) -> Any:
    """Read a JSON file. Several lines of JSON Lines are returned as a list.

    Raises:
        ValueError: If the file cannot be read or has neither format.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return _read_values(file, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Supported formats are JSON, JSON Lines, "
            f"and Parquet with the extension {PARQUET}."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: its brackets are nested too deeply.") from error


def _read_values(file: TextIO, path: Path) -> Any:
    """Parse an open file. If its first line is not valid JSON, the whole file is one document."""
    skipped, first = 0, file.readline()
    while first and not first.strip():
        skipped, first = skipped + 1, file.readline()
    if not first:
        raise ValueError(f"{path} is empty.")
    try:
        values = [json.loads(first)]
    except json.JSONDecodeError:
        return _parse_json(first + file.read(), path, skipped)
    for number, line in enumerate(file, skipped + 2):
        if line.strip():
            values.append(_parse_json(line.strip(), path, number - 1))
    return values[0] if len(values) == 1 else values


def _parse_json(text: str, path: Path, lines_before: int) -> Any:
    """Parse JSON that follows `lines_before` lines of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = lines_before + error.lineno
        raise ValueError(f"{path}, line {line}: expected JSON or JSON Lines: {error.msg}.") from error


def read_document(path: Path) -> Row | list[Row]:
    """Read a data file: a list of rows for a list or JSON Lines, or one row for an object."""
    content = read_parquet(path) if path.suffix == PARQUET else read_json(path)
    if isinstance(content, dict):
        return Row(content, str(path))
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a list of records or an object, not {describe(content)}.")
    return [row.refuse() for row in number_rows(content, str(path))]


def _is_id_map(document: Row) -> bool:
    """Whether an object maps ids to records."""
    return bool(document.fields) and all(isinstance(value, dict) for value in document.fields.values())


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of records."""
    return list_rows(read_document(path))


def list_rows(document: Row | list[Row], container: str = "data", id_name: str = "question_id") -> list[Row]:
    """List the rows of a data file.

    Args:
        document: Rows, an object that maps ids to records, an object with the list in a field, or a single record.
        container: Name of that field.
        id_name: Field of a row to which the id of an id map is written.
    """
    if isinstance(document, list):
        return document
    if isinstance(document.find(container), list):
        return [row.refuse() for row in document.rows(container)]
    if _is_id_map(document):
        return [
            Row({id_name: key, **fields}, f"{document.where}, record {key!r}").refuse()
            for key, fields in document.fields.items()
        ]
    return [Row(document.fields, f"{document.where}, record 1").refuse()]


def require_unique(names: Sequence[str], source: str) -> None:
    """Raise `ValueError` if ids are not unique."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    twice = list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    raise ValueError(f"{source}: {len(names)} records have {len(set(names))} ids; duplicates: {name_some(twice)}.")


def read_image(row: Row, images: Path | None, names: Sequence[str] = IMAGE_NAMES, subset: str = "") -> str:
    """Return the image file of a record, relative to the image folder.

    An id is looked up under the file names of COCO, Visual Genome and other datasets. A file in a folder, such as
    TextCaps' `train/ID.jpg`, is also looked up where the images are published; see `_list_path_names`. Without an image
    folder, the first of these names is returned.

    Args:
        row: The record.
        images: Image folder.
        names: Fields that may contain the image.
        subset: Subset of COCO, such as "val2014", if the data specify it.

    Returns:
        The file, or, if it does not exist, the name of an image within a Parquet file.
    """
    inside = row.find(IN_FILE)
    if inside is not None and row.find(*names) is None:
        return str(inside)
    value = row.name(*names)
    is_id = not Path(value).suffix
    found = list_image_names(value, subset) if is_id else _list_path_names(value, row.find("image_id"))
    chosen = choose_image(images, found)
    has_file = (images or Path()) / chosen
    return chosen if inside is None or has_file.is_file() else str(inside)


def _list_path_names(path: str, image_id: Any = None) -> list[str]:
    """List the files that a path may refer to.

    Args:
        path: Path in the data, such as "train/ID.jpg".
        image_id: Image id in the record. If the file is named after it, the file may also be directly in the image
            folder.

    Returns:
        For example "train/ID.jpg", "train_images/ID.jpg" and "ID.jpg".
    """
    folder, _, name = path.rpartition("/")
    if not folder or "://" in path:
        return [path]
    is_own = image_id is not None and str(image_id) == Path(name).stem
    return [path, f"{folder}_images/{name}", *([name] if is_own else [])]


def list_image_names(image_id: str, subset: str = "") -> list[str]:
    """List the files that may contain the image with this id."""
    names = [f"{image_id}.jpg", f"{image_id}.png", image_id]
    if not image_id.isdecimal():
        return names
    number = image_id.zfill(12)
    old = [f"COCO_{year}_{number}.jpg" for year in (subset or "val2014", "val2014", "train2014", "test2015")]
    coco = [*old, f"{number}.jpg"] if subset.endswith(("2014", "2015")) else [f"{number}.jpg", *old]
    return [*coco, *names] if subset else [*names, *coco]


def choose_image(images: Path | None, names: Sequence[str]) -> str:
    """Return the first name that exists in the image folder, or else the first name."""
    if images is not None and len(names) > 1:
        return next((name for name in names if (images / name).is_file()), names[0])
    return names[0]


def leave_out_training(examples: list[Example]) -> list[Example]:
    """Drop the examples of training splits, unless there are no others."""
    return [example for example in examples if example.group not in TRAINING_GROUPS] or examples


__all__ = [
    "Row",
    "choose_image",
    "leave_out_training",
    "list_rows",
    "read_document",
    "read_image",
    "read_rows",
    "require_unique",
]
