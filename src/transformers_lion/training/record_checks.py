"""Checks records and converts them to rows: one by one in Python, or a whole batch of table columns at once.

Python checks take tens of microseconds a record, so 10 million records would take many minutes. Columns of plain
records (text, a path or the bytes of an image, a task, tags) are therefore checked with Arrow's functions. Whatever
those do not prove to be good is checked in Python, which also finds the fault. Rows, order, faults and names are the
same either way. Reading order: `RecordChecker`, `check_batch`, `check_columns`.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Image, Value

from ..columns import unread_fields
from .checked_images import CheckedImages
from .records import (
    FIELDS,
    IMAGE_NAMES,
    NOTES,
    PLURALS,
    RecordError,
    check_boxes,
    check_file,
    make_row,
    parse_record,
    read_task_type,
    resolve,
)
from .report import Fault, OnError, RecordReport

CheckImages = Literal["exists", "decode"]

IMAGE = Image(decode=False)

FEATURES = Features(
    {
        "image": IMAGE,
        "question": Value("string"),
        "answer": Value("string"),
        "task_type": Value("string"),
        "tags": [Value("string")],
        "questions": [Value("string")],
        "answers": [Value("string")],
        "task_types": [Value("string")],
        "source": Value("string"),
    }
)
"""The columns of a dataset of records. Images are stored as paths or encoded bytes, and opened by the collator.

