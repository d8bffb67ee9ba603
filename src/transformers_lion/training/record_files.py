"""Finds the files that a recipe names as a source of records, and reads them in batches.

A source is a file, several files, a pattern or a folder: JSON, JSON Lines, Parquet, WebDataset shards, or a dataset
saved by `datasets`. Reading order: `find_files`, `form_of`, `read_batches`.
"""

import glob
import json
import os
import re
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice, product
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
from datasets import Dataset, Image, IterableDataset, load_from_disk

from ..columns import unread_fields
from .record_checks import Batch
from .records import FIELDS, IMAGE_NAMES, NOTES, RecordError

Form = Literal["json", "lines", "parquet", "shards", "saved"]
"""What a file or folder holds: a JSON list, JSON Lines, a Parquet table, a WebDataset shard, or a saved dataset."""

SUFFIXES: dict[str, Form] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
    ".tar": "shards",
}
"""The form of files by suffix. Files with other suffixes are read as JSON or JSON Lines."""

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""A range of numbers in the name of shards, as in `shard-{0000..0041}.tar`."""

BLOCK_BYTES = 4 << 20
"""Size of the parts in which JSON Lines are read."""

NUM_AHEAD = 2
"""Number of blocks that are parsed while another is checked."""

NUM_ROWS, NUM_IMAGES = 1 << 14, 256
"""Number of rows in a batch of text, and of rows with embedded images."""

NUM_SAVED = 1 << 12
"""Number of rows in a part of a saved dataset."""

LISTS, TEXT = pa.list_(pa.string()), pa.string()


# --- finding files ----------------------------------------------------------------------------------------------------


def as_files(source: Any) -> list[Path]:
    """Return the files that `source` names; an empty list if it is not a path or a list of paths.

    Raises:
        ValueError: if records cannot be read from `source`.
        FileNotFoundError: if there is no such file.
    """
    if isinstance(source, str | os.PathLike):
        return find_files(source)
    if isinstance(source, Dataset | IterableDataset):
        return []
    if isinstance(source, Mapping):
        raise ValueError(f"Pass one split of the data; this has {', '.join(map(repr, list(source)[:5]))}.")
    if not isinstance(source, list | tuple):
        raise ValueError(f"Records are read from files, lists and datasets, not from {type(source).__name__}.")
    is_paths = bool(source) and all(isinstance(entry, str | os.PathLike) for entry in source)
    return [file for entry in source for file in find_files(entry)] if is_paths else []


def find_files(source: str | os.PathLike) -> list[Path]:
    """Return the files that a path, a pattern or a folder names, in the order of their names.

    A pattern has `*`, `?`, `[...]`, or a range such as `{0000..0041}`. A saved dataset is returned as its folder.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a folder holds no files of records, or files of several forms.
    """
    path = Path(source)
    if path.is_dir():
        return [path] if _is_saved(path) else _find_in_folder(path)
    if path.exists():
        return [path]
    names = expand_braces(os.fspath(source))
    found = [Path(file) for name in names for file in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    if not found:
        raise FileNotFoundError(2, "No file matches this pattern", os.fspath(source))
    for file in found:
        if not file.exists():
            raise FileNotFoundError(2, os.strerror(2), str(file))
    return found


def expand_braces(name: str) -> list[str]:
    """Return the names that a name with ranges such as `{0000..0041}` stands for; numbers keep their zeros."""
    ranges = [
        [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        for first, last in BRACES.findall(name)
    ]
    parts = BRACES.split(name)[::3]
    return [
        "".join(part + number for part, number in zip(parts, (*numbers, ""), strict=True))
        for numbers in product(*ranges)
    ]


def _is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`.

    Raises:
        ValueError: if it holds several splits.
    """
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise ValueError(f"{folder} holds the splits {', '.join(splits)}; name one: {folder / splits[0]}.")
    return (folder / "state.json").exists() and (folder / "dataset_info.json").exists()


