"""Images in tables: Parquet files, and data sets saved by `datasets.save_to_disk` (Arrow).

An image column has bytes, `struct<bytes, path>` as `datasets` writes it, or strings: paths or URLs. Sources: the Apache
Parquet format, pyarrow's readers, and the folders of `datasets`.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, repeat
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..images import is_data_uri
from .source_row import RowKind, SourceRow, is_storable, missing_row, name_all, to_columns
from .storage import exists, folder_of, is_remote, join, open_binary

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

IMAGE_COLUMNS = ("image", "image_path", "img", "img_path", "file_name", "filename", "path", "image_url", "url")
"""Names of the image column if none is given, in any case; the first one that exists is used."""

ROW_NUMBER = "#"
"""The `key_column` that stands for the file and the number of the row."""

LISTED_ROWS = 1024
"""Rows to list at a time."""
ROWS_READ = 16
"""Rows whose images are read at a time."""
BATCHES_KEPT = 4
"""Batches of `ROWS_READ` rows to keep for each open file, because threads ask for rows in almost their order."""
REMOTE_BUFFER = 1 << 22
"""Bytes to read at a time from a remote file; without a buffer, all images of a row group would be read at once."""
FILES_KEPT = 4
"""Number of files to keep open."""
CLOSE_TIMEOUT = 1.0
"""Seconds to wait for a file that is being read before leaving it open."""

STATE, FEATURES, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""File names of `datasets.save_to_disk`."""


@dataclass(frozen=True)
class RowOptions:
    """How to read the rows of tables and manifests.

    Attributes:
        image_column: Column of the images; by default, see `choose_image_column`.
        key_column: Column of the keys. By default, keys are the paths or URLs of the images, or the file and the number
            of the row if the images are in the table. `ROW_NUMBER` stands for the latter.
        image_root: Folder or URL that relative paths are resolved against; by default the folder of the file.
    """

    image_column: str | None = None
    key_column: str | None = None
    image_root: str | None = None

    def root(self, file: str) -> str:
        """Return the folder that the paths in a file are relative to."""
        return folder_of(file) if self.image_root is None else self.image_root


def need_pyarrow(name: str) -> None:
    """Raise `ValueError` if pyarrow, which the core of this package does not need, is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(f'{name}: reading it needs pyarrow: pip install "transformers-lion[ray]".') from error


# --- columns ----------------------------------------------------------------------------------------------------------


def cell_kind(kind: "pyarrow.DataType") -> str:
    """Return which images a column may have: "struct", "bytes", "text", or "" for none."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        has_bytes = any(part.name == "bytes" and cell_kind(part.type) == "bytes" for part in kind)
        return "struct" if has_bytes else ""
    name = str(kind)  # also of views, which older versions of pyarrow do not know
    if name in ("binary", "large_binary", "binary_view"):
        return "bytes"
    return "text" if name in ("string", "large_string", "string_view") else ""


def choose_image_column(schema: "pyarrow.Schema", wanted: str | None, file: str) -> str:
    """Return the image column: the wanted one, a column with images, or a column of strings in `IMAGE_COLUMNS`.

    Raises:
        ValueError: if the wanted column does not exist or has another type, or if none or several could be meant.
    """
    kinds = {field.name: cell_kind(field.type) for field in schema}
    if wanted is not None:
        check_column(wanted, kinds, file)
        if not kinds[wanted]:
            raise ValueError(
                f"{file}: the column {wanted!r} has the type {schema.field(wanted).type}, but images are bytes, "
                "struct<bytes, path>, or strings with paths or URLs."
            )
        return wanted
    for kind in ("struct", "bytes", "text"):
        found = [name for name in kinds if kinds[name] == kind]
        named = find_named(found)
        if named or (kind != "text" and len(found) == 1):
            return (named or found)[0]
        if kind != "text" and found:
            raise ValueError(f"{file} has several columns with bytes: {name_all(found)}. Choose the image column.")
    raise ValueError(f"{file} has no image column; its columns are {name_all(kinds)}. Choose the image column.")


def find_named(names: Iterable[str]) -> list[str]:
    """Return the names that are in `IMAGE_COLUMNS`, ignoring case, in that order."""
    known = list(names)
    return [name for wanted in IMAGE_COLUMNS for name in known if name.lower() == wanted]


def check_column(name: str, known: Any, file: str) -> None:
    """Raise `ValueError` if a file does not have a column."""
    if name not in known:
        raise ValueError(f"{file} has no column {name!r}; its columns are {name_all(known)}.")


