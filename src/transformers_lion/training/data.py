"""Loads files and datasets of records into datasets with uniform columns, and mixes them.

Source: LION's reference code, which samples datasets in proportion to a `sample_ratio` and draws each batch from a
single dataset. Reading order: `load_records`, `mix_datasets`.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    Value,
    concatenate_datasets,
    interleave_datasets,
)

from ..columns import unread_fields
from ..configuration_lion import TASK_TYPES
from .checked_images import CheckedImages
from .records import (
    FIELDS,
    IMAGE_NAMES,
    NOTES,
    RecordError,
    check_file,
    make_row,
    name_record,
    parse_record,
    store_image,
)
from .report import Fault, OnError, RecordReport, SourceCount, check_on_error, summarize

logger = logging.getLogger(__name__)

CheckImages = Literal["exists", "decode"]

IMAGE = Image(decode=False)

FEATURES = Features(
    {
        "image": IMAGE,
        "question": Value("string"),
        "answer": Value("string"),
        "task_type": Value("string"),
        "tags": [Value("string")],
        "questions": [Value("string")],
        "answers": [Value("string")],
        "task_types": [Value("string")],
        "source": Value("string"),
    }
)
"""The columns of a dataset of records. Images are stored as paths or encoded bytes, and opened by the collator.

A record with one question fills `question`, `answer` and `task_type`; a record with several fills their plurals.
`source` is the record's name in reports. `tags` is null if the record has none.
"""

JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class RecordChecker:
    """Converts raw records to rows, and reports bad ones; see `load_records` for the fields."""

    image_folder: str | os.PathLike | None
    categories: Mapping[str, str] | None
    check_images: CheckImages | None
    on_error: OnError
    report: RecordReport
    checked_images: CheckedImages

    def __call__(self, source: str, raw: Any) -> dict[str, Any] | Fault:
        """Return the row of a record, or its fault.

        Args:
            source: the name of the record.
            raw: the record, or the error of a line that could not be parsed.

        Raises:
            RecordError: if the record is bad and `on_error` is "raise".
        """
        try:
            if isinstance(raw, RecordError):
                raise raw
            record = replace(parse_record(raw, self.image_folder, self.categories), source=source)
            if self.check_images == "exists":
                check_file(record.image)
            elif self.check_images == "decode":
                self.checked_images.check(record.image)
            return make_row(record)
        except RecordError as error:
            return self.report.reject(source, error, self.on_error)

    def check_all(self, source: str, records: Iterable[tuple[str, Any]], slim: bool = False) -> list[Any]:
        """Return the rows of all records of a source, with `None` for bad records.

        Args:
            source: the name of the source.
            records: names and records.
            slim: whether to drop embedded images from the rows.

        Raises:
            ValueError: if there are no records, or none of them can be used.
        """
        rows: list[dict[str, Any] | None] = []
        faults, tasks = [], Counter[str]()
        for name, raw in records:
            row = self(name, raw)
            if isinstance(row, Fault):
                faults.append(row)
                rows.append(None)
                continue
            tasks.update(row["task_types"] or [row["task_type"]])
            if slim and row["image"]["bytes"] is not None:
                row["image"] = None
            rows.append(row)
        self.report.add(SourceCount(source, len(rows), len(rows) - len(faults), dict(tasks)))
        if not rows:
            raise ValueError(f"{source} has no records.")
        if len(faults) == len(rows):
            raise ValueError(f"None of the {len(rows)} records of {source} can be used. {summarize(faults)}")
        if faults:
            logger.warning("%s: %d of %d records are left out. %s", source, len(faults), len(rows), summarize(faults))
        return rows


def load_records(
    source: Any,
    image_folder: str | os.PathLike | None = None,
    *,
    streaming: bool = False,
    num_shards: int = 8,
    check_images: CheckImages | None = "exists",
    categories: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
    report: RecordReport | None = None,
    timeout: float | None = 30.0,
    checked_images: str | os.PathLike | None = None,
) -> Dataset | IterableDataset:
    """Read records, check each of them, and return them as a dataset with uniform columns.

    Args:
        source: a JSON file (a list of objects), a JSON Lines file, a list of files, a list of objects, or a
            `datasets.Dataset` or `IterableDataset` with the fields of a record as columns; see `parse_record`.
        image_folder: folder that relative image paths are resolved against; by default the folder of the JSON file, or
            the current folder if the records do not come from a file.
        streaming: whether to read files during training instead of now. (JSON Lines files are read line by line.)
        num_shards: number of shards of a stream of files, which limits how many dataloader workers, over all ranks,
            can read in parallel.
        check_images: "exists" checks that image files exist, "decode" also opens every image, and `None` checks
            nothing. The collator handles an unreadable image that was not found here, with its own `on_error`.
        categories: the task type of each category; other categories then raise an error.
        on_error: what to do with a record that cannot be used: "raise" raises an error at the first, "skip" leaves the
            record out. Both report it. A file that cannot be parsed, such as a JSON list with a syntax error, always
            raises an error.
        report: collects the names, faults and counts of bad records. For a stream it is filled while the stream is
            read, in any process. By default, faults are only logged.
        timeout: timeout of a download, in seconds, if images are opened.
        checked_images: a cache file that remembers which images "decode" has opened, so that later calls only open new
            and changed images. Within a call, each image is opened once.

    Returns:
        A dataset with the columns `FEATURES`.

    Raises:
        RecordError: if a record is bad and `on_error` is "raise".
        ValueError: if there are no records, none of them can be used, a file is not valid JSON, or an argument has an
            invalid value.
    """
    check_on_error(on_error)
    check_options(check_images, categories)
    report = RecordReport() if report is None else report
    files = as_files(source)
    if files and image_folder is None:
        folders = {file.parent for file in files}
        if len(folders) > 1:
            raise ValueError(f"image_folder is needed for files in {len(folders)} folders.")
        image_folder = folders.pop()
    cache = CheckedImages(checked_images, timeout)
    checker = RecordChecker(image_folder, categories, check_images, on_error, report, cache)
    if isinstance(source, IterableDataset):
        return stream_table(source, checker)
    if isinstance(source, Dataset):
        dataset = load_table(source, checker)
        return dataset.to_iterable_dataset(min(num_shards, len(dataset))) if streaming else dataset
    if files and streaming:
        for file in files:
            if next(read_file(file), None) is None:
                raise ValueError(f"{file} has no records.")
        shards = [(file, index, num_shards) for file in files for index in range(num_shards)]
        return IterableDataset.from_generator(
            generate_rows, features=FEATURES, gen_kwargs={"shards": shards, "checker": checker}
        )
    sources = {str(file): read_file(file) for file in files}
    if not files:
        sources = {"records": read_list("records", source)}
    rows = [row for name, records in sources.items() for row in checker.check_all(name, records) if row is not None]
    dataset = Dataset.from_list(rows, features=FEATURES)
    return dataset.to_iterable_dataset(min(num_shards, len(dataset))) if streaming else dataset


def check_options(check_images: str | None, categories: Mapping[str, str] | None) -> None:
    """Raise `ValueError` if an option of `load_records` has an invalid value."""
    if check_images not in (None, "exists", "decode"):
        raise ValueError(f'check_images is {check_images!r}, but must be "exists", "decode" or None.')
    for category, task in (categories or {}).items():
        if task not in TASK_TYPES:
            raise ValueError(f"categories maps {category!r} to {task!r}, not to one of {', '.join(TASK_TYPES)}.")


def as_files(source: Any) -> list[Path]:
    """Return the files that `source` names; an empty list if it is not a path or a list of paths.

    Raises:
        ValueError: if records cannot be read from `source`.
    """
    if isinstance(source, str | os.PathLike):
        return [Path(source)]
    if isinstance(source, Dataset | IterableDataset):
        return []
    if isinstance(source, Mapping):
        raise ValueError(f"Pass one split of the data; this has {', '.join(map(repr, list(source)[:5]))}.")
    if not isinstance(source, list | tuple):
        raise ValueError(f"Records are read from files, lists and datasets, not from {type(source).__name__}.")
    is_paths = bool(source) and all(isinstance(entry, str | os.PathLike) for entry in source)
    return [Path(entry) for entry in source] if is_paths else []


def read_file(file: Path, index: int = 0, count: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield the names and records of a file, with a `RecordError` for each line that is not valid JSON.

    Args:
        file: a JSON file, or a JSON Lines file, recognized by its suffix or its content.
        index, count: the shard to read: the records at `index`, `index + count` and so on.

    Raises:
        ValueError: if the file is neither.
    """
    records = None if file.suffix in JSON_LINES else read_json(file)
    yield from read_lines(file, index, count) if records is None else read_list(str(file), records, index, count)


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


