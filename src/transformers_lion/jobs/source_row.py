"""A row of a source: the name of an image and where it is stored, without its pixels."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from ..file_utils import printable

if TYPE_CHECKING:
    import pyarrow

RowKind = Literal["file", "tar", "parquet", "arrow", "missing"]

MOST_SHOWN = 12
"""Number of names that an error lists."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An image of a source.

    Attributes:
        key: Unique name: a path, a URL, or the source's own key.
        path: File that holds the image: an absolute local path, or a URL that `images` or fsspec opens.
        kind: "file" (the file is the image), "tar" (member of a shard), "parquet" or "arrow" (cell of a table), or
            "missing" (there is no image).
        position: Byte offset of a member's data, or number of the row in the table's file, from 0.
        size: Bytes of a member of a shard, otherwise 0.
        column: Image column of a table, otherwise empty.
        columns: The other columns of the row as a JSON object: strings, numbers, booleans, lists of strings,
            and boxes as lists of four numbers.
        error: Why there is no image; only if `kind` is "missing".
    """

    key: str
    path: str
    kind: RowKind
    position: int = 0
    size: int = 0
    column: str = ""
    columns: str = "{}"
    error: str | None = None

    @property
    def place(self) -> str:
        """Where the image is stored, for messages."""
        number = "" if self.kind == "file" else f", {'byte' if self.kind == 'tar' else 'row'} {self.position}"
        return f"{printable(self.path)}{number}"


FIELDS = tuple(field.name for field in fields(SourceRow))


def missing_row(key: str, path: str, error: str, columns: str = "{}", position: int = 0) -> SourceRow:
    """Return a row without an image. Names that are not valid Unicode, which no table can store, are escaped."""
    return SourceRow(storable(key), storable(path), "missing", position, columns=columns, error=storable(error))


def storable(text: str) -> str:
    """Escape the bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode() if not is_storable(text) else text


def is_storable(text: str) -> bool:
    """Whether a text is valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_columns(values: Mapping[str, Any]) -> str:
    """Write the values of a row that templates can use as a JSON object; leave out all others."""
    kept = {str(name): value for name, value in values.items() if _is_plain(value)}
    return storable(json.dumps(kept, ensure_ascii=False)) if kept else "{}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(isinstance(entry, str) for entry in value) or _is_box(value) or all(map(_is_box, value))
    return isinstance(value, str | int)


def _is_box(value: Any) -> bool:
    """Whether a value is a list of four numbers. Longer lists, such as embeddings, would make the rows large."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(entry, int | float) and math.isfinite(entry) for entry in value)
    )


def name_all(names: Iterable[str]) -> str:
    """List names for an error."""
    known = list(names)
    shown = ", ".join(map(repr, known[:MOST_SHOWN]))
    return f"{shown} and {len(known) - MOST_SHOWN} more" if len(known) > MOST_SHOWN else shown or "none"


def key_schema() -> "pyarrow.Schema":
    """Return the schema of a table of rows, with the fields of `SourceRow` in their order."""
    import pyarrow

    types = dict.fromkeys(FIELDS, pyarrow.string()) | dict.fromkeys(("position", "size"), pyarrow.int64())
    return pyarrow.schema(list(types.items()))


def rows_to_table(rows: Iterable[SourceRow]) -> "pyarrow.Table":
    """Return a table of rows with `key_schema`."""
    import pyarrow

    listed = list(rows)
    columns = {name: [getattr(row, name) for row in listed] for name in FIELDS}
    return pyarrow.table(columns, schema=key_schema())


def table_to_rows(table: "pyarrow.Table | pyarrow.RecordBatch") -> list[SourceRow]:
    """Return the rows of a table from `rows_to_table`."""
    columns = [table.column(name).to_pylist() for name in FIELDS]
    return [SourceRow(*values) for values in zip(*columns, strict=True)]


__all__ = ["SourceRow", "key_schema", "missing_row", "rows_to_table", "table_to_rows", "to_columns"]
