"""Store predictions during a run. Complete lines are never lost, and each process has its own file.

The first process appends to `predictions.jsonl`, and the others append to separate files. At the end, and when a run is
resumed, all lines are merged into `predictions.jsonl` in the order of the data.
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
    """Return the file name of a process."""
    return PREDICTIONS if rank == 0 else f"predictions.{rank}.jsonl"


class PredictionWriter:
    """Appends the lines of a batch at once and syncs them to disk.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path):
        self.file = LineFile(path, sync=True)

    def write(self, found: Mapping[str, Fields]) -> None:
        """Append predictions.

        Args:
            found: Predictions by id.

        Raises:
            OSError: If writing fails, for example because the disk is full. None of the predictions is written in that
                case.
        """
        self.file.write("".join(format_fields(name, fields) for name, fields in found.items()))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_parts(folder: Path) -> dict[str, Fields]:
    """Read the predictions of all processes in a folder, by id. The last prediction for an id counts."""
    found: dict[str, Fields] = {}
    for path in _list_parts(folder):
        found.update(read_fields(path))
    return found


def _list_parts(folder: Path) -> list[Path]:
    """List the files of all processes, the first process first."""
    others = folder.glob("predictions.*.jsonl")
    return [path for path in (folder / PREDICTIONS, *sorted(others)) if path.exists()]


def read_fields(path: Path) -> dict[str, Fields]:
    """Read the predictions of a file, by id. An incomplete last line is skipped.

    Raises:
        ValueError: If another line is not a prediction.
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
    """Merge all predictions into one file, in the order of `names`. Predictions with other ids are dropped.

    Returns:
        The predictions by id.
    """
    found, parts = read_parts(folder), _list_parts(folder)
    merged = {name: found[name] for name in names if name in found}
    write_text(folder / PREDICTIONS, "".join(format_fields(name, fields) for name, fields in merged.items()))
    for path in parts:
        if path.name != PREDICTIONS:
            path.unlink()
    return merged


def write_errors(path: Path, errors: Iterable[tuple[str, str, str]]) -> None:
    """Write the id, image and reason of each example without an answer. Without errors, delete the file."""
    rows: list[dict[str, Any]] = [{"id": name, "image": image, "error": reason} for name, image, reason in errors]
    if rows:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)


__all__ = ["ERRORS", "PredictionWriter", "merge_parts", "name_part", "read_fields", "read_parts", "write_errors"]