A record with one question fills `question`, `answer` and `task_type`; a record with several fills their plurals.
`source` is the record's name in reports. `tags` is null if the record has none.
"""

SCHEMA = FEATURES.arrow_schema

WORDS = r"[\p{L}\p{N}]"
"""A letter or digit: a text that contains one is not blank."""

MIN_IMAGE_BYTES = 64
"""Shorter bytes are checked in Python: they may be blank."""

NUM_PATHS_KEPT = 1 << 16
"""Number of image paths whose check is remembered, because records that share an image are often neighbours."""


@dataclass(frozen=True)
class RecordChecker:
    """Converts raw records to rows, and reports bad ones; see `load_records` for the fields."""

    image_folder: str | os.PathLike | None
    categories: Mapping[str, str] | None
    check_images: CheckImages | None
    on_error: OnError
    report: RecordReport
    checked_images: CheckedImages

    def __call__(self, source: str, raw: Any) -> dict[str, Any] | Fault:
        """Return the row of a record, or its fault.

        Args:
            source: the name of the record.
            raw: the record, or the error of a line that could not be parsed.

        Raises:
            RecordError: if the record is bad and `on_error` is "raise".
        """
        try:
            if isinstance(raw, RecordError):
                raise raw
            record = replace(parse_record(raw, self.image_folder, self.categories), source=source)
            self.check_image(record.image)
            return make_row(record)
        except RecordError as error:
            return self.report.reject(source, error, self.on_error)

    @cached_property
    def is_good(self) -> Callable[[str], bool]:
        """Whether an image passes `check_image`, by its resolved path."""

        @lru_cache(maxsize=NUM_PATHS_KEPT)
        def check(path: str) -> bool:
            try:
                self.check_image(path)
            except RecordError:
                return False
            return True

        return check

    def find_path(self, path: str) -> str | None:
        """Resolve the path of an image; return `None` if it is blank, or the image is bad."""
        if not path.strip():
            return None
        resolved = resolve(path, self.image_folder)
        return resolved if self.is_good(resolved) else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "is_good"}

    def check_image(self, image: Any) -> None:
        """Raise `RecordError` if an image does not exist or cannot be opened, as far as that is to be checked."""
        if self.check_images == "exists":
            check_file(image)
        elif self.check_images == "decode":
            self.checked_images.check(image)


@dataclass(frozen=True)
class Batch:
    """Consecutive records of a source.

    Attributes:
        names: the names of the records.
        raw: returns the record at a position, or the error of a record that could not be parsed.
        table: the records' fields as columns, if they fit into columns without loss.
    """

    names: Sequence[str] | pa.Array
    raw: Callable[[int], Any]
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        """Return the name of a record."""
        name = self.names[position]
        return name.as_py() if isinstance(name, pa.Scalar) else name


@dataclass
class Checked:
    """Checked records.

    Attributes:
        table: the rows of good records, with the columns `FEATURES`.
        positions: the position of each row among the records.
        faults: the faults of bad records.
    """

    table: pa.Table
    positions: np.ndarray
    faults: list[Fault] = field(default_factory=list)

    def count_tasks(self) -> Counter[str]:
        """Count the questions by task type."""
        tasks: Counter[str] = Counter()
        for column in (self.table["task_type"], pc.list_flatten(self.table["task_types"])):
            tasks.update({entry["values"].as_py(): entry["counts"].as_py() for entry in pc.value_counts(column)})
        tasks.pop(None, None)  # type: ignore[call-overload]
        return tasks


def check_batch(batch: Batch, checker: RecordChecker) -> Checked:
    """Check the records of a batch, and return their rows in order.

    Raises:
        RecordError: at the first bad record, if `checker.on_error` is "raise".
    """
    proven = np.zeros(len(batch), dtype=bool)
    tables = []
    if batch.table is not None:
        columns, proven = check_columns(batch.table, checker)
        names = batch.names if isinstance(batch.names, pa.Array) else pa.array(batch.names, pa.string())
        table = pa.table([*columns, names], schema=SCHEMA)
        tables.append(table if proven.all() else table.filter(pa.array(proven)))
    rows, positions, faults = [], [], []
    for position in np.flatnonzero(~proven):
        row = checker(batch.name(int(position)), batch.raw(int(position)))
        if isinstance(row, Fault):
            faults.append(row)
        else:
            rows.append(row)
            positions.append(position)
    if rows or not tables:
        tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
    found = np.concatenate([np.flatnonzero(proven), np.array(positions, dtype=np.int64)])
    table = pa.concat_tables(tables)
    if len(tables) > 1:
        order = np.argsort(found)
        table, found = table.take(order), found[order]
    return Checked(table, found, faults)


# --- columns ----------------------------------------------------------------------------------------------------------


def check_columns(table: pa.Table, checker: RecordChecker) -> tuple[list[pa.Array], np.ndarray]:
    """Check the fields of N records as columns.

    Args:
        table: the records, N rows.
        checker: how to check them.

    Returns:
        The columns of `FEATURES` without `source`, and which of the N records are proven to be good. The entries of
        the other records have no meaning.
    """
    table = table.combine_chunks()
    columns = {
        name: column.chunk(0)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if column.num_chunks
    }
    size = table.num_rows
    known = (*FIELDS, *NOTES)
    good = np.ones(size, dtype=bool)
    for name in unread_fields(dict.fromkeys(columns, True), known):
        good &= ~_is_valid(columns[name])
    image, has_image = _check_images(columns, size, checker)
    task_type, has_task = _read_tasks(columns, size, checker.categories)
    tags, has_tags = _read_tags(columns.get("tags"), size)
    good &= has_image & has_task & has_tags
    question, answer, has_one = _read_one(columns, task_type, good)
    questions, answers, has_several = _read_several(columns, task_type, good)
    task_types = _repeat(task_type, questions)
    task_type = pc.if_else(pa.array(has_several), pa.scalar(None, pa.string()), task_type)
    return [image, question, answer, task_type, tags, questions, answers, task_types], good & (has_one | has_several)


def _read_one(
    columns: Mapping[str, pa.Array], task_type: pa.Array, good: np.ndarray
) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Return questions and answers of records with one question, and which records these are."""
    size = len(good)
    question, has_question = _read_texts(columns.get("question"), size)
    answer, has_answer = _read_texts(columns.get("answer"), size, integers=True)
    result = good & has_question & has_answer & _are_absent(columns, ("questions", *PLURALS), size)
    rows = np.flatnonzero(result & _is_region(task_type))
    for texts in (question, answer):
        result[_find_bad_boxes(texts.take(rows), rows)] = False
    return question, answer, result