def _find_in_folder(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    forms = Counter(SUFFIXES[file.suffix] for file in files)
    if len(forms) == 1 and "json" not in forms:
        return files
    if not files:
        raise ValueError(f"The folder {folder} holds no .parquet, .tar or .jsonl files, and no saved dataset.")
    counts = ", ".join(f"{count} {suffix}" for suffix, count in Counter(file.suffix for file in files).items())
    raise ValueError(f"The folder {folder} holds {counts} files; name the files of records, for example by a pattern.")


def are_shards(name: str) -> bool:
    """Whether a path, pattern or folder names WebDataset shards."""
    return name.endswith(".tar") or next(Path(name).glob("*.tar"), None) is not None


def folder_of_files(files: Sequence[Path]) -> Path | None:
    """Return the folder that images of files are relative to.

    Raises:
        ValueError: if the files are in several folders.
    """
    folders = {file.parent for file in files}
    if len(folders) > 1:
        raise ValueError(
            f"image_folder is needed for files in {len(folders)} folders; in a recipe, it is called images."
        )
    return folders.pop()


def form_of(file: Path | str) -> Form:
    """Return the form of a file or folder that `find_files` found, or of a URL, which may have a query."""
    if is_url(file):
        return SUFFIXES.get(Path(urlsplit(str(file)).path).suffix.lower(), "json")
    return "saved" if Path(file).is_dir() else SUFFIXES.get(Path(file).suffix.lower(), "json")


# --- reading batches --------------------------------------------------------------------------------------------------


def read_batches(file: Path) -> Iterator[Batch]:
    """Yield the records of a file in batches.

    Raises:
        ValueError: if the file cannot be read at all; bad records are part of the batches.
    """
    form = form_of(file)
    if form == "parquet":
        yield from read_parquet(file)
    elif form == "shards":
        yield from batch_records(read_part(Part(file)))
    elif form == "lines":
        yield from read_line_batches(file)
    else:
        records = read_json(file)
        yield from read_line_batches(file) if records is None else batch_list(str(file), records)


def number_names(before: str, first: int, count: int, after: str) -> pa.Array:
    """Return numbered names, such as `train.jsonl:1`."""
    numbers = pa.array(np.arange(first, first + count)).cast(TEXT)
    return pc.binary_join_element_wise(before, numbers, after, "")


def batch_list(source: str, records: Sequence[Any]) -> Iterator[Batch]:
    """Yield the records of a list in batches, named by their index."""
    for start in range(0, len(records), NUM_ROWS):
        part = records[start : start + NUM_ROWS]
        yield Batch(number_names(f"{source}[", start, len(part), "]"), part.__getitem__, as_columns(part))


def as_columns(records: Sequence[Any]) -> pa.Table | None:
    """Return parsed JSON records as columns, `None` if they do not fit."""
    try:
        return parse_lines("\n".join(map(json.dumps, records)).encode(), len(records))
    except (TypeError, ValueError, RecursionError):  # images, numbers that are too long
        return None


def batch_records(records: Iterator[tuple[str, Any] | None], size: int = NUM_IMAGES) -> Iterator[Batch]:
    """Yield named records in batches."""
    while part := [item for item in islice(records, size) if item is not None]:
        names, raws = zip(*part, strict=True)
        yield Batch(names, raws.__getitem__)


def batch_table(source: str, table: pa.Table, first: int) -> Batch:
    """Return rows of a table as a batch, named by their index in it."""
    names = number_names(f"{source}[", first, table.num_rows, "]")
    return Batch(names, lambda position: table.slice(position, 1).to_pylist()[0], table)


def batch_dataset(source: str, dataset: Dataset, first: int = 0) -> Iterator[Batch]:
    """Yield the rows of a dataset in batches, named by their index, which begins with `first`."""
    size = NUM_IMAGES if any(may_embed(dataset.features.get(name)) for name in IMAGE_NAMES) else NUM_ROWS
    for table in dataset.with_format("arrow").iter(size):
        yield batch_table(source, table, first)
        first += table.num_rows


def may_embed(feature: Any) -> bool:
    """Whether a column may contain the bytes of images."""
    return isinstance(feature, Image | Mapping) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def check_column_names(source: str, names: Sequence[str]) -> list[str]:
    """Return which columns of a table are read.

    Raises:
        ValueError: if there is no image column, or a column is unknown.
    """
    if not set(IMAGE_NAMES).intersection(names):
        raise ValueError(f"{source} has no column {' or '.join(IMAGE_NAMES)}; its columns are {', '.join(names)}.")
    unread = unread_fields(dict.fromkeys(names, True), (*FIELDS, *NOTES))
    if unread:
        raise ValueError(
            f"{source} has the columns {', '.join(unread)}, which are not read; columns are {', '.join(FIELDS)}. "
            "Remove the others, rename them, or start their names with an underscore."
        )
    return [name for name in names if name in FIELDS]


def read_parquet(file: Path | str, row_groups: Sequence[int] | None = None, first: int = 0) -> Iterator[Batch]:
    """Yield the rows of a Parquet file in batches, named by their index.

    Args:
        file: the path of the file.
        row_groups: the row groups to read; all by default.
        first: the index of their first row in the file.

    Raises:
        ValueError: if it is not a Parquet file, or its columns are not those of records.
    """
    with open_parquet(file) as parquet:
        names = check_column_names(str(file), parquet.schema_arrow.names)
        kinds = [parquet.schema_arrow.field(name).type for name in names if name in IMAGE_NAMES]
        embeds = any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in kinds)
        size = NUM_IMAGES if embeds else NUM_ROWS
        for rows in parquet.iter_batches(size, row_groups=row_groups, columns=names):
            yield batch_table(str(file), pa.Table.from_batches([rows]).replace_schema_metadata(None), first)
            first += rows.num_rows


