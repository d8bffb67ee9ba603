"""Reports of faults in training data, collected from all processes.

A report is kept in a file, to which each process appends a line per fault. It therefore includes the faults that
dataloader workers find, and nothing is lost when a run is interrupted.
"""

import json
import logging
import os
import tempfile
import weakref
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .records import FaultKind, RecordError

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
"""Whether a record that cannot be used raises an error, or is left out and reported."""

NAMES_SHOWN = 20
"""Number of faults listed in a report's text; a saved report lists all of them."""


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used.

    Attributes:
        source: the record's name: its file and index, as in `train.json[17]`, or file and line, as in `train.jsonl:18`.
        kind: the kind of fault.
        reason: a description of the fault.
    """

    source: str
    kind: FaultKind
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True)
class SourceCount:
    """The number of usable records of a source.

    Attributes:
        source: the name of the file or other source.
        num_records, num_kept: number of records before and after leaving out bad ones.
        task_types: number of questions by task type.
    """

    source: str
    num_records: int
    num_kept: int
    task_types: dict[str, int]

    def __str__(self) -> str:
        tasks = ", ".join(f"{count} {task}" for task, count in sorted(self.task_types.items()))
        return f"{self.source}: {self.num_kept} of {self.num_records} records kept ({tasks or 'no'} questions)"


class RecordReport:
    """Collects records that cannot be used.

    `str(report)` is a summary, and `len(report)` is the number of bad records. A record that is found repeatedly, for
    example in every epoch, counts once. Copies in other processes write to the same report.

    Args:
        path: the JSON Lines file of the report, which several ranks may share. Existing entries become part of the
            report. By default, a temporary file that is deleted with the report.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        if path is None:
            descriptor, name = tempfile.mkstemp(prefix="lion-records-", suffix=".jsonl")
            os.close(descriptor)
            self.path = Path(name)
            weakref.finalize(self, _remove_own_file, self.path, os.getpid())
        else:
            self.path = Path(path).absolute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()

    def add(self, entry: Fault | SourceCount) -> None:
        """Append a fault, or the count of a source."""
        line = json.dumps({type(entry).__name__: asdict(entry)}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode())  # one write, so that lines of processes do not interleave
        finally:
            os.close(descriptor)

    def reject(self, source: str, error: RecordError, on_error: OnError) -> Fault:
        """Add a bad record to the report, and raise the error with the record's name if `on_error` is "raise".

        Raises:
            RecordError: if `on_error` is "raise".
        """
        fault = Fault(source, error.kind, str(error))
        self.add(fault)
        if on_error == "raise":
            raise RecordError(f'{fault} (Set on_error="skip" to leave out bad records.)', error.kind) from error
        return fault

    @property
    def faults(self) -> list[Fault]:
        """The distinct faults of all processes, in the order in which they were found."""
        return [Fault(**entry) for entry in self._entries("Fault")]

    @property
    def sources(self) -> list[SourceCount]:
        """The counts of sources that were read completely; streams have none."""
        return [SourceCount(**entry) for entry in self._entries("SourceCount")]

    @property
    def counts(self) -> dict[str, int]:
        """The number of bad records by kind of fault."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())

    def save(self, path: str | os.PathLike) -> None:
        """Write the report as JSON: `counts`, `faults` and `sources`."""
        content = {
            "counts": self.counts,
            "faults": [asdict(fault) for fault in self.faults],
            "sources": [asdict(source) for source in self.sources],
        }
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordReport":
        return self  # datasets deep-copies function arguments, but the report file belongs to the original

    def _entries(self, name: str) -> list[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as file:
            entries = [json.loads(line) for line in dict.fromkeys(file)]
        return [entry[name] for entry in entries if name in entry]

    def __len__(self) -> int:
        return len(self.faults)

    def __bool__(self) -> bool:
        return True  # otherwise a report without faults would be falsy

    def __str__(self) -> str:
        return "\n".join([*map(str, self.sources), summarize(self.faults)])


def summarize(faults: list[Fault]) -> str:
    """Summarize faults by kind, and list the first ones."""
    if not faults:
        return "No bad records."
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).most_common())
    lines = [f"{len(faults)} bad records: {kinds}.", *map(str, faults[:NAMES_SHOWN])]
    if len(faults) > NAMES_SHOWN:
        lines.append(f"... and {len(faults) - NAMES_SHOWN} more.")
    return "\n".join(lines)


def _remove_own_file(path: Path, process: int) -> None:
    """Delete a report's temporary file, but not from a fork of the process that created it."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)


def check_on_error(on_error: str) -> None:
    """Raise `ValueError` if `on_error` has an invalid value."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error is {on_error!r}, but must be "raise" or "skip".')


__all__ = ["Fault", "OnError", "RecordReport", "SourceCount"]
