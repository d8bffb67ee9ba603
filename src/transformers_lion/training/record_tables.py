"""Converts sources of records into datasets, which are memory-mapped from a cache if the source is files.

The cache of a source is a folder in that of `datasets`. It holds the rows of the good records as an Arrow file, and
`about.json`, which names the files and lists the faults and the counts of the report. A cache belongs to the paths,
sizes and modification times of the files and to the options of the check. Images may come and go without a change of
the files, so they are checked again each time; if any of them is bad now or was bad, the files are read again.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets, load_from_disk
from datasets.table import InMemoryTable

from ..file_utils import LOCK, LockError, locked, naming, write_text
from .record_checks import IMAGE, SCHEMA, Batch, Checked, RecordChecker, check_batch
from .record_files import batch_dataset, batch_list, check_column_names, form_of, may_embed, read_batches
from .records import IMAGE_NAMES
from .report import Fault, SourceCount, summarize

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the cache's content; a new one makes old caches unused."""

ABOUT = "about.json"

IMAGE_FAULTS = ("missing file", "unreadable image")
"""Kinds of faults that may disappear without a change of the records."""

STARTED = time.time()


@dataclass
class Result:
    """What was found in sources of records.

    Attributes:
        counts: the counts of each source.
        faults: the faults of all bad records.
        num_records: the number of records, good and bad.
        bad: the positions of bad records.
    """

    counts: list[SourceCount] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    num_records: int = 0
    bad: list[int] = field(default_factory=list)


Write = Callable[[Checked, int], None]
"""Called with the checked records of each batch, and the number of records in it."""


def convert(name: str, batches: Iterable[Batch], checker: RecordChecker, write: Write, result: Result) -> None:
    """Check all records of a source, and write the rows of the good ones.

    Args:
        name: the name of the source.
        batches: its records.
        checker: how to check them.
        write: receives the rows.
        result: gets the counts and faults.

    Raises:
        RecordError: at the first bad record, if `checker.on_error` is "raise".
        ValueError: if there are no records, or none of them can be used.
    """
    num_records, faults, tasks = 0, list[Fault](), Counter[str]()
    for batch in batches:
        checked = check_batch(batch, checker)
        if len(checked.positions) < len(batch):
            is_bad = np.ones(len(batch), dtype=bool)
            is_bad[checked.positions] = False
            result.bad += (result.num_records + np.flatnonzero(is_bad)).tolist()
        result.num_records += len(batch)
        num_records += len(batch)
        faults += checked.faults
        tasks.update(checked.count_tasks())
        write(checked, len(batch))
    count = SourceCount(name, num_records, num_records - len(faults), dict(tasks))
    checker.report.add(count)
    if not num_records:
        raise ValueError(f"{name} has no records.")
    if len(faults) == num_records:
        raise ValueError(f"None of the {num_records} records of {name} can be used. {summarize(faults)}")
    if faults:
        logger.warning("%s: %d of %d records are left out. %s", name, len(faults), num_records, summarize(faults))
    result.counts.append(count)
    result.faults += faults


def load_list(name: str, records: Sequence[Any], checker: RecordChecker) -> Dataset:
    """Convert a list of records, in memory."""
    tables: list[pa.Table] = []
    convert(name, batch_list(name, records), checker, lambda checked, _: tables.append(checked.table), Result())
    return in_memory(tables)


def in_memory(tables: Sequence[pa.Table]) -> Dataset:
    """Return tables as a dataset in memory."""
    return Dataset(InMemoryTable(pa.concat_tables(tables).combine_chunks()))