def _read_several(
    columns: Mapping[str, pa.Array], task_type: pa.Array, good: np.ndarray
) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Return questions and answers of records with several questions of one task, and which records these are."""
    size, kind = len(good), SCHEMA.field("questions").type
    lists = [columns.get("questions"), columns.get("answers")]
    if any(column is None or not _is_list_of_text(column) for column in lists):
        return pa.nulls(size, kind), pa.nulls(size, kind), np.zeros(size, dtype=bool)
    questions, answers = (column.cast(kind) for column in lists)  # type: ignore[union-attr]
    lengths, others = (_lengths(column) for column in (questions, answers))
    result = good & (lengths > 1) & (lengths == others)
    result &= _are_absent(columns, ("question", "answer", "categories", "task_types"), size)
    is_region = _is_region(task_type)
    for column in (questions, answers):
        texts, rows = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
        result[rows[~_true(pc.match_substring_regex(texts, WORDS))]] = False
        boxed = np.flatnonzero((result & is_region)[rows])
        result[_find_bad_boxes(texts.take(boxed), rows[boxed])] = False
    nothing = pa.scalar(None, kind)
    return *(pc.if_else(pa.array(result), column, nothing) for column in (questions, answers)), result


def _repeat(values: pa.Array, lists: pa.Array) -> pa.Array:
    """Return lists of the same lengths that repeat one value each."""
    lengths = _lengths(lists)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    repeated = pa.ListArray.from_arrays(offsets, values.take(pa.array(np.repeat(np.arange(len(lists)), lengths))))
    return pc.if_else(pc.is_valid(lists), repeated.cast(lists.type), pa.scalar(None, lists.type))


def _lengths(lists: pa.Array) -> np.ndarray:
    """Return the lengths of lists, 0 for null."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)


def _is_list_of_text(column: pa.Array) -> bool:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return is_list and _as_text(column.values, len(column.values)) is not None


def _are_absent(columns: Mapping[str, pa.Array], names: Sequence[str], size: int) -> np.ndarray:
    """Return which records have none of these fields."""
    result = np.ones(size, dtype=bool)
    for name in names:
        if name in columns:
            result &= ~_is_valid(columns[name])
    return result


def _is_region(task_type: pa.Array) -> np.ndarray:
    return _true(pc.equal(task_type, "region_level"))


def _is_valid(column: pa.Array) -> np.ndarray:
    return pc.is_valid(column).to_numpy(zero_copy_only=False)


def _true(column: pa.Array) -> np.ndarray:
    """Return booleans as an array, with false for null."""
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False)


def _as_text(column: pa.Array | None, size: int) -> pa.Array | None:
    """Return a column as strings, `None` if it holds anything else."""
    if column is None or pa.types.is_null(column.type):
        return pa.nulls(size, pa.string())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    return None


