"""Streams of records that training resumes within exactly, for data that is too large or too remote to be indexed.

A stream has no end: its sources start again after their last record, in another order. Several readers share it, one
for each dataloader worker of each process. The parts of a source (files, or row groups of Parquet files) are dealt out
to the readers in an order that is drawn for each pass; if there are fewer parts than readers, the readers read all
parts and take turns with the records. In each pass, each record is therefore read once.

A reader shuffles its records in blocks: it reads a block, emits it in an order that is drawn, and goes on with the next
one. All that is drawn depends only on the seed, the source, the pass, the reader and the block, and blocks are counted
before records are checked. A few integers thus define a reader's position, whatever becomes of bad records, and
resuming reads no more than the rest of a block and skips what is before it without parsing or opening it.

Shape of a position: [number of draws of a source, and for each source: pass, block, index in the block].
"""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset, get_worker_info

from ..configuration_lion import TASK_TYPES
from .collator import LionDataCollator
from .record_checks import RecordChecker
from .record_files import Item, Part, list_parts, read_part
from .report import Fault

logger = logging.getLogger(__name__)

NUM_DRAWS = 1000
"""Number of draws of a source that are made at once."""

MAX_EMPTY_PASSES = 10
"""Number of passes without a usable record after which a reader gives up."""

STATE = "data_state_{}.json"
"""In a checkpoint: the positions of the readers of a process."""

POSITION = "_stream_position"
"""Key of a row, and of a batch, with the reader, its position after the row, and the pass."""


class StreamSource(Protocol):
    """A source of a stream.

    Attributes:
        name: the name of the source in messages.
        parts: what readers share.
        buffer_size: number of records that are shuffled together.
    """

    name: str
    parts: Sequence[Any]
    buffer_size: int

    def read(self, part: Any, start: int, step: int, skip: int) -> Iterator[Item]:
        """Yield every `step`-th record of a part from `start` on, and `None` for the first `skip` of them."""

    def check(self, name: str, raw: Any) -> dict[str, Any] | None:
        """Return the row of a record, or `None` if it is left out."""


@dataclass
class FileSource:
    """Files that are read while training runs.

    Attributes:
        name: the name of the source in messages.
        files: paths from `find_files`, or URLs.
        checker: how to check the records; bad ones are reported when they are read.
        task_types: the task types that are trained; records with others are left out.
        buffer_size: number of records that are shuffled together.
    """

    name: str
    files: Sequence[Path | str]
    checker: RecordChecker
    task_types: Sequence[str] = TASK_TYPES
    buffer_size: int = 1000
    parts: Sequence[Part] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = [part for file in self.files for part in list_parts(file)]
        if not self.parts:
            raise ValueError(f"{self.name} has no records.")

    def read(self, part: Part, start: int, step: int, skip: int) -> Iterator[Item]:
        """Yield records of a part; see `read_part`."""
        return read_part(part, start, step, skip)

    def check(self, name: str, raw: Any) -> dict[str, Any] | None:
        """Return the row of a record; `None` if it is bad, which is reported, or has another task type."""
        row = self.checker(name, raw)
        if isinstance(row, Fault):
            logger.warning("Left out: %s", row)
            return None
        return row if set(row["task_types"] or [row["task_type"]]) <= set(self.task_types) else None


@dataclass
class TableSource:
    """A dataset from `load_records` as part of a stream.

    Attributes:
        name: the name of the source in messages.
        rows: the dataset.
        buffer_size: number of records that are shuffled together.
    """

    name: str
    rows: Dataset
    buffer_size: int = 1000
    parts: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = range(0, len(self.rows), self.buffer_size)

    def read(self, part: int, start: int, step: int, skip: int) -> Iterator[Item]:
        """Yield rows from row `part` on."""
        end = min(part + self.buffer_size, len(self.rows))
        for index, row in enumerate(range(part + start, end, step)):
            yield None if index < skip else ("", self.rows[row])

    def check(self, name: str, raw: Any) -> dict[str, Any] | None:
        """Return the row, which is checked already."""
        return raw


