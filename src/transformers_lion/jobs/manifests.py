"""Lists of images: JSON Lines manifests, JSON lists, and COCO annotation files."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..images import is_url
from .source_row import SourceRow, missing_row, name_all, to_columns
from .storage import exists, folder_of, is_remote, join, open_binary
from .tables import ROW_NUMBER, RowOptions, check_column, find_named, path_row

JSON_LINES = (".jsonl", ".ndjson")

COCO_TRIED = 5
"""Number of images that are looked for to find the folder of a COCO annotation file."""


def list_manifest(path: str, name: str, options: RowOptions) -> Iterator[SourceRow]:
    """Yield the rows of a JSON Lines file; a line that is not a JSON object becomes a row with an error.

    Args:
        path: absolute path or URL.
        name: name of the file in keys and errors.
        options: how to read the rows.

    Raises:
        OSError, ValueError: if the file cannot be read, or its first record has no image column.
    """
    with open_binary(path) as file:
        yield from list_records(_parse_lines(file), path, name, options)


def _parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value, or the error, of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        try:
            yield number, json.loads(content)
        except (ValueError, RecursionError) as error:
            yield number, ValueError(f"line {number} is not JSON: {str(error).rstrip('.')}.")


def list_records(records: Iterable[tuple[int, Any]], path: str, name: str, options: RowOptions) -> Iterator[SourceRow]:
    """Yield the rows of the numbered records of a file; see `list_manifest`."""
    column: str | None = None
    for number, record in records:
        place = f"{name}#{number}"
        if isinstance(record, ValueError):
            yield missing_row(place, path, str(record), position=number)
        elif not isinstance(record, dict):
            yield missing_row(place, path, f"line {number} is not a JSON object.", position=number)
        else:
            column = column or find_column(record, options, f"{name}, line {number}")
            yield _row_of_record(record, column, path, place, number, options)


def find_column(record: Mapping[str, Any], options: RowOptions, place: str) -> str:
    """Return the image column of a file from its first record.

    Raises:
        ValueError: if the record does not have it, or the column of keys.
    """
    if options.key_column not in (None, ROW_NUMBER):
        check_column(str(options.key_column), record, place)
    if options.image_column is not None:
        check_column(options.image_column, record, place)
        return options.image_column
    found = find_named(record)
    if not found:
        raise ValueError(f"{place}: no image column; its columns are {name_all(record)}. Choose the image column.")
    return found[0]


def _row_of_record(
    record: Mapping[str, Any], column: str, path: str, place: str, number: int, options: RowOptions
) -> SourceRow:
    columns = to_columns({name: value for name, value in record.items() if name != column})
    image = record.get(column)
    if isinstance(image, dict):
        image = image.get("path")
    if not isinstance(image, str) or not image:
        reason = f"its {column} is empty." if image in (None, "") else f"its {column} is not a path or a URL."
        return missing_row(place, path, reason, columns, number)
    key = image
    if options.key_column == ROW_NUMBER:
        key = place
    elif options.key_column is not None:
        value = record.get(options.key_column)
        if not isinstance(value, str | int) or value == "":
            return missing_row(place, path, f"its {options.key_column} is missing.", columns, number)
        key = str(value)
    return path_row(key, image, options.root(path), columns, place)


# --- JSON files -------------------------------------------------------------------------------------------------------


def list_json(path: str, name: str, options: RowOptions) -> Iterator[SourceRow]:
    """Yield the rows of a JSON file: a COCO annotation file, a list of records, or JSON Lines. It is read as a whole.

    Raises:
        OSError, ValueError: if the file cannot be read, or has another format.
    """
    with open_binary(path) as file:
        content = file.read()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        lines = content.splitlines()
        if len(lines) > 1 and _is_record(lines[0]):
            yield from list_records(_parse_lines(lines), path, name, options)
            return
        raise ValueError(f"{name} is not JSON: {str(error).rstrip('.')}.") from error
    if isinstance(document, dict) and isinstance(document.get("images"), list):
        yield from list_coco(document["images"], path, name, options)
    elif isinstance(document, list):
        yield from list_records(enumerate(document, 1), path, name, options)
    else:
        known = name_all(document) if isinstance(document, dict) else type(document).__name__
        raise ValueError(
            f"{name} is neither a COCO annotation file, which has a list of images, nor a list of records: it has "
            f"{known}."
        )


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.removeprefix(b"\xef\xbb\xbf")), dict)
    except (ValueError, RecursionError):
        return False


def list_coco(images: list[Any], path: str, name: str, options: RowOptions) -> Iterator[SourceRow]:
    """Yield the images of a COCO annotation file; their keys are their file names, and their ids are in `image_id`.

    Raises:
        ValueError: if the folder of the images is not known.
    """
    named = RowOptions(options.image_column or "file_name", options.key_column, options.image_root)
    if named.image_root is None:
        names = [image.get(named.image_column) for image in images[:COCO_TRIED] if isinstance(image, dict)]
        root = find_coco_folder([x for x in names if isinstance(x, str)], path, name)
        named = RowOptions(named.image_column, named.key_column, root)
    records = ({**image, "image_id": image.get("id")} if isinstance(image, dict) else image for image in images)
    yield from list_records(enumerate(records, 1), path, name, named)


def find_coco_folder(names: list[str], path: str, name: str) -> str:
    """Return the folder beside an annotation file that has its images, as for `annotations/instances_val2017.json`
    and `val2017/`.

    Raises:
        ValueError: if none of the folders has one of the images.
    """
    folder = folder_of(path)
    above = folder_of(folder)
    subset = PurePosixPath(path.replace(os.sep, "/")).stem.rpartition("_")[2]
    tried = [
        place
        for parent in (folder, above)
        for place in (parent, f"{parent}/images", f"{parent}/{subset}", f"{parent}/images/{subset}")
    ]
    remote = [found for found in names if is_remote(found)]
    if not names or remote:
        return folder
    for place in tried:
        if any(not is_url(file) and exists(file) for file in (join(place, image) for image in names)):
            return place
    raise ValueError(f"{name}: {names[0]} is in none of {', '.join(tried)}. Name the folder of the images.")


__all__ = ["JSON_LINES", "list_json", "list_manifest"]
