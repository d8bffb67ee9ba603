"""Annotates any number of images with Ray Data: the stage `LionAnnotator`, and the job behind `lion annotate`.

Needs the extra `ray`. Reading order: `task` (what to do for each row), `annotator` (does it), `sources` and
`row_images` (where rows and images come from), `output` (the files of a job), `plan` and `pipeline` (Ray), `job`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .annotator import LionAnnotator
    from .job import JobSettings, annotate
    from .output import read_results
    from .schema import RESULT_SCHEMA
    from .source_row import SourceRow
    from .sources import list_rows
    from .task import AnnotationTask

MODULES = {
    "AnnotationTask": "task",
    "JobSettings": "job",
    "LionAnnotator": "annotator",
    "RESULT_SCHEMA": "schema",
    "SourceRow": "source_row",
    "annotate": "job",
    "list_rows": "sources",
    "read_results": "output",
}
"""Module of each public name. They are imported on first access (PEP 562)."""


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all names, whether imported yet or not."""
    return sorted({*globals(), *MODULES})


__all__ = [
    "RESULT_SCHEMA",
    "AnnotationTask",
    "JobSettings",
    "LionAnnotator",
    "SourceRow",
    "annotate",
    "list_rows",
    "read_results",
]
