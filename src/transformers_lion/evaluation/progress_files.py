"""The predictions of a run while it goes on: whole lines are kept whatever happens, and each process has a file.

The first process appends to `predictions.jsonl`, the others to files beside it. In the end, and where a run is taken up
again, all lines are put into the one file, in the order of the data.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..file_utils import LineFile, write_text
from .answering import Fields, format_fields
from .predictions import count_whole_bytes, parse_line
from .settings import PREDICTIONS

ERRORS = "errors.jsonl"


def name_part(rank: int) -> str:
    """The file of a process."""
    return PREDICTIONS if rank == 0 else f"predictions.{rank}.jsonl"


class PredictionWriter:
    """Appends the lines of a batch at once, and to the disk.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.file = LineFile(path, sync=True)

    def write(self, found: Mapping[str, Fields]) -> None:
        """Append predictions by their ids.

        Raises:
            OSError: if the disk is full, say; none of them is then in the file.
        """
        self.file.write("".join(format_fields(name, fields) for name, fields in found.items()))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_parts(folder: Path) -> dict[str, Fields]:
    """All predictions in a folder by their ids, of all processes; of several for an id the last."""
    found: dict[str, Fields] = {}
    for path in list_parts(folder):
        found.update(read_fields(path))
    return found


def list_parts(folder: Path) -> list[Path]:
    """The files of all processes, that of the first before the others."""
    others = folder.glob("predictions.*.jsonl")
    return [path for path in (folder / PREDICTIONS, *sorted(others)) if path.exists()]


def read_fields(path: Path) -> dict[str, Fields]:
    """The predictions of a file by their ids. A last line that breaks off is left out.

    Raises:
        ValueError: if another line is none.
    """
    content = path.read_bytes()
    content = content[: count_whole_bytes(content)]
    found: dict[str, Fields] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            row = parse_line(line, f"{path}, line {number}")
            found[row.name("id", "question_id", "image_id")] = {"answer": "", **row.fields}
    return found


def merge_parts(folder: Path, names: Sequence[str]) -> dict[str, Fields]:
    """Put all predictions into one file, in the order of `names`; what became of others is dropped.

    Returns:
        The predictions by their ids.
    """
    found, parts = read_parts(folder), list_parts(folder)
    merged = {name: found[name] for name in names if name in found}
    write_text(folder / PREDICTIONS, "".join(format_fields(name, fields) for name, fields in merged.items()))
    for path in parts:
        if path.name != PREDICTIONS:
            path.unlink()
    return merged


def write_errors(path: Path, errors: Iterable[tuple[str, str, str]]) -> None:
    """Write the id, image and reason of each example without an answer; no file where there are none."""
    rows: list[dict[str, Any]] = [{"id": name, "image": image, "error": reason} for name, image, reason in errors]
    if rows:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)


__all__ = ["ERRORS", "PredictionWriter", "merge_parts", "name_part", "read_fields", "read_parts", "write_errors"]