def open_parquet(file: Path | str) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        ValueError: if it is none.
    """
    try:
        return pq.ParquetFile(open_bytes(file)) if is_url(file) else pq.ParquetFile(file, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is not a Parquet file: {error}") from error


# --- JSON -------------------------------------------------------------------------------------------------------------


def read_json(file: Path) -> list[Any] | None:
    """Return the records of a JSON file, `None` if it may be JSON Lines.

    Raises:
        ValueError: if it is not valid JSON, or not a list.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=read_object)
    except (ValueError, RecursionError) as error:
        with file.open("rb") as stream:
            if stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return None
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if isinstance(content, dict | RecordError):
        return [content]
    if not isinstance(content, list):
        raise ValueError(f"{file} contains {type(content).__name__}, not a list of records.")
    return content


def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RecordError:
    """Build a JSON object; return an error, raised later for this record only, if a key is duplicated."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return RecordError(f"duplicate key {twice[:40]!r}", "broken JSON")


def parse_line(line: bytes) -> Any:
    """Return the record of a line, or an error if the line is not valid JSON."""
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=read_object)
    except (ValueError, RecursionError) as error:
        return RecordError(f"the line is not valid JSON: {error}", "broken JSON")


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing but white space."""
    return not line.removeprefix(b"\xef\xbb\xbf").strip()


def read_line_batches(file: Path) -> Iterator[Batch]:
    """Yield the records of a JSON Lines file in batches, named by their line number from 1."""
    first = 1
    pending: deque[tuple[bytes, int, Future[pa.Table | None]]] = deque()
    with file.open("rb") as stream, ThreadPoolExecutor(NUM_AHEAD) as pool:
        for block in chain(read_blocks(stream), [b""] * NUM_AHEAD):
            if block:
                lines = block.count(b"\n") + (not block.endswith(b"\n"))
                pending.append((block, lines, pool.submit(parse_lines, block, lines)))
            if pending and (len(pending) > NUM_AHEAD or not block):
                block, lines, table = pending.popleft()
                yield batch_lines(file, block, first, table.result())
                first += lines