def select_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Select rows of a dataset, with 8 bytes of memory a row; `Dataset.select` makes a Python list of them.

    Args:
        dataset: the dataset.
        rows: the positions to select.
    """
    indices = pa.array(rows, pa.uint64())
    if dataset._indices is not None:
        indices = dataset._indices.column(0).combine_chunks().take(indices)
    digest = hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=8)
    return Dataset(
        dataset.data,
        dataset.info.copy(),
        indices_table=InMemoryTable(pa.table({"indices": indices})),
        fingerprint=hashlib.blake2b(dataset._fingerprint.encode() + digest.digest(), digest_size=8).hexdigest(),
    )


# --- datasets with images inside --------------------------------------------------------------------------------------


def load_table(name: str, table: Dataset, checker: RecordChecker) -> Dataset:
    """Convert a dataset with the fields of records as columns, in memory.

    If all images are embedded in one column, they are not copied.
    """
    table = prepare_table(name, table)
    storage = embedding_column(table)
    result, tables, texts = Result(), list[pa.Table](), list[pa.Table]()

    def write(checked: Checked, size: int) -> None:
        (tables if storage is None else texts).append(checked.table if storage is None else spread(checked, size))

    try:
        convert(name, batch_dataset(name, table), checker, write, result)
    except _NotEmbeddedError:
        storage, result = None, Result()
        convert(name, batch_dataset(name, table), checker, write, result)
    return in_memory(tables) if storage is None else beside(table, storage, in_memory(texts), result.bad)


class _NotEmbeddedError(Exception):
    """The image of a good record is not embedded."""


def prepare_table(name: str, table: Dataset) -> Dataset:
    """Select the columns of records, and disable the decoding of images, so that each unreadable one can be reported.

    Raises:
        ValueError: if a column is unknown.
    """
    source = "The dataset" if name == "dataset" else f"The dataset {name}"
    return without_decoding(table.with_format(None).select_columns(check_column_names(source, table.column_names)))


def without_decoding(table: Any) -> Any:
    """Disable the decoding of images in a dataset or a stream."""
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image) and name in IMAGE_NAMES:
            table = table.cast_column(name, IMAGE)
    return table


def embedding_column(table: Dataset) -> str | None:
    """Return the only column that may embed images, if there is one."""
    found = [name for name in IMAGE_NAMES if may_embed(table.features.get(name))]
    return found[0] if len(found) == 1 else None


def spread(checked: Checked, size: int) -> pa.Table:
    """Return rows without their embedded images, and with empty rows for bad records.

    Args:
        checked: the rows of good records.
        size: the number of records.

    Raises:
        _NotEmbeddedError: if an image is not embedded.
    """
    images = checked.table["image"].combine_chunks()
    if pc.struct_field(images, "bytes").null_count:
        raise _NotEmbeddedError
    rows = checked.table.drop_columns("image")
    if len(checked.positions) == size:
        return rows
    places = np.zeros(size, dtype=np.int64)
    places[checked.positions] = np.arange(len(checked.positions))
    missing = np.ones(size, dtype=bool)
    missing[checked.positions] = False
    return rows.take(pa.array(places, mask=missing))


def beside(table: Dataset, storage: str, texts: Dataset, bad: Sequence[int]) -> Dataset:
    """Combine the embedded images of a table with checked texts, and leave out bad records."""
    images = table.select_columns([storage]).rename_columns({storage: "image"}).cast_column("image", IMAGE)
    rows = concatenate_datasets([images, texts], axis=1)
    return select_rows(rows, np.setdiff1d(np.arange(len(rows)), bad)) if bad else rows


# --- files ------------------------------------------------------------------------------------------------------------


def load_files(files: Sequence[Path], checker: RecordChecker, cache_folder: Path) -> Dataset:
    """Return the records of files, or of one saved dataset, memory-mapped from a cache.

    Args:
        files: the files, as `find_files` returns them.
        checker: how to check the records.
        cache_folder: the folder for caches.

    Raises:
        RecordError: if a record is bad, and `checker.on_error` is "raise".
        ValueError: if a source has no records, none of them can be used, or a file cannot be read.
        OSError: if a file is missing, or the cache cannot be written.
    """
    key = _describe(files, checker)
    folder = cache_folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _waiting_for(folder):
        about = _read_about(folder)
        if about is None or not _is_current(about, folder, checker):
            about = _fill(folder, key, files, checker)
        rows = Dataset.from_file(str(folder / about["rows"]))
    if about["storage"] is None:
        return rows
    return beside(prepare_table(str(files[0]), load_from_disk(str(files[0]))), about["storage"], rows, about["bad"])


def _describe(files: Sequence[Path], checker: RecordChecker) -> dict[str, Any]:
    """Return what the cache of files depends on."""
    return {
        "version": VERSION,
        "files": [_stamp(file) for file in files],
        "image_folder": None if checker.image_folder is None else os.fspath(checker.image_folder),
        "current_folder": os.getcwd(),
        "categories": None if checker.categories is None else sorted(checker.categories.items()),
        "check_images": checker.check_images,
    }


def _stamp(file: Path) -> list[Any]:
    """Return the path, size and modification time of a file, or of the files in a folder."""
    if file.is_dir():
        return [str(file), *(_stamp(entry) for entry in sorted(file.iterdir()) if entry.is_file())]
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]


@contextmanager
def _waiting_for(folder: Path) -> Iterator[None]:
    """Lock the folder of a cache, and wait while another process fills it."""
    while True:
        try:
            with locked(folder / LOCK, folder):
                yield
            return
        except LockError:
            time.sleep(0.2)


def _read_about(folder: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, ValueError):
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about if (folder / about["rows"]).exists() else None
    return None


def _is_current(about: dict[str, Any], folder: Path, checker: RecordChecker) -> bool:
    """Whether a cache can be used; if so, its counts and faults are added to the report."""
    faults = [Fault(**fault) for fault in about["faults"]]
    if faults and checker.on_error == "raise":
        return False
    if not _was_just_filled(folder):
        if any(fault.kind in IMAGE_FAULTS for fault in faults):
            return False
        if about["storage"] is None and not _has_images(folder / about["rows"], checker):
            return False
    for fault in faults:
        checker.report.add(fault)
    for count in about["counts"]:
        checker.report.add(SourceCount(**count))
    return True


def _was_just_filled(folder: Path) -> bool:
    """Whether another process of this run has filled a cache."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and (folder / ABOUT).stat().st_mtime >= STARTED


