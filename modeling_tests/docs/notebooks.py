"""The notebooks: executed in a folder, and written with their outputs and nothing that differs from run to run."""

import itertools
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from docs.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
TIMEOUT = 600
"""Seconds of a cell."""
VARIES = "varies"
"""The tag of a cell whose output is not compared."""


def execute(page: Path, folder: Path) -> str:
    """A notebook's text after all of its cells ran in a folder; an error in a cell is one here.

    What cells write to stderr is left out.
    """
    notebook: Any = nbformat.read(page, as_version=4)
    NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": [VARIES]} if varies(cell) else {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in map(cleaned, cell.outputs) if output]
    return nbformat.writes(notebook, indent=1) + "\n"


def varies(cell: Any) -> bool:
    """Whether a cell's output may be another one elsewhere."""
    return VARIES in cell.metadata.get("tags", ())


def cleaned(output: Any) -> Any:
    """An output without counts and metadata; `None` for one on stderr."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if "execution_count" in output:
        output.execution_count = None
    output.metadata = {}
    if "image/png" in output.data:
        output.data = {"image/png": output.data["image/png"]}
    return output


def printed(text: str) -> list[list[str]]:
    """What each cell of a notebook prints or shows as text, but for cells with the tag "varies"."""
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code" and not varies(cell)]
    return [_merge_streams(cell.outputs) for cell in cells]


def _merge_streams(outputs: list[Any]) -> list[str]:
    """The texts of outputs. What is printed in a row is one text, however the kernel happened to send it."""
    texts = []
    for kind, group in itertools.groupby(outputs, lambda output: output.output_type == "stream"):
        found = [text_of(output) for output in group]
        texts += ["".join(found)] if kind else found
    return texts


def text_of(output: Any) -> str:
    """The text of an output; its kind, if it is an image."""
    if output.output_type == "stream":
        return str(output.text)
    return "an image" if "image/png" in output.data else str(output.data["text/plain"])
