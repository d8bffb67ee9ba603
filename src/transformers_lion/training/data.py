"""Loads files and datasets of records into datasets with uniform columns, and mixes them.

Source: LION's reference code, which samples datasets in proportion to a `sample_ratio` and draws each batch from a
single dataset. Reading order: `load_records`, `mix_datasets`.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets

from ..configuration_lion import TASK_TYPES
from .checked_images import CheckedImages
from .record_checks import FEATURES, CheckImages, RecordChecker
from .record_files import (
    Part,
    as_files,
    expand_braces,
    find_files,
    folder_of_files,
    form_of,
    is_url,
    list_parts,
    read_part,
)
from .record_tables import load_files, load_list, load_table, select_rows, without_decoding
from .records import name_record
from .report import Fault, OnError, RecordReport, check_on_error
from .streams import FileSource

logger = logging.getLogger(__name__)

CACHE = "lion-records"
"""The folder for caches of records, within the cache folder of `datasets`."""

STRATEGIES = ("all_exhausted", "first_exhausted", "all_exhausted_without_replacement")
"""When a mixture ends; see `mix_datasets`."""


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
    cache_folder: str | os.PathLike | None = None,
) -> Dataset | IterableDataset:
    """Read records, check each of them, and return them as a dataset with uniform columns.

    The records of files are written once to a cache on disk, as Arrow data that is memory-mapped: memory does not grow
    with the number of records. As long as the files do not change, later calls only check the images again.

    Args:
        source: a JSON file (a list of objects), a JSON Lines or Parquet file, a WebDataset shard (.tar), a folder or a
            pattern of such files, the folder of a dataset saved with `save_to_disk`, a list of these, a list of
            objects, or a `datasets.Dataset` or `IterableDataset` with the fields of a record as columns; see
            `parse_record`.
        image_folder: folder that relative image paths are resolved against; by default the folder of the file, or the
            current folder if the records do not come from a file.
        streaming: whether to read files during training instead of now. See `RecordStream` for streams that training
            can resume within.
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
        cache_folder: folder for the caches of files; by default `lion-records` in the cache folder of `datasets`.

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
        image_folder = folder_of_files(files)
    cache = CheckedImages(checked_images, timeout)
    checker = RecordChecker(image_folder, categories, check_images, on_error, report, cache)
    if isinstance(source, IterableDataset):
        return stream_table(source, checker)
    if files and streaming:
        return stream_files(files, checker, num_shards)
    if isinstance(source, Dataset):
        dataset = load_table("dataset", source, checker)
    elif files:
        folder = Path(datasets.config.HF_DATASETS_CACHE) / CACHE if cache_folder is None else Path(cache_folder)
        groups = [list(group) for _, group in groupby(files, lambda file: file if form_of(file) == "saved" else None)]
        dataset = concatenate_datasets([load_files(group, checker, folder) for group in groups])
    else:
        dataset = load_list("records", source, checker)
    return dataset.to_iterable_dataset(min(num_shards, len(dataset))) if streaming else dataset


def stream_files(files: Sequence[Path], checker: RecordChecker, num_shards: int) -> IterableDataset:
    """Return a stream of the records of files.

    Raises:
        ValueError: if a file has no records.
    """
    shards = []
    for file in files:
        parts = list_parts(file)
        if not any(True for part in parts for _ in read_part(part)):
            raise ValueError(f"{file} has no records.")
        step = math.ceil(num_shards / len(parts))
        shards += [(part, start, step) for part in parts for start in range(step)]
    return IterableDataset.from_generator(
        generate_rows, features=FEATURES, gen_kwargs={"shards": shards, "checker": checker}
    )


def stream_records(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    image_folder: str | os.PathLike | None = None,
    *,
    check_images: CheckImages | None = "exists",
    categories: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
    report: RecordReport | None = None,
    timeout: float | None = 30.0,
    task_types: Sequence[str] = TASK_TYPES,
    buffer_size: int = 1000,
) -> FileSource:
    """Return files of records as a source of a `RecordStream`, which reads them during training.

    Args:
        source: files, patterns and folders, as for `load_records`, or URLs that fsspec can open.
        image_folder, check_images, categories, on_error, report, timeout: see `load_records`. Bad records are found
            when they are read.
        task_types: the task types to train; records with others are left out.
        buffer_size: number of records that are shuffled together, and that each reader holds.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are no records, as far as that can be seen, or an argument has an invalid value.
    """
    check_on_error(on_error)
    check_options(check_images, categories)
    if buffer_size < 1:
        raise ValueError(f"buffer_size is {buffer_size}, but must be 1 or more.")
    names = [os.fspath(name) for name in ([source] if isinstance(source, str | os.PathLike) else source)]
    files: list[Path | str] = []
    for name in names:
        files += expand_braces(name) if is_url(name) else find_files(name)
    if image_folder is None and files and not any(map(is_url, files)):
        image_folder = folder_of_files([Path(file) for file in files])
    report = RecordReport() if report is None else report
    images = CheckedImages(timeout=timeout, remember=False)
    checker = RecordChecker(image_folder, categories, check_images, on_error, report, images)
    return FileSource(", ".join(names), files, checker, task_types, buffer_size)