class RecordStream(IterableDataset):
    """An endless stream of records from one or several sources; see the module docstring.

    `make_trainer` accepts it as `train_dataset`, and `train` resumes within it. It needs `max_steps`, and the same
    number of processes and dataloader workers when it resumes. Without the Trainer, call `set_process`, collate with
    `StreamCollator`, pass each batch to `note` before it is used, and save `state_dict()`.

    Args:
        sources: the sources.
        sample_ratios: how often to draw from each source, relative to the others; equal by default.
        run_length: number of consecutive records from the same source; set it to the batch size of a process to draw
            each batch from a single source.
        seed: the seed of the order.

    Raises:
        ValueError: if there are no sources, or the number or sign of the ratios is wrong.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        sample_ratios: Sequence[float] | None = None,
        *,
        run_length: int = 1,
        seed: int = 0,
    ):
        ratios = [1.0] * len(sources) if sample_ratios is None else [float(ratio) for ratio in sample_ratios]
        if not sources or len(ratios) != len(sources):
            raise ValueError(f"{len(ratios)} sample_ratios for {len(sources)} sources.")
        if not all(0 < ratio < float("inf") for ratio in ratios):
            raise ValueError(f"sample_ratios must be positive, but are {ratios}.")
        if run_length < 1:
            raise ValueError(f"run_length is {run_length}, but must be 1 or more.")
        self.sources = list(sources)
        self.probabilities = [ratio / sum(ratios) for ratio in ratios]
        self.run_length, self.seed = run_length, seed
        self.set_process(0, 1)

    def set_process(self, rank: int, world_size: int, num_workers: int = 0) -> None:
        """Set the process that reads, and go back to the beginning.

        Args:
            rank: the rank of this process.
            world_size: number of processes.
            num_workers: number of dataloader workers of each process.
        """
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.positions: dict[int, list[int]] = {}
        self.next_worker = 0

    # --- state --------------------------------------------------------------------------------------------------------

    def note(self, batch: dict[str, Any]) -> None:
        """Take the position out of a batch from `StreamCollator`; it becomes part of the state."""
        worker, *position = batch.pop(POSITION).tolist()
        self.positions[worker] = position
        self.next_worker = (worker + 1) % max(self.num_workers, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this process, after the batches that were passed to `note`."""
        return {
            "world_size": self.world_size,
            "num_workers": self.num_workers,
            "seed": self.seed,
            "sources": [[source.name, len(source.parts), source.buffer_size] for source in self.sources],
            "next_worker": self.next_worker,
            "positions": {str(worker): position for worker, position in self.positions.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            ValueError: if the position belongs to another stream, or to other numbers of processes or workers.
        """
        for name, value in self.state_dict().items():
            if name not in ("next_worker", "positions") and state[name] != value:
                raise ValueError(
                    f"The checkpoint was saved with {name} {state[name]!r} of the data, but now it is {value!r}. A "
                    "stream can only be resumed with the same data, processes and dataloader workers."
                )
        self.next_worker = state["next_worker"]
        self.positions = {int(worker): list(position) for worker, position in state["positions"].items()}

    def save(self, folder: Path) -> None:
        """Save the position of this process to a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)  # the main process may not have created it yet
        (folder / STATE.format(self.rank)).write_text(json.dumps(self.state_dict()), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go to the position of this process in a checkpoint.

        Raises:
            FileNotFoundError: if the checkpoint has none.
            ValueError: see `load_state_dict`.
        """
        self.load_state_dict(json.loads((folder / STATE.format(self.rank)).read_text(encoding="utf-8")))

    # --- reading ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield rows with their `POSITION`, from this process's position on."""
        info = get_worker_info()
        physical, count = (0, 1) if info is None else (info.id, info.num_workers)
        if count != max(self.num_workers, 1):
            raise ValueError(f"The stream expects {self.num_workers} dataloader workers, but there are {count}.")
        worker = (self.next_worker + physical) % count  # the dataloader begins with its first worker
        reader, num_readers = self.rank * count + worker, self.world_size * count
        num_draws, *places = self.positions.get(worker, [0] * (1 + 3 * len(self.sources)))
        cursors = [
            _Cursor(source, self.seed, index, reader, num_readers, places[3 * index : 3 * index + 3])
            for index, source in enumerate(self.sources)
        ]
        for index in self._draws(reader, num_draws):
            row = next(cursors[index])
            num_draws += 1
            position = [worker, num_draws, *(number for cursor in cursors for number in cursor.place)]
            yield {**row, POSITION: position}

    def _draws(self, reader: int, first: int) -> Iterator[int]:
        """Yield the indices of the sources to draw from, from draw `first` on."""
        block_size = NUM_DRAWS * self.run_length
        block, skip = divmod(first, block_size)
        while True:
            generator = np.random.default_rng([self.seed, reader, block])
            drawn = generator.choice(len(self.sources), size=NUM_DRAWS, p=self.probabilities)
            yield from np.repeat(drawn, self.run_length)[skip:].tolist()
            block, skip = block + 1, 0


class _Cursor:
    """Reads a source for one reader, from a place on.

    Attributes:
        place: the place after the last row: pass, block, and index in the block.
    """

    def __init__(
        self, source: StreamSource, seed: int, index: int, reader: int, num_readers: int, place: Sequence[int]
    ):
        self.source, self.seed, self.index = source, seed, index
        self.reader, self.num_readers = reader, num_readers
        self.place = list(place)
        self._rows = self._read()

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def _read(self) -> Iterator[dict[str, Any]]:
        epoch, first_block, first = self.place
        num_read, num_empty = 0, 0
        while num_empty <= MAX_EMPTY_PASSES:
            num_empty += 1
            for block, records in enumerate(self._blocks(epoch, first_block), first_block):
                order = np.random.default_rng([self.seed, self.index, epoch, self.reader, block])
                for place, record in list(enumerate(order.permutation(len(records)).tolist(), 1))[first:]:
                    num_read += 1
                    row = self.source.check(*records[record])
                    if row is not None:
                        num_empty = 0
                        self.place = [epoch, block, place]
                        yield row
                first = 0
            epoch, first_block = epoch + 1, 0
        raise ValueError(
            f"Reader {self.reader} of {self.num_readers} found no record that can be used in {num_empty} passes over "
            f"{self.source.name}, among {num_read} records. A source needs at least as many records as readers: one "
            "for each dataloader worker of each process."
        )

    def _blocks(self, epoch: int, first: int) -> Iterator[list[tuple[str, Any]]]:
        """Yield the records of a pass in blocks, from block `first` on."""
        records, skip, size = [], first * self.source.buffer_size, self.source.buffer_size
        for part, start, step in self._share(epoch):
            for item in self.source.read(part, start, step, skip):
                if item is None:
                    skip -= 1
                    continue
                records.append(item)
                if len(records) == size:
                    yield records
                    records = []
        if records:
            yield records

    def _share(self, epoch: int) -> list[tuple[Any, int, int]]:
        """Return the parts that this reader reads in a pass, with the first record and the step between records."""
        order = np.random.default_rng([self.seed, self.index, epoch]).permutation(len(self.source.parts)).tolist()
        if len(order) >= self.num_readers:
            return [(self.source.parts[part], 0, 1) for part in order[self.reader :: self.num_readers]]
        start = (self.reader + epoch) % self.num_readers
        return [(self.source.parts[part], start, self.num_readers) for part in order]


class StreamCollator:
    """Collates rows of a `RecordStream` with a `LionDataCollator`, and adds their position to the batch.

    Args:
        collator: the collator. Augmentations depend on the pass of the first row, not on the collator's epoch.
    """

    def __init__(self, collator: LionDataCollator | Callable[[list[Any]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows into a batch; see `LionDataCollator`."""
        collator = self.collator
        if isinstance(collator, LionDataCollator):
            collator = copy.copy(collator)
            collator._epoch = torch.tensor(max(rows[0][POSITION][2::3]))
        records = [{name: value for name, value in row.items() if name != POSITION} for row in rows]
        return {**collator(records), POSITION: torch.tensor(rows[-1][POSITION])}


__all__ = ["FileSource", "RecordStream", "StreamCollator", "TableSource"]
