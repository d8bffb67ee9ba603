"""Read the records of Parquet files, and images that the files contain, one row group at a time.

Images are columns with the fields bytes and path, as `datasets` writes them. Sources: the Apache Parquet format and
pyarrow's reader.
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

IN_FILE = "image_in_file"
"""Field of a record with the name of its image within the Parquet file."""
MARK = f"{PARQUET}#"
"""Marker in these names: `/data/val.parquet#image:17` has the column and the row, counted from 0."""

NUM_GROUPS = 4
"""Number of row groups of images to cache, because questions are not asked in the order of the file."""


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file. An image is replaced by its path, if it has one, and its name within the file in
    `IN_FILE`.

    Raises:
        ValueError: If pyarrow is not installed, or the file cannot be read.
    """
    file = _open_parquet(path)
    schema = file.schema_arrow
    images = [field.name for field in schema if _is_image_column(field.type)]
    plain = [field.name for field in schema if field.name not in images and not _is_binary(field.type)]
    rows: list[dict[str, Any]] = file.read(columns=[*plain, *(f"{name}.path" for name in images)]).to_pylist()
    for name in images:
        for number, row in enumerate(rows):
            image = row.pop(name)
            if image is None:
                continue
            row.setdefault(IN_FILE, f"{path.resolve()}#{name}:{number}")
            if image["path"]:
                row[name] = image["path"]
    return rows


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: reading Parquet requires pyarrow (pip install pyarrow), but reading JSON Lines does not."
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _is_image_column(kind: Any) -> bool:
    """Whether a column has images as `datasets` writes them: bytes and path."""
    import pyarrow

    return pyarrow.types.is_struct(kind) and {part.name for part in kind} == {"bytes", "path"}


def _is_binary(kind: Any) -> bool:
    """Whether a column has bytes, which evaluation records never contain."""
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def is_in_parquet(name: str) -> bool:
    """Whether a name refers to an image within a Parquet file."""
    return MARK in name


def open_in_parquet(name: str) -> Image.Image:
    """Open an image by its name within a Parquet file, without decoding it.

    Raises:
        ValueError: If the file does not contain the bytes.
        OSError: If the bytes are not an image.
    """
    path, _, place = name.rpartition("#")
    column, _, row = place.rpartition(":")
    time = Path(path).stat().st_mtime_ns
    ends = list(accumulate(_count_rows(path, time)))
    group = bisect_right(ends, int(row))
    content = _read_image_group(path, time, column, group)[int(row) - ends[group]]
    if content is None:
        raise ValueError("the Parquet file contains its path but not the image itself.")
    return open_file(io.BytesIO(content))


@lru_cache(maxsize=NUM_GROUPS)
def _count_rows(path: str, time: int) -> tuple[int, ...]:
    """Return the number of rows in each row group. `time` is the modification time, so that changed files are read
    again.
    """
    metadata = _open_parquet(Path(path)).metadata
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(maxsize=NUM_GROUPS)
def _read_image_group(path: str, time: int, column: str, group: int) -> list[bytes | None]:
    """Return the images of a row group."""
    found = _open_parquet(Path(path)).read_row_group(group, columns=[f"{column}.bytes"]).column(column).to_pylist()
    return [None if image is None else image["bytes"] for image in found]


def forget_images() -> None:
    """Clear the cache of row groups."""
    _count_rows.cache_clear()
    _read_image_group.cache_clear()


__all__ = ["IN_FILE", "PARQUET", "forget_images", "is_in_parquet", "open_in_parquet", "read_parquet"]
