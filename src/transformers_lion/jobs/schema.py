"""The fixed schema of results: one row per image, whatever the task.

The types are declared, so that files with only empty lists or only whole numbers have the same types as all others.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

BOX = pa.list_(pa.float64())
"""(x1, y1, x2, y2)."""

RESULT_SCHEMA = pa.schema([
    pa.field("key", pa.string()),
    pa.field("error", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("caption", pa.string()),
    pa.field("tags", pa.list_(pa.string())),
    pa.field("answers", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
    pa.field(
        "located",
        pa.list_(
            pa.struct([
                ("phrase", pa.string()),
                ("boxes", pa.list_(BOX)),
                ("fractions", pa.list_(BOX)),
                ("scores", pa.list_(pa.float64())),
            ])
        ),
    ),
    pa.field("regions", pa.list_(pa.struct([("box", BOX), ("description", pa.string())]))),
    pa.field("prompts", pa.list_(pa.string())),
    pa.field("seconds", pa.float64()),
])  # fmt: skip
"""Schema of results. All columns may be null.

- `key`: the row's own key, path or URL.
- `error`: why there are no results; null if all went well. All columns below are null for a row with an error, except
  that `width` and `height` are set if the image could be read.
- `width`, `height`: size of the upright image in pixels.
- `caption`, `tags`, `answers`, `located`, `regions`: the results; null if the task does not ask for them. An empty list
  means that there was nothing to ask, or that nothing was found.
- `boxes`: in pixels of the upright image; `fractions`: the same boxes as fractions of its width and height; `scores`:
  confidence of each box, null unless requested.
- `prompts`: the exact prompts of the language model: of the caption, the answers, the phrases and the regions.
- `seconds`: time of the model for this row, as a share of its batch. It is the only column that changes from run to
  run.
"""


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Convert results to a table with `RESULT_SCHEMA`. Columns that a row does not have are null."""
    return pa.Table.from_pylist(list(rows), schema=RESULT_SCHEMA)


def describe_schema(schema: pa.Schema = RESULT_SCHEMA) -> str:
    """Return a schema as text, one column per line."""
    width = max(len(field.name) for field in schema)
    return "\n".join(f"{field.name:{width}}  {describe_type(field.type)}" for field in schema)


def describe_type(kind: pa.DataType) -> str:
    """Return a short name of a type."""
    if pa.types.is_list(kind):
        return f"list<{describe_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {describe_type(field.type)}' for field in kind)}>"
    return str(kind)


__all__ = ["RESULT_SCHEMA", "describe_schema", "to_table"]