def read_list(source: str, records: Sequence[Any], index: int = 0, count: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield the records of a list, named by their index."""
    for position in range(index, len(records), count):
        yield f"{source}[{position}]", records[position]


def read_lines(file: Path, index: int = 0, count: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield the records of a JSON Lines file, named by their line number from 1; blank lines are skipped."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if (number - 1) % count != index or not line.removeprefix(b"\xef\xbb\xbf").strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"), object_pairs_hook=read_object)
            except (ValueError, RecursionError) as error:
                record = RecordError(f"the line is not valid JSON: {error}", "broken JSON")
            yield f"{file}:{number}", record


def generate_rows(shards: list[tuple[Path, int, int]], checker: RecordChecker) -> Iterator[dict[str, Any]]:
    """Yield the rows of good records in shards of files; the generator behind a stream."""
    for shard in shards:
        for source, raw in read_file(*shard):
            row = checker(source, raw)
            if isinstance(row, Fault):
                logger.warning("Left out: %s", row)
            else:
                yield row


def load_table(table: Dataset, checker: RecordChecker) -> Dataset:
    """Convert a dataset with the fields of records as columns.

    If all images are embedded in one column, they are not copied.
    """
    if not set(IMAGE_NAMES).intersection(table.column_names):
        raise ValueError(
            f"The dataset has no column {' or '.join(IMAGE_NAMES)}; its columns are {', '.join(table.column_names)}."
        )
    unread = unread_fields(dict.fromkeys(table.column_names, True), (*FIELDS, *NOTES))
    if unread:
        raise ValueError(
            f"The dataset has the columns {', '.join(unread)}, which are not read; columns are {', '.join(FIELDS)}. "
            "Remove others with dataset.remove_columns, or rename them."
        )
    table = without_decoding(table.with_format(None).select_columns([n for n in table.column_names if n in FIELDS]))
    rows = checker.check_all("dataset", read_list("dataset", table), slim=True)
    kept = [position for position, row in enumerate(rows) if row is not None]
    embedded = [name for name in IMAGE_NAMES if may_embed(table.features.get(name))]
    if len(embedded) == 1 and all(rows[position]["image"] is None for position in kept):
        storage = table.select_columns(embedded).rename_columns({embedded[0]: "image"}).cast_column("image", IMAGE)
        empty = dict.fromkeys(FEATURES)
        texts = Dataset.from_list([row or empty for row in rows], features=FEATURES).remove_columns("image")
        return concatenate_datasets([storage, texts], axis=1).select(kept)
    for position in kept:
        if rows[position]["image"] is None:
            record = parse_record(table[position], checker.image_folder, checker.categories)
            rows[position]["image"] = store_image(record.image)
    return Dataset.from_list([rows[position] for position in kept], features=FEATURES)


def may_embed(feature: Any) -> bool:
    """Whether a column may contain the bytes of images."""
    return isinstance(feature, Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def stream_table(table: IterableDataset, checker: RecordChecker) -> IterableDataset:
    """Convert a stream with the fields of records as columns.

    Bad rows are marked and then filtered, because the columns of a stream may be unknown. Records are named by their
    content, because the order of a stream changes with each epoch.
    """
    marked = without_decoding(table).map(mark_row, fn_kwargs={"checker": checker})
    return marked.filter(is_good).select_columns(list(FEATURES)).cast(FEATURES)


def mark_row(raw: dict[str, Any], checker: RecordChecker) -> dict[str, Any]:
    """Return the row of a record in a stream, marked as good or bad."""
    row = checker(name_record(raw), raw)
    if not isinstance(row, Fault):
        return {**row, "is_good": True}
    logger.warning("Left out: %s", row)
    return {**dict.fromkeys(FEATURES), "is_good": False}


def is_good(row: dict[str, Any]) -> bool:
    """Whether `mark_row` marked a row as good."""
    return row["is_good"]


def without_decoding(table: Any) -> Any:
    """Disable the decoding of images, so that unreadable images can be reported per record."""
    for name, feature in (table.features or {}).items():
        if isinstance(feature, Image) and name in IMAGE_NAMES:
            table = table.cast_column(name, IMAGE)
    return table


def mix_datasets(
    datasets: Sequence[Dataset | IterableDataset],
    sample_ratios: Sequence[float] | None = None,
    *,
    run_length: int = 1,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    buffer_size: int = 1000,
    num_shards: int = 8,
    stopping_strategy: str = "all_exhausted",
) -> Dataset | IterableDataset:
    """Shuffle datasets, and sample from each in proportion to its ratio.

    If any dataset is a stream, so is the mixture, and `mixture.set_epoch(epoch)` changes its order. Otherwise the
    mixture is a map-style dataset with the order of one epoch, which the Trainer's sampler shuffles further.

    The Trainer shards the mixture itself (for streams, set `accelerator_config={"dispatch_batches": False}`). Without
    the Trainer, call `datasets.distributed.split_dataset_by_node(mixture, rank, world_size)` to get the part of each
    rank. Dataloader workers share the part of a stream.

    Args:
        datasets: datasets from `load_records`.
        sample_ratios: how often to sample from each dataset, relative to the others; equal by default.
        run_length: number of consecutive samples from the same dataset. To draw each batch from a single dataset as the
            reference code does, set it to the batch size times the number of processes, and disable further shuffling
            with `train_sampling_strategy="sequential"`. The last run of a dataset is filled by repeating its records.
        seed: seed of the order; use the same on all ranks.
        epoch: the epoch, which changes the order for the same seed.
        shuffle: whether to shuffle each dataset first.
        buffer_size: size of a stream's shuffle buffer.
        num_shards: number of shards of a map-style dataset that is converted to a stream.
        stopping_strategy: "all_exhausted" draws every record at least once and repeats small datasets;
            "first_exhausted" ends with the first exhausted dataset; "all_exhausted_without_replacement" draws each
            record exactly once.

    Returns:
        A dataset with the columns `FEATURES`.

    Raises:
        ValueError: if there are no datasets, a dataset is not from `load_records`, or the number or sign of the ratios
            is wrong.
    """
    probabilities = check_mixture(datasets, sample_ratios, run_length)
    maps = [dataset for dataset in datasets if isinstance(dataset, Dataset)]
    if len(maps) == len(datasets):
        shuffled = [dataset.shuffle(seed=seed + epoch) if shuffle else dataset for dataset in maps]
        order = map_order(
            [len(dataset) for dataset in maps], probabilities, run_length, seed + epoch, stopping_strategy
        )
        return concatenate_datasets(shuffled).select(order)
    streams = [
        dataset.to_iterable_dataset(min(num_shards, len(dataset))) if isinstance(dataset, Dataset) else dataset
        for dataset in datasets
    ]
    if shuffle:
        streams = [stream.shuffle(seed=seed, buffer_size=buffer_size) for stream in streams]
    if run_length > 1:
        streams = [stream.batch(run_length) for stream in streams]
    mixture = interleave_datasets(streams, probabilities, seed=seed, stopping_strategy=stopping_strategy)
    if run_length > 1:
        mixture = mixture.map(
            unbatch, batched=True, batch_size=1, features=FEATURES, fn_kwargs={"run_length": run_length}
        )
    mixture.set_epoch(epoch)
    return mixture


def check_mixture(
    datasets: Sequence[Dataset | IterableDataset], sample_ratios: Sequence[float] | None, run_length: int
) -> list[float]:
    """Check the arguments of `mix_datasets`, and return the probability of each dataset."""
    ratios = [1.0] * len(datasets) if sample_ratios is None else [float(ratio) for ratio in sample_ratios]
    if not datasets or len(ratios) != len(datasets):
        raise ValueError(f"{len(ratios)} sample_ratios for {len(datasets)} datasets.")
    if not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"sample_ratios must be positive, but are {ratios}.")
    if run_length < 1:
        raise ValueError(f"run_length is {run_length}, but must be 1 or more.")
    for index, dataset in enumerate(datasets):
        missing = set(FEATURES) - set(dataset.column_names or ())
        if missing:
            raise ValueError(f"Dataset {index} has no column {min(missing)!r}; load it with load_records.")
    return [ratio / sum(ratios) for ratio in ratios]


def map_order(
    lengths: list[int], probabilities: list[float], run_length: int, seed: int, stopping_strategy: str
) -> np.ndarray:
    """Return the order of a mixture as positions in the concatenated datasets, interleaving runs of `run_length`."""
    ends = np.cumsum(lengths)
    runs = []
    for length, end in zip(lengths, ends, strict=True):
        starts = np.arange(end - length, end, run_length)
        runs.append(Dataset.from_dict({"start": starts, "length": np.minimum(run_length, end - starts)}))
    drawn = interleave_datasets(runs, probabilities, seed=seed, stopping_strategy=stopping_strategy)
    starts, filled = (np.asarray(drawn[name][:])[:, None] for name in ("start", "length"))
    return (starts + np.arange(run_length) % filled).ravel()


def unbatch(batch: dict[str, list[list[Any]]], run_length: int) -> dict[str, list[Any]]:
    """Return the rows of a batch that holds one run, repeated up to `run_length`."""
    return {name: list(islice(cycle(runs[0]), run_length)) for name, runs in batch.items()}


__all__ = ["FEATURES", "load_records", "mix_datasets"]
