"""Converts table columns and arrays to lists, with `None` for empty cells, and finds unknown fields.

Questions and tags can be lists or columns of pandas, NumPy, PyArrow or `datasets`, where an empty cell is NaN or a
special value.
"""

from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

SCALARS = (str, bytes, bytearray, Mapping, set, frozenset)
"""Iterable types that count as a single value."""


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: `None`, NaN, or a missing value of pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real | np.generic) and bool(value != value)


def to_plain(value: Any) -> Any:
    """Convert columns to lists, recursively, and empty cells to `None`. Other values are returned unchanged."""
    if is_missing(value):
        return None
    if isinstance(value, SCALARS):
        return value
    for method in ("to_pylist", "tolist"):  # pyarrow; numpy, pandas, torch
        if hasattr(value, method):
            value = getattr(value, method)()
            break
    return (
        [to_plain(entry) for entry in value]
        if isinstance(value, Iterable) and not isinstance(value, SCALARS)
        else value
    )


def unread_fields(fields: Mapping[Any, Any], read: Collection[Any]) -> list[str]:
    """Return the names of fields that have a value but are not in `read`.

    Ids (such as `id` or `image_id`) and names that start with "_" are allowed, because they do not affect answers.
    """
    return [
        str(name)
        for name, value in fields.items()
        if name not in read
        and not (str(name) == "id" or str(name).endswith("_id") or str(name).startswith("_"))
        and not is_missing(value)
    ]


__all__ = ["is_missing", "to_plain", "unread_fields"]
