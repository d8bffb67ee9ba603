"""Progress of a job on stderr, by rows. Ray's own bars count blocks, and take failed ones off the total."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 30.0
"""Seconds between two lines if stderr is not a terminal."""


@dataclass
class Counts:
    """Rows of a job.

    Attributes:
        total: Rows of the source.
        before: Rows that an earlier run has done.
        rows, errors: Rows of this run, and those of them with an error.
        started: Time when the first actor was ready, or when the job started.
    """

    total: int
    before: int = 0
    rows: int = 0
    errors: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds

    def __str__(self) -> str:
        done = self.before + self.rows
        parts = [f"{done:,} of {self.total:,} rows"]
        if self.rows:
            parts.append(f"{self.rate:.3g} rows/s")
        parts.append("1 error" if self.errors == 1 else f"{self.errors:,} errors")
        if self.rows and done < self.total:
            parts.append(f"{describe_seconds((self.total - done) / self.rate)} left")
        return " · ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Return a duration as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


@contextmanager
def show_counts(counts: Counts, console: Console | None) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the counts: as a bar in a terminal, as a line from time to time elsewhere.

    Args:
        counts: The counts, which the caller changes.
        console: Console on stderr, or `None` to show nothing.
    """
    if console is None:
        yield lambda: None
    elif console.is_terminal:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
            task = bar.add_task(str(counts), total=counts.total, completed=counts.before)
            yield lambda: bar.update(task, description=str(counts), completed=counts.before + counts.rows)
    else:
        yield _line_printer(counts, console)


def _line_printer(counts: Counts, console: Console) -> Callable[[], None]:
    shown = time.monotonic()

    def show() -> None:
        nonlocal shown
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            console.print(str(counts))

    return show


__all__ = ["Counts", "describe_seconds", "show_counts"]
