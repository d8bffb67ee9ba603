"""Values from tables and arrays -> plain Python: lists for columns, `None` for empty cells; and fields nobody reads.

Questions and tags come as lists, and just as often as a column of pandas, numpy, pyarrow or `datasets`, where an empty
cell is NaN or a value of its own.
"""

from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

SCALARS = (str, bytes, bytearray, Mapping, set, frozenset)
"""What can be iterated over, but is one value."""


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: `None`, NaN, or the value that pandas has for it."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real | np.generic) and bool(value != value)


def to_plain(value: Any) -> Any:
    """A column of any kind as a list, its cells likewise; an empty cell as `None`, all else as it is."""
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
    """Names of fields that hold something and that nobody reads.

    Left out are notes, which cannot change an answer: ids (`id`, `image_id`...) and names that begin with "_".
    """
    return [
        str(name)
        for name, value in fields.items()
        if name not in read
        and not (str(name) == "id" or str(name).endswith("_id") or str(name).startswith("_"))
        and not is_missing(value)
    ]


__all__ = ["is_missing", "to_plain", "unread_fields"]