def _has_images(rows: Path, checker: RecordChecker) -> bool:
    """Whether all images that are not embedded pass the check."""
    if checker.check_images is None:
        return True
    with pa.memory_map(str(rows)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            paths = pc.unique(pc.struct_field(batch["image"], "path")).to_pylist()
            if not all(checker.is_good(path) for path in paths if path is not None):
                return False
    return True


def _fill(folder: Path, key: dict[str, Any], files: Sequence[Path], checker: RecordChecker) -> dict[str, Any]:
    """Write a cache and return its description."""
    table, storage = None, None
    if form_of(files[0]) == "saved":
        table = prepare_table(str(files[0]), load_from_disk(str(files[0])))
        storage = embedding_column(table)
    name, result = f"{uuid.uuid4().hex}.arrow", Result()
    try:
        try:
            _write_rows(folder / name, files, table, storage, checker, result)
        except _NotEmbeddedError:
            storage, result = None, Result()
            _write_rows(folder / name, files, table, storage, checker, result)
        about = {
            "rows": name,
            "storage": storage,
            "counts": [asdict(count) for count in result.counts],
            "faults": [asdict(fault) for fault in result.faults],
            "bad": result.bad if storage is not None else [],
            **key,
        }
        write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    except BaseException:
        (folder / name).unlink(missing_ok=True)
        raise
    for old in folder.glob("*.arrow"):
        if old.name != name:
            old.unlink(missing_ok=True)
    return about


def _write_rows(
    path: Path,
    files: Sequence[Path],
    table: Dataset | None,
    storage: str | None,
    checker: RecordChecker,
    result: Result,
) -> None:
    """Write the rows of files, or of a saved dataset, whose images are left out if they are all in `storage`."""
    schema = SCHEMA if storage is None else SCHEMA.remove(SCHEMA.get_field_index("image")).with_metadata(None)
    with naming(path), path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:

        def write(checked: Checked, size: int) -> None:
            rows = checked.table if storage is None else spread(checked, size)
            stream.write_table(rows.cast(schema).combine_chunks())

        for source in files:
            batches = read_batches(source) if table is None else batch_dataset(str(source), table)
            convert(str(source), batches, checker, write, result)


__all__ = ["load_files", "load_list", "load_table", "select_rows", "without_decoding"]