def _is_plain(kind: "pyarrow.DataType") -> bool:
    """Whether a column can have values that templates use."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_list = types.is_list(kind) or types.is_large_list(kind)
    if is_list:
        return cell_kind(kind.value_type) == "text"
    return types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or cell_kind(kind) == "text"


@dataclass(frozen=True)
class TableReader:
    """Makes rows from the batches of a file.

    Attributes:
        kind: Kind of the rows whose images are in the table.
        path: The file.
        name: Name of the file or data set in keys.
        schema: Schema of the table.
        options: How to read the rows.
        first_row: Number of the first row in keys.
    """

    kind: RowKind
    path: str
    name: str
    schema: "pyarrow.Schema"
    options: RowOptions
    first_row: int = 0

    def __post_init__(self) -> None:
        if self.options.key_column not in (None, ROW_NUMBER):
            check_column(str(self.options.key_column), self.schema.names, self.name)

    @property
    def image(self) -> str:
        """The image column."""
        return choose_image_column(self.schema, self.options.image_column, self.name)

    @property
    def plain(self) -> list[str]:
        """The columns that are kept beside the image, and the column of keys."""
        key = self.options.key_column
        return [x.name for x in self.schema if x.name != self.image and (x.name == key or _is_plain(x.type))]

    def rows(
        self, values: Sequence[dict[str, Any]], image: str, has_bytes: Sequence[bool], position: int
    ) -> Iterator[SourceRow]:
        """Yield the rows of a batch.

        Args:
            values: the cells of each row, without the bytes of images.
            image: the image column.
            has_bytes: whether the image of each row is in the table.
            position: number of the first row in the file.
        """
        for number, (cells, is_inside) in enumerate(zip(values, has_bytes, strict=True), position):
            cell = cells.pop(image, None)
            path = cell.get("path") if isinstance(cell, dict) else cell
            yield self.row(number, path if isinstance(path, str) and path else None, is_inside, cells)

    def row(self, number: int, path: str | None, is_inside: bool, cells: dict[str, Any]) -> SourceRow:
        """Return the row of an image in the table, or of a path or URL."""
        options, place = self.options, f"{self.name}#{self.first_row + number}"
        columns = to_columns(cells)
        key = place if path is None or is_inside else path
        if options.key_column == ROW_NUMBER:
            key = place
        elif options.key_column is not None:
            value = path if options.key_column == self.image else cells[options.key_column]
            if value is None or value == "":
                return missing_row(place, self.path, f"its {options.key_column} is empty.", columns, number)
            key = str(value)
        if is_inside:
            return SourceRow(key, self.path, self.kind, number, column=self.image, columns=columns)
        if path is None:
            return missing_row(key, self.path, f"its {self.image} is empty.", columns, number)
        return path_row(key, path, options.root(self.path), columns, place)


def path_row(key: str, path: str, root: str, columns: str, place: str) -> SourceRow:
    """Return the row of a path or URL in a table or manifest.

    Args:
        key: key of the row.
        path: the path or URL.
        root: folder or URL that a relative path is resolved against.
        columns: the other columns.
        place: name of the row if the key cannot be used.
    """
    if is_data_uri(path):
        return missing_row(place if key == path else key, root, "it is a data URI, not a path or a URL.", columns)
    if not is_storable(path):
        return missing_row(key, path, "its path is not valid Unicode.", columns)
    return SourceRow(key, join(root, path), "file", columns=columns)


# --- Parquet ----------------------------------------------------------------------------------------------------------


@contextmanager
def open_parquet(path: str) -> "Iterator[parquet.ParquetFile]":
    """Open a Parquet file.

    Raises:
        ValueError: if it cannot be read.
    """
    file = load_parquet(path)
    try:
        yield file
    finally:
        file.close(force=True)


def load_parquet(path: str) -> "parquet.ParquetFile":
    """Open a Parquet file; the caller closes it."""
    need_pyarrow(path)
    import pyarrow
    from pyarrow import parquet

    try:
        if is_remote(path):
            return parquet.ParquetFile(open_binary(path), buffer_size=REMOTE_BUFFER)
        return parquet.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).rstrip('.')}.") from error


def list_parquet(path: str, name: str, options: RowOptions) -> Iterator[SourceRow]:
    """Yield the rows of a Parquet file, without reading the images in it.

    Args:
        path: absolute path or URL.
        name: name of the file in keys.
        options: how to read the rows.

    Raises:
        ValueError: if the file cannot be read, or a column is missing.
    """
    with open_parquet(path) as file:
        reader = TableReader("parquet", path, name, file.schema_arrow, options)
        image = reader.image
        position = 0
        for group in range(file.num_row_groups):
            for row in _list_group(file, group, reader, image, position):
                yield row
                position += 1


def _list_group(
    file: "parquet.ParquetFile", group: int, reader: TableReader, image: str, start: int
) -> Iterator[SourceRow]:
    """Yield the rows of a row group."""
    field = reader.schema.field(image)
    kind = cell_kind(field.type)
    has_bytes = iter(_find_bytes(file, group, image, kind))
    shown = [image] if kind == "text" else []
    if kind == "struct":
        shown = [f"{image}.{part.name}" for part in field.type if part.name == "path"]
    for values in _read_cells(file, group, [*reader.plain, *shown]):
        inside = [next(has_bytes) for _ in values]
        yield from reader.rows(values, image, inside, start)
        start += len(values)


def _read_cells(file: "parquet.ParquetFile", group: int, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the cells of a row group, some rows at a time."""
    if not columns:  # there is nothing but images
        for count in _split(file.metadata.row_group(group).num_rows):
            yield [{} for _ in range(count)]
        return
    for batch in file.iter_batches(LISTED_ROWS, row_groups=[group], columns=columns):
        yield batch.to_pylist()