def read_blocks(stream: IO[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield a file in blocks of whole lines."""
    rest = stream.read(3).removeprefix(b"\xef\xbb\xbf")
    while part := stream.read(size):
        end = part.rfind(b"\n") + 1
        if end:
            yield rest + part[:end]
            rest = part[end:]
        else:
            rest += part
    if rest:
        yield rest


def batch_lines(file: Path, block: bytes, first: int, table: pa.Table | None) -> Batch:
    """Return the records of a block of lines."""
    if table is not None:
        split: list[bytes] = []

        def parse(position: int) -> Any:
            if not split:
                split.extend(block.split(b"\n"))
            return parse_line(split[position])

        return Batch(number_names(f"{file}:", first, table.num_rows, ""), parse, table)
    lines = [(number, line) for number, line in enumerate(block.split(b"\n"), first) if not is_blank(line)]
    names = [f"{file}:{number}" for number, _ in lines]
    return Batch(names, lambda position: parse_line(lines[position][1]))


def _schemas() -> list[pa.Schema]:
    """The types that JSON Lines may have as columns: answers and `image_id` may be numbers, and tags text."""
    names = ["image", "image_path", "question", "category", "task_type"]
    lists = ["questions", "answers", "categories", "task_types"]
    fields = [(name, TEXT) for name in names] + [(name, LISTS) for name in lists]
    kinds = product((TEXT, pa.int64()), (LISTS, TEXT), (TEXT, pa.int64()))
    return [
        pa.schema([*fields, ("answer", answer), ("tags", tags), ("image_id", image_id)])
        for answer, tags, image_id in kinds
    ]


SCHEMAS = _schemas()


def parse_lines(block: bytes, num_lines: int) -> pa.Table | None:
    """Parse lines of JSON as columns.

    Args:
        block: lines, with or without a line break at the end.
        num_lines: the number of lines, of which none is blank.

    Returns:
        A table of `num_lines` rows, or `None` if the lines may not be valid JSON objects with text in these columns.
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    begins = block.count(b"\n{") + block.startswith(b"{")
    ends = block.count(b"}\n") + block.endswith(b"}")
    if not (begins == ends == num_lines) or not _is_utf8(block):
        return None
    read = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
    for schema in SCHEMAS:
        options = pj.ParseOptions(explicit_schema=schema, newlines_in_values=False)
        try:
            table = pj.read_json(pa.BufferReader(block), read_options=read, parse_options=options)
        except pa.ArrowInvalid:
            continue
        return table if table.num_rows == num_lines else None
    return None


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- reading parts of streams -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a source that is read from its beginning to its end.

    Attributes:
        file: the file, the URL of a file, or the folder of a saved dataset.
        index: the index of a row group in a Parquet file, or of the first row in a saved dataset.
        first: the index of the first row.
    """

    file: Path | str
    index: int = 0
    first: int = 0


def list_parts(file: Path | str) -> list[Part]:
    """Return the parts of a file: row groups of a Parquet file, ranges of a saved dataset, all others as a whole.

    Raises:
        ValueError: if the file has no records, as far as that can be seen.
    """
    form = form_of(file)
    if form == "saved":
        return [Part(file, start, start) for start in range(0, len(load_from_disk(str(file))), NUM_SAVED)]
    if form == "parquet":
        with open_parquet(file) as parquet:
            check_column_names(str(file), parquet.schema_arrow.names)
            counts = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        return [Part(file, index, first) for index, first in enumerate(np.cumsum([0, *counts[:-1]]).tolist())]
    return [Part(file)]


Item = tuple[str, Any] | None
"""A record's name and the record, or the error of a record that could not be parsed; `None` if it is skipped."""


def read_part(part: Part, start: int = 0, step: int = 1, skip: int = 0) -> Iterator[Item]:
    """Yield every `step`-th record of a part from record `start` on, and `None` for the first `skip` of these.

    Skipped records are neither parsed nor, where that can be avoided, read.

    Raises:
        ValueError: if the file cannot be read at all.
    """
    form = form_of(part.file)
    if form in ("parquet", "saved"):
        batches = read_parquet(part.file, [part.index], part.first) if form == "parquet" else _read_saved(part)
        items: Iterator[Callable[[], tuple[str, Any]]] = (
            partial(_take, batch, position) for batch in batches for position in range(len(batch))
        )
    elif form == "shards":
        items = _read_samples(part.file)
    else:
        items = _read_json_items(part.file)
    for index, item in enumerate(islice(items, start, None, step)):
        yield None if index < skip else item()


def _take(batch: Batch, position: int) -> tuple[str, Any]:
    return batch.name(position), batch.raw(position)


def _read_saved(part: Part) -> Iterator[Batch]:
    """Yield the rows of a part of a saved dataset in batches."""
    table = load_from_disk(str(part.file)).with_format(None)
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
    rows = table.select(range(part.index, min(part.index + NUM_SAVED, len(table))))
    rows = rows.select_columns(check_column_names(str(part.file), rows.column_names))
    yield from batch_dataset(str(part.file), rows, part.first)


def _read_json_items(file: Path | str) -> Iterator[Callable[[], tuple[str, Any]]]:
    """Yield functions that return the records of a JSON or JSON Lines file."""
    records = None if form_of(file) == "lines" else read_json(Path(file))
    if records is not None:
        for index, record in enumerate(records):
            yield partial(_name, f"{file}[{index}]", record)
        return
    with open_bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            if not is_blank(line):
                yield partial(_name_line, f"{file}:{number}", line)


def _name(name: str, record: Any) -> tuple[str, Any]:
    return name, record


def _name_line(name: str, line: bytes) -> tuple[str, Any]:
    return name, parse_line(line)


def is_url(file: Path | str) -> bool:
    """Whether a file is named by a URL."""
    return isinstance(file, str) and "://" in file


def open_bytes(file: Path | str) -> IO[bytes]:
    """Open a file or a URL for reading."""
    return fsspec.open(file, "rb").open() if is_url(file) else open(file, "rb")


# --- WebDataset -------------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jfif"})


def _read_samples(file: Path | str) -> Iterator[Callable[[], tuple[str, Any]]]:
    """Yield functions that return the samples of a WebDataset shard; each is to be called before the next is asked for.

    Members whose names are the same up to the first dot of the file name form a sample. Its record is the object in
    the member `.json`, with the image of the sample, and with the text of the member `.txt` as the answer.

    Raises:
        ValueError: if the file is not a tar file, or is cut off.
    """
    with _tar_errors(file), open_bytes(file) as stream:
        with tarfile.open(None, "r|" if is_url(file) else "r:", stream) as tar:
            for key, members in groupby(_read_members(tar, is_url(file)), lambda member: member.key):
                yield partial(_read_sample, file, key, tar, list(members))
        if not is_url(file) and not _has_end(Path(file)):
            raise tarfile.ReadError("its end is missing")


@contextmanager
def _tar_errors(file: Path | str) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise ValueError(f"{file} is not a complete tar file: {error}.") from error


@dataclass(frozen=True)
class Member:
    """A file in a shard; its content is read at once only in a stream, which cannot go back."""

    key: str
    suffix: str
    info: tarfile.TarInfo
    content: bytes | None

    def read(self, tar: tarfile.TarFile) -> bytes:
        """Return the content."""
        return tar.extractfile(self.info).read() if self.content is None else self.content  # type: ignore[union-attr]


def _read_members(tar: tarfile.TarFile, at_once: bool) -> Iterator[Member]:
    for info in tar:
        if info.isfile():
            folder, slash, base = info.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            content = tar.extractfile(info).read() if at_once else None  # type: ignore[union-attr]
            yield Member(folder + slash + stem, suffix.lower(), info, content)
        vars(tar)["members"] = []  # otherwise memory grows with each member


def _has_end(file: Path) -> bool:
    """Whether a tar file ends with a block of zeros; tarfile takes a file that is cut off between members for whole."""
    with file.open("rb") as stream:
        stream.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not stream.read().strip(b"\0")


def _read_sample(
    file: Path | str, key: str, tar: tarfile.TarFile, members: Sequence[Member]
) -> tuple[str, dict[str, Any] | RecordError]:
    """Return the name of a sample and its record, or an error."""
    with _tar_errors(file):
        parts = {member.suffix: member.read(tar) for member in members}
    return f"{file}:{key}", _join_sample(parts)


def _join_sample(parts: Mapping[str, bytes]) -> Any:
    record = parse_line(parts["json"]) if "json" in parts else {}
    if not isinstance(record, dict):
        return record
    images = [suffix for suffix in parts if suffix in IMAGE_SUFFIXES]
    others = [suffix for suffix in parts if suffix not in (*images, "json", "txt") and not suffix.startswith("_")]
    if len(images) > 1:
        return RecordError(f"it has {len(images)} images: {', '.join(images)}", "no image")
    if others:
        return RecordError(f"it has the members {', '.join(others)}, which are not read", "unread field")
    if "txt" in parts:
        if record.get("answer") is not None:
            return RecordError("it has an answer in .json and in .txt", "unread field")
        try:
            record = {**record, "answer": parts["txt"].decode().rstrip("\n")}
        except UnicodeDecodeError as error:
            return RecordError(f"its .txt is not valid Unicode: {error.reason}", "broken text")
    return {**record, "image": parts[images[0]]} if images else record


__all__ = [
    "Part",
    "are_shards",
    "as_files",
    "batch_dataset",
    "batch_list",
    "check_column_names",
    "expand_braces",
    "find_files",
    "folder_of_files",
    "form_of",
    "is_url",
    "list_parts",
    "may_embed",
    "read_batches",
    "read_part",
]