def _nothing(size: int, kind: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """Return a column that nothing is known of."""
    return pa.nulls(size, kind), np.zeros(size, dtype=bool)


def _read_texts(column: pa.Array | None, size: int, integers: bool = False) -> tuple[pa.Array, np.ndarray]:
    """Return texts, and which of them are not blank; `integers` may be among them."""
    if integers and column is not None and pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    texts = _as_text(column, size)
    if texts is None:
        return _nothing(size, pa.string())
    return texts, _true(pc.match_substring_regex(texts, WORDS))


def _read_tasks(
    columns: Mapping[str, pa.Array], size: int, categories: Mapping[str, str] | None
) -> tuple[pa.Array, np.ndarray]:
    """Return task types, from `task_type` or else from `category`, and which of them are known."""
    found = []
    for name in ("task_type", "category"):
        texts = _as_text(columns.get(name), size)
        if texts is None:
            return _nothing(size, pa.string())
        if texts.null_count == size and name == "task_type":
            continue
        encoded = texts.dictionary_encode(null_encoding="encode")
        tasks = [_task_of(name, value, categories) for value in encoded.dictionary.to_pylist()]
        found.append((_is_valid(texts), pa.array(tasks, pa.string()).take(encoded.indices)))
    task_type = found[-1][1]
    if len(found) > 1:
        task_type = pc.if_else(pa.array(found[0][0]), found[0][1], task_type)
    return task_type, _is_valid(task_type)


def _task_of(name: str, value: str | None, categories: Mapping[str, str] | None) -> str | None:
    """Return the task type for the value of a field, `None` if it has none."""
    try:
        return read_task_type(name, value, categories)
    except RecordError:
        return None


def _read_tags(column: pa.Array | None, size: int) -> tuple[pa.Array, np.ndarray]:
    """Return lists of tags, and which of them can be used."""
    kind = SCHEMA.field("tags").type
    texts = _as_text(column, size)
    if texts is not None:
        if texts.null_count == size:
            return pa.nulls(size, kind), np.ones(size, dtype=bool)
        is_text = _true(pc.match_substring_regex(texts, WORDS)) | ~_is_valid(texts)
        return pc.split_pattern(texts, ", ").cast(kind), is_text
    if column is None or not _is_list_of_text(column) or pc.list_flatten(column).null_count:
        return _nothing(size, kind)
    return column.cast(kind), np.ones(size, dtype=bool)


def _find_bad_boxes(texts: pa.Array, rows: np.ndarray) -> list[int]:
    """Return those of the rows of texts that have an invalid box."""
    bad = []
    has_boxes = np.flatnonzero(_true(pc.match_substring(texts, "[")))
    for row, text in zip(rows[has_boxes].tolist(), texts.take(pa.array(has_boxes)).to_pylist(), strict=True):
        try:
            check_boxes("answer", text)
        except RecordError:
            bad.append(row)
    return bad


# --- images -----------------------------------------------------------------------------------------------------------


def _check_images(columns: Mapping[str, pa.Array], size: int, checker: RecordChecker) -> tuple[pa.Array, np.ndarray]:
    """Return the images of records in the storage format of `datasets.Image`, and which of them can be used."""
    kind = IMAGE.pa_type
    column = next((columns[name] for name in IMAGE_NAMES if name in columns and _may_be_image(columns[name])), None)
    if column is None:
        return _nothing(size, kind)
    content, path = _split_image(column, size)
    has_path = np.zeros(size, dtype=bool)
    if path.null_count < size:
        encoded = path.dictionary_encode()
        found = [checker.find_path(value) for value in encoded.dictionary.to_pylist()]
        path = pa.array(found, pa.string()).take(encoded.indices)
        has_path = _is_valid(path)
    has_content = _check_contents(content, checker)
    fields = {"bytes": content, "path": path}
    return pa.StructArray.from_arrays([fields[entry.name] for entry in kind], fields=list(kind)), has_path | has_content


def _may_be_image(column: pa.Array) -> bool:
    return column.null_count < len(column)


def _split_image(column: pa.Array, size: int) -> tuple[pa.Array, pa.Array]:
    """Return the bytes and, where there are none, the paths of images."""
    content, path = pa.nulls(size, pa.binary()), pa.nulls(size, pa.string())
    if pa.types.is_struct(column.type):
        names = [entry.name for entry in column.type]
        if "bytes" in names and not pa.types.is_null(column.type.field("bytes").type):
            content = pc.struct_field(column, "bytes").cast(pa.binary())
        found = _as_text(pc.struct_field(column, "path"), size) if "path" in names else path
        path = path if found is None else pc.if_else(pc.is_null(content), found, pa.scalar(None, pa.string()))
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        content = column.cast(pa.binary())
    else:
        found = _as_text(column, size)
        path = path if found is None else found
    return content, path


def _check_contents(content: pa.Array, checker: RecordChecker) -> np.ndarray:
    """Return which bytes can be used as images."""
    good = _true(pc.greater(pc.binary_length(content), MIN_IMAGE_BYTES))
    if checker.check_images == "decode":
        for position in np.flatnonzero(good):
            try:
                checker.check_image(content[int(position)].as_py())
            except RecordError:
                good[position] = False
    return good


__all__ = ["FEATURES", "SCHEMA", "Batch", "CheckImages", "Checked", "RecordChecker", "check_batch", "check_columns"]
