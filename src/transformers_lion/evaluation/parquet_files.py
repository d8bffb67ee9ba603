"""Parquet files -> their records. Pictures that are in the file itself are not read, only their names."""

from pathlib import Path
from typing import Any

PARQUET = ".parquet"


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a file. A column of pictures, as `datasets` writes them, becomes their paths.

    Raises:
        ValueError: if pyarrow is not installed, the file cannot be read, or it has pictures without paths.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow); JSON Lines do not.") from error
    try:
        schema = pyarrow.parquet.read_schema(path)
        pictures = [field.name for field in schema if is_pictures(field)]
        plain = [field.name for field in schema if field.name not in pictures and not is_binary(field.type)]
        found = pyarrow.parquet.ParquetFile(path).read(columns=[*plain, *(f"{name}.path" for name in pictures)])
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path} is no Parquet that can be read: {error}") from error
    rows: list[dict[str, Any]] = found.to_pylist()
    for name in pictures:
        for number, row in enumerate(rows, 1):
            row[name] = (row.get(name) or {}).get("path")
            if row[name] is None:
                raise ValueError(
                    f"{path}, record {number}: the picture in {name} is in the file itself and has no path. Save the "
                    f"pictures as files, and give their names in {name}."
                )
    return rows


def is_pictures(field: Any) -> bool:
    """Whether a column is of pictures as `datasets` writes them: bytes and path."""
    import pyarrow

    return pyarrow.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"}


def is_binary(kind: Any) -> bool:
    """Whether a column's type is bytes, which no record of an evaluation has."""
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


__all__ = ["PARQUET", "read_parquet"]