def _split(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, LISTED_ROWS)
        count -= LISTED_ROWS


def _find_bytes(file: "parquet.ParquetFile", group: int, image: str, kind: str) -> Iterator[bool]:
    """Yield whether the image of each row of a group is in the file. Only if some are, the images are read for that."""
    metadata = file.metadata.row_group(group)
    if kind == "text":
        yield from repeat(False, metadata.num_rows)
        return
    leaf = f"{image}.bytes" if kind == "struct" else image
    chunk = next(found for found in map(metadata.column, range(metadata.num_columns)) if found.path_in_schema == leaf)
    nulls = chunk.statistics.null_count if chunk.statistics is not None and chunk.statistics.has_null_count else None
    if nulls in (0, metadata.num_rows):
        yield from repeat(nulls == 0, metadata.num_rows)
        return
    for batch in file.iter_batches(ROWS_READ, row_groups=[group], columns=[leaf]):
        yield from cells_with_bytes(batch.column(0))


def cells_with_bytes(cells: "pyarrow.Array") -> list[bool]:
    """Return for each cell of an image column whether it has the bytes of an image."""
    import pyarrow.types as types

    found = cells.is_valid().to_pylist()
    if types.is_struct(cells.type):
        inner = cells.field(cells.type.get_field_index("bytes")).is_valid().to_pylist()
        found = [outer and inside for outer, inside in zip(found, inner, strict=True)]
    return found


# --- saved data sets --------------------------------------------------------------------------------------------------


def is_saved(folder: str) -> bool:
    """Whether a folder was written by `datasets.save_to_disk`."""
    return exists(f"{folder}/{STATE}") and exists(f"{folder}/{FEATURES}")


def list_splits(folder: str) -> list[str]:
    """Return the names of the splits of a saved `DatasetDict`; none if the folder has no such file."""
    if not exists(f"{folder}/{SPLITS}"):
        return []
    return list(_read_json(f"{folder}/{SPLITS}").get("splits", []))


def _read_json(path: str) -> Any:
    with open_binary(path) as file:
        return json.load(file)


def list_saved(folder: str, name: str, options: RowOptions) -> Iterator[SourceRow]:
    """Yield the rows of a data set that `datasets.save_to_disk` wrote.

    Args:
        folder: absolute path or URL.
        name: name of the data set in keys.
        options: how to read the rows.
    """
    first = 0
    for file in _read_json(f"{folder}/{STATE}")["_data_files"]:
        for row in list_arrow(f"{folder}/{file['filename']}", name, options, first):
            yield row
            first += 1


def list_arrow(path: str, name: str, options: RowOptions, first_row: int = 0) -> Iterator[SourceRow]:
    """Yield the rows of an Arrow file.

    Args:
        path: absolute path or URL.
        name: name of the file or data set in keys.
        options: how to read the rows.
        first_row: number of the first row in keys.
    """
    with open_arrow(path) as batches:
        reader = TableReader("arrow", path, name, batches.schema, options, first_row)
        image = reader.image
        is_text = cell_kind(reader.schema.field(image).type) == "text"
        position = 0
        for batch in batches:
            has_bytes = [False] * batch.num_rows if is_text else cells_with_bytes(batch.column(image))
            values = batch.select(reader.plain).to_pylist() if reader.plain else [{} for _ in has_bytes]
            for cells, path_cell in zip(values, _paths(batch.column(image)), strict=True):
                cells[image] = path_cell
            yield from reader.rows(values, image, has_bytes, position)
            position += batch.num_rows


