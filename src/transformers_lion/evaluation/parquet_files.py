"""Parquet files -> their records, and the pictures that are in the files themselves, one row group at a time.

Pictures are columns of bytes and path, as `datasets` writes them. Source: Apache Parquet's format and pyarrow's reader.
"""

import io
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from ..images import open_file

PARQUET = ".parquet"

IN_FILE = "picture_in_file"
"""The field of a record in which the name of its picture within the Parquet file stands."""
MARK = f"{PARQUET}#"
"""In the names of such pictures: `/data/val.parquet#image:17`, the column and the row from 0."""

NUM_GROUPS = 4
"""Row groups of pictures that are kept, since questions are not asked in the order of the file."""


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a file. A picture becomes its path, if it has one, and its name within the file in `IN_FILE`.

    Raises:
        ValueError: if pyarrow is not installed, or the file cannot be read.
    """
    file = open_parquet(path)
    schema = file.schema_arrow
    pictures = [field.name for field in schema if is_pictures(field.type)]
    plain = [field.name for field in schema if field.name not in pictures and not is_binary(field.type)]
    rows: list[dict[str, Any]] = file.read(columns=[*plain, *(f"{name}.path" for name in pictures)]).to_pylist()
    for name in pictures:
        for number, row in enumerate(rows):
            picture = row.pop(name)
            if picture is None:
                continue
            row.setdefault(IN_FILE, f"{path.resolve()}#{name}:{number}")
            if picture["path"]:
                row[name] = picture["path"]
    return rows


def open_parquet(path: Path) -> Any:
    """A file that is open.

    Raises:
        ValueError: as of `read_parquet`.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow); JSON Lines do not.") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def is_pictures(kind: Any) -> bool:
    """Whether a column's type is that of pictures as `datasets` writes them: bytes and path."""
    import pyarrow

    return pyarrow.types.is_struct(kind) and {part.name for part in kind} == {"bytes", "path"}


def is_binary(kind: Any) -> bool:
    """Whether a column's type is bytes, which no record of an evaluation has."""
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def is_in_parquet(name: str) -> bool:
    """Whether the name of a picture is one within a Parquet file."""
    return MARK in name


def open_in_parquet(name: str) -> Image.Image:
    """The picture of such a name, not yet decoded.

    Raises:
        ValueError: if the file has no bytes of it.
        OSError: if these are no picture.
    """
    path, _, place = name.rpartition("#")
    column, _, row = place.rpartition(":")
    time = Path(path).stat().st_mtime_ns
    ends = list(accumulate(count_rows(path, time)))
    group = bisect_right(ends, int(row))
    content = read_pictures(path, time, column, group)[int(row) - ends[group]]
    if content is None:
        raise ValueError("the Parquet file has its path, but not the picture itself.")
    return open_file(io.BytesIO(content))


@lru_cache(maxsize=NUM_GROUPS)
def count_rows(path: str, time: int) -> tuple[int, ...]:
    """How many rows each row group of a file has, which was written at some time."""
    metadata = open_parquet(Path(path)).metadata
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(maxsize=NUM_GROUPS)
def read_pictures(path: str, time: int, column: str, group: int) -> list[bytes | None]:
    """The pictures of a row group of such a file."""
    found = open_parquet(Path(path)).read_row_group(group, columns=[f"{column}.bytes"]).column(column).to_pylist()
    return [None if picture is None else picture["bytes"] for picture in found]


def forget_pictures() -> None:
    """Keep no row groups any longer."""
    count_rows.cache_clear()
    read_pictures.cache_clear()


__all__ = ["IN_FILE", "PARQUET", "forget_pictures", "is_in_parquet", "open_in_parquet", "read_parquet"]
