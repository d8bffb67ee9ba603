"""Continues the results of an earlier run in a file: which images are done, and whether the settings are the same.

The settings stand in a second file beside the results, `out.jsonl.settings.json` for `out.jsonl`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..file_utils import write_text

SETTINGS = ".settings.json"
"""Suffix of the file with the settings."""


def settings_file(output: Path) -> Path:
    """Return the file with the settings of results."""
    return output.with_name(f"{output.name}{SETTINGS}")


def write_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of new results."""
    write_text(settings_file(output), json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Compare settings with those of the existing results.

    Raises:
        ValueError: if they differ, or those of the results are not known.
    """
    file = settings_file(output)
    if not file.exists():
        raise ValueError(f"{output} cannot be continued, because its settings are not known: {file.name} is missing.")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{output} cannot be continued, because {file.name} is damaged: {error}.") from error
    for name in dict.fromkeys((*before, *settings)):
        old, new = before.get(name), settings.get(name)
        if old != new:
            raise ValueError(
                f"{output} was written with {name} {show_value(old)}, but now it is {show_value(new)}. Use the "
                "old value or another file."
            )


def show_value(value: Any) -> str:
    """Format a setting for an error message."""
    if isinstance(value, dict) and "name" in value:  # a model
        return f"{value['name']} (sha256 {str(value.get('sha256'))[:12]})"
    if isinstance(value, list):
        return ", ".join(map(repr, value))
    return "unset" if value is None else str(value)


def read_done(output: Path, num_results: int) -> Counter[str]:
    """Count how often each image is in a file of results, and remove what a killed run wrote incompletely at its end.

    Args:
        output: the file.
        num_results: number of lines that an image has.

    Raises:
        ValueError: if the file has something else than results.
    """
    with output.open("rb+") as file:
        lines, end = _count_lines(file, output, num_results)
        file.truncate(end)
    for image, count in lines.items():
        if count % num_results:
            raise ValueError(f"{output} has {count} lines about {image!r}, but {num_results} questions are asked.")
    return Counter({image: count // num_results for image, count in lines.items()})


def _count_lines(file: IO[bytes], output: Path, num_results: int) -> tuple[Counter[str], int]:
    """Return the number of lines about each image, and where those about the last complete image end."""
    lines, last, end, position = Counter[str](), "", 0, 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):  # cut
            break
        last = _read_image(line, f"{output}, line {number}")
        lines[last] += 1
        position += len(line)
        if lines[last] % num_results == 0:
            end = position
    lines[last] -= lines[last] % num_results
    return +lines, end


def _read_image(line: bytes, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not a result: {str(error).rstrip('.')}.") from error
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        raise ValueError(f"{place} is not a result: it has no image.")
    return record["image"]
