"""Files of data -> their records, each of which knows where it stands.

A file is JSON (a list of records, an object that maps ids to them, or an object with lists in it) or JSON Lines,
whatever its name ends with, or Parquet, whose name ends with that. Nothing here knows a task.
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
"""Where a record's image may stand; the first that is filled counts."""

TRAINING_GROUPS = frozenset({"train", "restval"})

UNREAD = {
    "prompt": "each task has a prompt of its own",
    "task_type": "each task has a type of its own",
    "task_types": "each task has a type of its own",
    "tag": "tags stand in tags",
}
"""Inputs of the model that no task takes from a record, and why."""

TAG_SEPARATOR = ", "
"""Of tags that stand in one text, as they do in the prompt."""


@dataclass(frozen=True)
class Row:
    """A record of a data file.

    Attributes:
        fields: of its object.
        where: file and number, as errors name it.
    """

    fields: Mapping[str, Any]
    where: str

    def error(self, expected: str) -> ValueError:
        """What is wrong with this record."""
        return ValueError(f"{self.where}: {expected}")

    def find(self, *names: str) -> Any:
        """The first of the named fields that is there and not null, else `None`."""
        return next((self.fields[name] for name in names if self.fields.get(name) is not None), None)

    def need(self, *names: str) -> Any:
        """As `find`, where one of them has to be there."""
        value = self.find(*names)
        if value is None:
            raise self.error(f"expected {' or '.join(names)}, but its fields are {name_some(self.fields)}.")
        return value

    def text(self, *names: str) -> str:
        """A text that is not blank, from the first of the named fields that is there."""
        value = self.need(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"expected a text in {' or '.join(names)}, not {describe(value)}.")
        return value

    def name(self, *names: str) -> str:
        """An id: a text or a whole number."""
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.error(f"expected a text or a whole number in {' or '.join(names)}, not {describe(value)}.")
        return str(value)

    def whole(self, *names: str) -> int:
        """A whole number."""
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"expected a whole number in {' or '.join(names)}, not {describe(value)}.")
        return value

    def list(self, *names: str) -> Sequence[Any]:
        """A list that is not empty."""
        value = self.need(*names)
        if not isinstance(value, list) or not value:
            raise self.error(f"expected a list in {' or '.join(names)}, not {describe(value)}.")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """A list of texts, of which none is empty."""
        value = self.list(*names)
        if not all(isinstance(entry, str) and entry for entry in value):
            raise self.error(f"expected texts in {' or '.join(names)}, not {describe(value)}.")
        return tuple(value)

    def numbers(self, *names: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self.list(*names)
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
                raise self.error(f"expected numbers in {' or '.join(names)}, not {describe(value)}.")
        return tuple(float(entry) for entry in value)

    def rows(self, name: str) -> Iterator["Row"]:
        """The objects of a list in this record."""
        yield from number_rows(self.list(name), f"{self.where}, {name}")

    def refuse(self, reasons: Mapping[str, str] = UNREAD) -> "Row":
        """This record, if it has none of some fields, each with the reason why it is not read."""
        for name, reason in reasons.items():
            if self.find(name) is not None:
                raise self.error(f"{name} is not read: {reason}.")
        return self

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The image's tags, a list or one text, `None` where there are none."""
        value = self.find("tags")
        if isinstance(value, str):
            return tuple(value.split(TAG_SEPARATOR)) if value.strip() else ()
        return None if value is None else () if value == [] else self.texts("tags")


def describe(value: Any) -> str:
    """A value in an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def name_some(names: Mapping[str, Any] | Sequence[str], most: int = 8) -> str:
    """The first few of some names, and how many there are more."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "none"


def number_rows(records: Sequence[Any], source: str) -> Iterator[Row]:
    """The objects of a list, as rows that are counted from 1."""
    for number, record in enumerate(records, 1):
        where = f"{source}, record {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object, not {describe(record)}.")
        yield Row(record, where)


def read_json(path: Path) -> Any:
    """What a file holds; of JSON Lines with several lines, the list of them.

    Raises:
        ValueError: if it cannot be read, or is neither.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return _read_values(file, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}). What is read is JSON, JSON Lines, and "
            f"Parquet in files that are named *{PARQUET}."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is no data: its brackets are nested too deeply.") from error


def _read_values(file: TextIO, path: Path) -> Any:
    """The JSON in an open file, which is one document if its first line alone is none."""
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
    """JSON that stands after some lines of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = lines_before + error.lineno
        raise ValueError(f"{path}, line {line}: expected JSON or JSON Lines: {error.msg}.") from error


def read_document(path: Path) -> Row | list[Row]:
    """A data file: a list of rows where it is a list or lines, else its one object as a row."""
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
    """The rows of a file of records."""
    return list_rows(read_document(path))


def list_rows(document: Row | list[Row], container: str = "data", id_name: str = "question_id") -> list[Row]:
    """The rows of a data file.

    Args:
        document: rows, an object that maps ids to records, one with the list in a field, or a single record.
        container: that field.
        id_name: what the object's id of a record is called in its row.
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
    """Raise `ValueError` if ids of a file's records are given twice."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    twice = list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    raise ValueError(f"{source}: {len(names)} records have {len(set(names))} ids; twice: {name_some(twice)}.")


def read_image(row: Row, images: Path | None, names: Sequence[str] = IMAGE_NAMES, subset: str = "") -> str:
    """The file of a record's image, relative to the folder of images.

    An id is looked for under the names that COCO, Visual Genome and others give to files, and a file in a folder, such
    as TextCaps' `train/ID.jpg`, also where the images are published; see `_list_path_names`. Without a folder of
    images, it is the first of these names.

    Args:
        row: the record.
        images: the folder.
        names: of the fields in which the image may stand.
        subset: of COCO, as in "val2014", where the data say it.

    Returns:
        The file, or the name of an image within a Parquet file, if there is no such file.
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
    """The files in which the image of a path may be.

    Args:
        path: as the data have it, such as "train/ID.jpg".
        image_id: of the record. Where the file is named by it, the file may also lie in the folder of images itself.

    Returns:
        "train/ID.jpg", "train_images/ID.jpg" and "ID.jpg".
    """
    folder, _, name = path.rpartition("/")
    if not folder or "://" in path:
        return [path]
    is_own = image_id is not None and str(image_id) == Path(name).stem
    return [path, f"{folder}_images/{name}", *([name] if is_own else [])]


def list_image_names(image_id: str, subset: str = "") -> list[str]:
    """The files in which the image of an id may be."""
    names = [f"{image_id}.jpg", f"{image_id}.png", image_id]
    if not image_id.isdecimal():
        return names
    number = image_id.zfill(12)
    old = [f"COCO_{year}_{number}.jpg" for year in (subset or "val2014", "val2014", "train2014", "test2015")]
    coco = [*old, f"{number}.jpg"] if subset.endswith(("2014", "2015")) else [f"{number}.jpg", *old]
    return [*coco, *names] if subset else [*names, *coco]


def choose_image(images: Path | None, names: Sequence[str]) -> str:
    """The first of some names under which a file is in the folder of images, or else the first."""
    if images is not None and len(names) > 1:
        return next((name for name in names if (images / name).is_file()), names[0])
    return names[0]


def leave_out_training(examples: list[Example]) -> list[Example]:
    """The examples that are not of a training split, if there are any."""
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
