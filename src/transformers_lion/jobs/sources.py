"""Finds the rows of a source: an image each, without opening it. Reading order: `source_row`, `storage`, then this.

    for row in list_rows("photos/"):
        ...

Rows come in a fixed order and one by one, so that memory does not grow with their number; a list of the names in a
single folder, or of the matches of a glob, is held at a time.
"""

import hashlib
import os
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from ..images import find_files, is_url, readable_suffixes
from . import source_row
from .manifests import JSON_LINES, list_json, list_manifest
from .shards import list_shard
from .source_row import SourceRow, is_storable, missing_row, rows_to_table, storable, table_to_rows
from .storage import absolute, exists, expand_braces, expand_glob, is_folder, is_remote, suffix_of, tree_of
from .tables import ROW_NUMBER, RowOptions, is_saved, list_arrow, list_parquet, list_saved, list_splits

PARQUET = (".parquet", ".pq")
SHARDS = (".tar",)
ARROW = (".arrow",)
COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip")
CONTAINERS = (*PARQUET, *SHARDS, *ARROW, *JSON_LINES, ".json")
"""Suffixes of files that list or contain images."""

Rows = Iterator[SourceRow]
Lister = Callable[[], Rows]


def list_rows(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    image_column: str | None = None,
    key_column: str | None = None,
    image_root: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skipped: Counter[str] | None = None,
) -> Iterator[SourceRow]:
    """Yield the rows of one or more sources in a fixed order.

    A source is an image file or its URL; a folder or a glob of images; Parquet files; WebDataset shards, also as
    `shard-{000..099}.tar`; a folder of either; a folder written by `datasets.save_to_disk`; a JSON Lines manifest or a
    JSON list of records; or a COCO annotation file. All of them can be local or URLs that fsspec opens.

    A folder or a glob with images gives these images, otherwise its Parquet files, otherwise its shards. Hidden files
    are left out.

    Args:
        source: One or more sources.
        image_column: Column of the images in tables and manifests. By default, the column of images if there is only
            one, or a column of strings with a common name, such as `image` or `file_name`.
        key_column: Column of the keys in tables, manifests and the JSON members of shards; `"#"` for the file and the
            number of the row (the key of the sample in a shard). By default, the keys are the paths, URLs or COCO file
            names of the images, or the keys of WebDataset; images in tables have the file and the number of the row.
        image_root: Folder or URL that relative paths in tables, manifests and COCO files are resolved against. By
            default, the folder of the file; images of COCO are also looked for beside it.
        limit: Number of rows to take from the start.
        sample: Number of rows to draw at random instead, in their order.
        seed: Seed of the draw.
        skipped: If given, counts of the files in folders that are no images are added to it, by suffix.

    Raises:
        FileNotFoundError: If a source does not exist.
        ValueError: If the kind of a source is not known, a file cannot be read, a column is missing (the message names
            those that exist), or both `limit` and `sample` are given. What is in files is checked when their rows are
            read.
    """
    if limit is not None and sample is not None:
        raise ValueError(f"limit is {limit} and sample is {sample}, but only one of them can be set.")
    for name, value in (("limit", limit), ("sample", sample)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1.")
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise ValueError("There is no source.")
    options = RowOptions(image_column, key_column, image_root)
    counts = Counter[str]() if skipped is None else skipped
    listers = [find_lister(os.fspath(name), options, counts) for name in names]
    rows = chain.from_iterable(lister() for lister in listers)
    if sample is not None:
        return draw(rows, sample, seed)
    return islice(rows, limit)


def draw(rows: Iterable[SourceRow], count: int, seed: int) -> Rows:
    """Yield rows drawn at random, in their order; all of them if there are not more."""
    generator = random.Random(seed)
    drawn: list[tuple[int, SourceRow]] = []
    for number, row in enumerate(rows):
        if len(drawn) < count:
            drawn.append((number, row))
        elif (place := generator.randrange(number + 1)) < count:
            drawn[place] = (number, row)
    yield from (row for _, row in sorted(drawn, key=lambda entry: entry[0]))


# --- kinds of sources -------------------------------------------------------------------------------------------------


def find_lister(name: str, options: RowOptions, skipped: Counter[str]) -> Lister:
    """Return a function that lists the rows of a source.

    Raises:
        FileNotFoundError, ValueError: see `list_rows`.
    """
    if is_folder(name):
        return _folder_lister(name.rstrip("/") or name, options, skipped)
    if exists(name) and not _has_braces(name):
        return _file_lister(name, options, skipped)
    parts = expand_braces(name)
    if parts != [name]:
        return _join([find_lister(part, options, skipped) for part in parts])
    matches = expand_glob(name)
    if not matches:
        raise FileNotFoundError(2, os.strerror(2), name)
    return _glob_lister(matches, options, skipped)


def _has_braces(name: str) -> bool:
    """Whether a URL is a pattern; a local file may have braces in its name."""
    return is_url(name) and suffix_of(name) in CONTAINERS and expand_braces(name) != [name]


def _join(listers: Sequence[Lister]) -> Lister:
    return lambda: chain.from_iterable(lister() for lister in listers)


def _file_lister(name: str, options: RowOptions, skipped: Counter[str]) -> Lister:
    """Return the lister of a single file or URL: its suffix tells the kind, and others are images."""
    path, suffix = absolute(name), suffix_of(name)
    if suffix in CONTAINERS and not is_storable(path):
        raise ValueError(f"{storable(name)}: its path is not valid UTF-8, so that tables cannot store it.")
    if suffix in COMPRESSED:
        raise ValueError(f"{name} is compressed, so that its images cannot be read one by one. Decompress it.")
    if suffix in PARQUET:
        return lambda: list_parquet(path, name, options)
    if suffix in ARROW:
        return lambda: list_arrow(path, name, options)
    if suffix in SHARDS:
        return lambda: list_shard(path, name, options, skipped)
    if suffix in JSON_LINES:
        return lambda: list_manifest(path, name, options)
    if suffix == ".json":
        return lambda: list_json(path, name, options)
    return lambda: iter([file_row(name)])


def file_row(name: str) -> SourceRow:
    """Return the row of an image file, whose key is its path or URL."""
    if not is_storable(name):
        return missing_row(name, name, "its name is not valid UTF-8.")
    return SourceRow(name, absolute(name), "file")


def _glob_lister(matches: Sequence[str], options: RowOptions, skipped: Counter[str]) -> Lister:
    """Return the lister of the matches of a glob. If there are images or folders, other files are skipped."""
    images = readable_suffixes()
    if not any(suffix_of(name) in images or is_folder(name) for name in matches):
        return _join([_file_lister(name, options, skipped) for name in matches])

    def rows() -> Rows:
        for name in matches:
            if is_folder(name):
                yield from find_lister(name, options, skipped)()
            elif suffix_of(name) in images:
                yield file_row(name)
            else:
                skipped[suffix_of(name)] += 1

    return rows


def _folder_lister(folder: str, options: RowOptions, skipped: Counter[str]) -> Lister:
    """Return the lister of a folder.

    Raises:
        ValueError: if there is nothing to list, or the folder has several splits.
    """
    if is_saved(folder):
        return lambda: list_saved(absolute(folder), folder, options)
    splits = list_splits(folder)
    if len(splits) == 1:
        return find_lister(f"{folder}/{splits[0]}", options, skipped)
    if splits:
        raise ValueError(f"{folder} has several splits. Name one: {', '.join(f'{folder}/{name}' for name in splits)}.")
    if next(_files_of(folder, readable_suffixes(), [], Counter()), None) is not None:
        return lambda: _list_images(folder, skipped)
    for suffixes in (PARQUET, SHARDS):
        found = list(_files_of(folder, frozenset(suffixes), [], Counter()))
        found = [name for name in found if not os.path.basename(name).startswith("_")]  # as all readers of Parquet do
        if found:
            return _join([_file_lister(name, options, skipped) for name in found])
    counts = Counter[str]()
    list(_files_of(folder, readable_suffixes(), [], counts))
    skipped.update(counts)
    raise ValueError(f"{folder}: there are no images, Parquet files or shards in this folder.")


def _files_of(folder: str, suffixes: frozenset[str], errors: list[Any], skipped: Counter[str]) -> Iterator[str]:
    return find_files(tree_of(folder, errors), suffixes, skipped)


def _list_images(folder: str, skipped: Counter[str]) -> Rows:
    """Yield the images in a folder, and a row with an error for each subfolder that cannot be read."""
    errors: list[Any] = []
    for name in _files_of(folder, readable_suffixes(), errors, skipped):
        yield file_row(name)
    for error in errors:
        name = str(getattr(error, "filename", None) or folder)
        yield missing_row(name, name, f"this folder cannot be read: {getattr(error, 'strerror', None) or error}.")


# --- keys -------------------------------------------------------------------------------------------------------------


def check_unique(rows: Callable[[], Iterable[SourceRow]]) -> int:
    """Check that each key is unique. This takes 9 bytes of memory a row.

    Args:
        rows: Returns the rows. It is called again if two digests of keys are equal, to find them.

    Returns:
        The number of rows.

    Raises:
        ValueError: If two rows have the same key; the message names the key and both places.
    """
    digests = array("Q", (digest(row.key) for row in rows()))
    ordered = np.frombuffer(digests, dtype=np.uint64) if digests else np.empty(0, np.uint64)
    ordered.sort()
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if twice:
        _find_repeated((row for row in rows() if digest(row.key) in twice), len(digests))
    return len(digests)


def digest(key: str) -> int:
    """Return a digest of 64 bits."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _find_repeated(rows: Iterable[SourceRow], total: int) -> None:
    seen: dict[str, SourceRow] = {}
    for row in rows:
        first = seen.setdefault(row.key, row)
        if first is not row:
            raise ValueError(
                f"Two of {total} rows have the key {row.key!r}: {first.place} and {row.place}. Keys must be unique: "
                f"choose another key column, or {ROW_NUMBER!r} for the file and the number of the row."
            )


def __getattr__(name: str) -> Any:
    """Return `KEY_SCHEMA`, which needs pyarrow, when it is used."""
    if name == "KEY_SCHEMA":
        return source_row.key_schema()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CONTAINERS",
    "SourceRow",
    "check_unique",
    "file_row",
    "is_remote",
    "list_rows",
    "rows_to_table",
    "storable",
    "table_to_rows",
]