def _paths(cells: "pyarrow.Array") -> list[Any]:
    """Return the paths in an image column, without copying its bytes."""
    kind = cell_kind(cells.type)
    if kind == "text":
        return cells.to_pylist()
    index = cells.type.get_field_index("path") if kind == "struct" else -1
    return [None] * len(cells) if index < 0 else cells.field(index).to_pylist()


@contextmanager
def open_arrow(path: str) -> "Iterator[pyarrow.ipc.RecordBatchStreamReader]":
    """Open an Arrow file in the streaming format; a local one is mapped into memory.

    Raises:
        ValueError: if it cannot be read.
    """
    need_pyarrow(path)
    import pyarrow

    source = open_binary(path) if is_remote(path) else pyarrow.memory_map(path)
    with source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} cannot be read as Arrow: {str(error).rstrip('.')}.") from error
        yield batches


# --- images -----------------------------------------------------------------------------------------------------------


class ParquetImages:
    """Reads images from a Parquet file. Rows in order are read once, some at a time, even in a large row group."""

    def __init__(self, path: str, column: str):
        self.file = load_parquet(path)
        is_struct = cell_kind(self.file.schema_arrow.field(column).type) == "struct"
        self.columns = [f"{column}.bytes" if is_struct else column]
        metadata = self.file.metadata
        self.ends = list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
        self.kept: OrderedDict[int, pyarrow.Array] = OrderedDict()
        self.batches: Iterator[pyarrow.RecordBatch] = iter(())
        self.group, self.next = -1, 0

    def read(self, position: int) -> bytes | None:
        """Return the bytes of the image in a row."""
        for start, cells in self.kept.items():
            if start <= position < start + len(cells):
                return _to_bytes(cells[position - start])
        group = bisect_right(self.ends, position)
        if group != self.group or position < self.next:
            self.batches = self.file.iter_batches(ROWS_READ, row_groups=[group], columns=self.columns)
            self.group, self.next = group, self.ends[group - 1] if group else 0
        while True:
            start, cells = self.next, self.read_cells()
            if position < self.next:
                return _to_bytes(cells[position - start])

    def read_cells(self) -> "pyarrow.Array":
        """Read the next rows of the row group."""
        cells = next(self.batches).column(0)
        self.kept[self.next] = cells
        self.next += len(cells)
        if len(self.kept) > BATCHES_KEPT:
            self.kept.popitem(last=False)
        return cells

    def close(self) -> None:
        """Close the file."""
        self.file.close(force=True)


class ArrowImages:
    """Reads images from an Arrow file. A local file is mapped into memory, a remote one is read as a whole."""

    def __init__(self, path: str, column: str):
        with open_arrow(path) as batches:
            self.cells = batches.read_all().column(column)

    def read(self, position: int) -> bytes | None:
        """Return the bytes of the image in a row."""
        return _to_bytes(self.cells[position])

    def close(self) -> None:
        """Do nothing: the memory map is closed with the last reference to it."""


def _to_bytes(cell: "pyarrow.Scalar") -> bytes | None:
    value = cell.as_py()
    return value.get("bytes") if isinstance(value, dict) else value


class TableImages:
    """Reads images from tables; thread-safe. The last few files stay open."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._files: OrderedDict[tuple[str, str], ParquetImages | ArrowImages] = OrderedDict()

    def read(self, row: SourceRow) -> bytes:
        """Return the content of a row's image file.

        Raises:
            OSError, ValueError: if it cannot be read.
        """
        with self._lock:
            content = self._open(row).read(row.position)
        if content is None:
            raise ValueError("the table has no bytes in this row.")
        return content

    def _open(self, row: SourceRow) -> ParquetImages | ArrowImages:
        """Return the open file of a row, and close the one that was not used for longest if there are too many."""
        name = row.path, row.column
        if name not in self._files:
            while len(self._files) >= FILES_KEPT:
                self._files.popitem(last=False)[1].close()
            self._files[name] = (ParquetImages if row.kind == "parquet" else ArrowImages)(*name)
        self._files.move_to_end(name)
        return self._files[name]

    def close(self) -> None:
        """Close all files, unless a thread that nobody waits for is reading one."""
        if self._lock.acquire(timeout=CLOSE_TIMEOUT):
            while self._files:
                self._files.popitem()[1].close()
            self._lock.release()


__all__ = [
    "IMAGE_COLUMNS",
    "ROW_NUMBER",
    "RowOptions",
    "TableImages",
    "is_saved",
    "list_arrow",
    "list_parquet",
    "list_saved",
    "list_splits",
    "path_row",
]