def check_options(check_images: str | None, categories: Mapping[str, str] | None) -> None:
    """Raise `ValueError` if an option of `load_records` has an invalid value."""
    if check_images not in (None, "exists", "decode"):
        raise ValueError(f'check_images is {check_images!r}, but must be "exists", "decode" or None.')
    for category, task in (categories or {}).items():
        if task not in TASK_TYPES:
            raise ValueError(f"categories maps {category!r} to {task!r}, not to one of {', '.join(TASK_TYPES)}.")


def generate_rows(shards: list[tuple[Part, int, int]], checker: RecordChecker) -> Iterator[dict[str, Any]]:
    """Yield the rows of good records in shards of files; the generator behind a stream."""
    for shard in shards:
        for item in read_part(*shard):
            assert item is not None
            row = checker(*item)
            if isinstance(row, Fault):
                logger.warning("Left out: %s", row)
            else:
                yield row


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
        lengths = [len(dataset) for dataset in maps]
        order = map_order(lengths, probabilities, run_length, seed + epoch, stopping_strategy)
        if shuffle:
            order = np.concatenate(shuffled_rows(lengths, seed + epoch))[order]
        return select_rows(concatenate_datasets(maps), order)
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


def shuffled_rows(lengths: Sequence[int], seed: int) -> list[np.ndarray]:
    """Return the positions of the rows of each dataset among those of all, shuffled within the dataset."""
    starts = np.cumsum([0, *lengths[:-1]])
    rows = [np.random.default_rng(seed).permutation(length) for length in lengths]
    return [start + row for start, row in zip(starts, rows, strict=True)]


def map_order(
    lengths: list[int], probabilities: list[float], run_length: int, seed: int, stopping_strategy: str
) -> np.ndarray:
    """Return the order of a mixture as positions in the concatenated datasets, interleaving runs of `run_length`."""
    ends = np.cumsum(lengths)
    num_runs = [math.ceil(length / run_length) for length in lengths]
    drawn = draw_sources(num_runs, probabilities, seed, stopping_strategy)
    runs = np.empty(len(drawn), dtype=np.int64)
    for index, count in enumerate(num_runs):
        chosen = drawn == index
        runs[chosen] = np.arange(chosen.sum()) % count
    starts = (ends - lengths)[drawn] + runs * run_length
    if run_length == 1:
        return starts
    filled = np.minimum(run_length, ends[drawn] - starts)
    return (starts[:, None] + np.arange(run_length) % filled[:, None]).ravel()


def draw_sources(lengths: list[int], probabilities: list[float], seed: int, stopping_strategy: str) -> np.ndarray:
    """Draw sources until they are exhausted, in the order of `datasets.interleave_datasets`.

    Args:
        lengths: how often each source can be drawn before it is exhausted.
        probabilities: the probability of each source.
        seed: the seed of the order.
        stopping_strategy: see `mix_datasets`.

    Returns:
        The index of the source of each draw.

    Raises:
        ValueError: if the strategy is unknown.
    """
    if stopping_strategy not in STRATEGIES:
        raise ValueError(f"stopping_strategy is {stopping_strategy!r}, but must be one of {', '.join(STRATEGIES)}.")
    if len(lengths) == 1:
        return np.zeros(lengths[0], dtype=np.uint16)
    generator, counts, blocks = np.random.default_rng(seed), np.zeros(len(lengths), dtype=np.int64), []
    is_done = np.any if stopping_strategy == "first_exhausted" else np.all
    while not is_done(counts >= lengths):
        block = generator.choice(len(lengths), size=1000, p=probabilities)
        counts += np.bincount(block, minlength=len(lengths))
        blocks.append(block.astype(np.uint16))
    drawn = np.concatenate(blocks)
    places = [np.flatnonzero(drawn == index) for index in range(len(lengths))]
    lasts = [place[length - 1] for place, length in zip(places, lengths, strict=True) if len(place) >= length]
    if stopping_strategy == "all_exhausted_without_replacement":
        return drawn[np.sort(np.concatenate([place[:length] for place, length in zip(places, lengths, strict=True)]))]
    return drawn[: (min(lasts) if stopping_strategy == "first_exhausted" else max(lasts)) + 1]


def keep_task_types(dataset: Dataset, task_types: Sequence[str]) -> Dataset:
    """Select the records whose questions all have one of these task types."""
    if set(task_types) >= set(TASK_TYPES):
        return dataset
    kept = []
    for table in dataset.select_columns(["task_type", "task_types"]).with_format("arrow").iter(1 << 16):
        chosen = pc.is_in(table["task_type"], pa.array(task_types)).to_numpy()
        lists = table["task_types"]
        for row in np.flatnonzero(pc.is_valid(lists).to_numpy()):
            chosen[row] = set(lists[int(row)].as_py()) <= set(task_types)
        kept.append(chosen)
    return select_rows(dataset, np.flatnonzero(np.concatenate(kept)))


def unbatch(batch: dict[str, list[list[Any]]], run_length: int) -> dict[str, list[Any]]:
    """Return the rows of a batch that holds one run, repeated up to `run_length`."""
    return {name: list(islice(cycle(runs[0]), run_length)) for name, runs in batch.items()}


__all__ = ["FEATURES", "keep_task_types", "load_records", "mix_datasets", "stream_records"]
