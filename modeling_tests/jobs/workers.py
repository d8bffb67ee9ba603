"""Annotators that compute nothing, and a job that a test can kill.

python -m jobs.workers SOURCE OUTPUT SECONDS [ADDRESS]
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from transformers_lion.jobs import AnnotationTask, JobSettings, annotate
from transformers_lion.jobs.schema import to_table


class KeyAnnotator:
    """Answers with the keys of the rows; a row whose column `broken` is true gets an error."""

    def __init__(self, **options: Any):
        self.options = options

    def __call__(self, rows: pa.Table) -> pa.Table:
        return to_table(map(self.annotate, rows.to_pylist()))

    def annotate(self, row: dict[str, Any]) -> dict[str, Any]:
        if json.loads(row["columns"]).get("broken"):
            return {"key": row["key"], "error": "it is broken"}
        return {"key": row["key"], "caption": f"caption of {row['key']}"}


class SlowAnnotator(KeyAnnotator):
    """Takes a while for each chunk."""

    seconds = 0.2

    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(float(os.environ.get("SECONDS_PER_CHUNK", self.seconds)))
        return super().__call__(rows)


class FailingAnnotator(KeyAnnotator):
    """Raises an error for rows that have the column `fails`."""

    def annotate(self, row: dict[str, Any]) -> dict[str, Any]:
        if json.loads(row["columns"]).get("fails"):
            raise RuntimeError("this model is not well")
        return super().annotate(row)


class DyingAnnotator(KeyAnnotator):
    """Ends its process at a row that has the column `dies`: each time, or once if it names a file."""

    def annotate(self, row: dict[str, Any]) -> dict[str, Any]:
        marker = json.loads(row["columns"]).get("dies")
        if marker == "always" or (marker and not Path(marker).exists()):
            if marker != "always":
                Path(marker).touch()
            os._exit(1)
        return super().annotate(row)


def write_rows(path: Path, count: int, **columns: dict[int, Any]) -> Path:
    """Write a manifest whose images do not exist, with columns that some rows have."""
    rows = [
        {"image": f"{number:05d}.png", **{name: values.get(number) for name, values in columns.items()}}
        for number in range(count)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


if __name__ == "__main__":
    source, output, seconds, *address = sys.argv[1:]
    os.environ["SECONDS_PER_CHUNK"] = seconds
    settings = JobSettings(source, output, AnnotationTask(caption=True), key_column="image", num_actors=2)
    annotate(settings, say=print, make_annotator=SlowAnnotator)
