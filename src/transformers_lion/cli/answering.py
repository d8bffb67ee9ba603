"""The loop over images that `lion caption`, `lion ask`, `lion locate` and `lion tag` share."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..file_utils import naming
from ..prefetching import prefetch
from .common import hide_progress_bars, note, report, show_progress, stderr_console
from .drawings import plan_drawings
from .options import Columns, Place
from .results import Results, is_stream, open_results
from .resuming import check_settings, read_done, settings_file, write_settings

if TYPE_CHECKING:
    from ..inference import PreparedImage
    from ..jobs.source_row import SourceRow
    from .image_sources import Named

Opened = list[tuple[str, Image.Image]]
"""Names and images."""
Prepared = list[tuple[str, "Image.Image | PreparedImage"]]
"""Names and images, which may be preprocessed."""


@dataclass(frozen=True)
class Outcome:
    """The results for one image.

    Attributes:
        rows: For each result, the text columns that follow the image's name, and the JSON record.
        draw: Returns the image with the answers drawn on it.
    """

    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]]
    draw: Callable[[], Image.Image]


class Job(Protocol):
    """A model and the task to run on images."""

    @property
    def num_results(self) -> int:
        """Number of results per image."""

    def identify(self) -> dict[str, Any]:
        """Return everything that the results depend on, ready for JSON."""

    def load(self) -> None:
        """Load the model; called only if there are images."""

    def prepare(self, opened: Opened, keep_images: bool) -> Prepared:
        """Preprocess a batch of images. Called in a background thread while earlier images are processed.

        Args:
            opened: names and images.
            keep_images: whether the images will be drawn on.
        """
        return list(opened)

    def run(self, prepared: Prepared) -> list[Outcome]:
        """Process a batch of images."""


def run_job(job: Job, arguments: Sequence[str], columns: Columns, batch_size: int, place: Place) -> bool:
    """Run a job on all images that the arguments name, and write the results of each batch immediately.

    Args:
        job: the job.
        arguments: names of images and their sources.
        columns: how to read manifests and tables.
        batch_size: number of images per batch.
        place: where to write the results.

    Returns:
        Whether all images could be found and read.

    Raises:
        OSError, ValueError: If the command cannot continue.
    """
    from .image_sources import find_images, open_images

    found = find_images(arguments, columns)
    failures = list(found.errors)
    for error in failures:
        report(error)
    if found.note:
        note(found.note)
    if not found.rows:
        return False
    drawings = plan_drawings(place.draw, found.names, [row.path for row in found.rows], found.is_many)

    def fail(error: Exception) -> None:
        failures.append(error)
        report(error)

    with quiet(), settings_beside(place.output), open_results(place.output, place.as_json, place.resume) as results:
        rows = found.rows if place.output is None else leave_out_done(found.rows, job, place.output)
        if not rows:
            return not failures
        with progress(len(rows), place.output) as advance:
            job.load()
            chunks = open_images(rows, batch_size, fail)
            with closing(prefetch(partial(job.prepare, keep_images=bool(drawings)), chunks, ahead=1)) as batches:
                for batch in batches:
                    answer_batch(job, batch, results, found, drawings)
                    advance(len(batch))
    return not failures


def answer_batch(job: Job, batch: Prepared, results: Results, found: "Named", drawings: Mapping[str, Path]) -> None:
    """Run a job on a batch of images, write the results, and draw them on the images in `drawings`."""
    for (name, _), outcome in zip(batch, run_batch(job, batch), strict=True):
        write(results, found, name, outcome)
        if name in drawings:
            with naming(drawings[name]):
                outcome.draw().save(drawings[name])
    results.flush()


@contextmanager
def settings_beside(output: Path | None) -> Iterator[None]:
    """Remove the settings of results at the end of the block if there are no results."""
    try:
        yield
    finally:
        if output is not None and not output.exists():
            settings_file(output).unlink(missing_ok=True)


def leave_out_done(rows: "list[SourceRow]", job: Job, output: Path) -> "list[SourceRow]":
    """Return the rows without results in an output file, which is locked. The settings are compared or written.

    Raises:
        ValueError: If the results were made with other settings, or are damaged.
    """
    if is_stream(output):
        return rows
    if not output.stat().st_size:
        write_settings(output, job.identify())
        return rows
    check_settings(output, job.identify())
    done = read_done(output, job.num_results)
    left = []
    for row in rows:
        if done[row.key]:
            done[row.key] -= 1
        else:
            left.append(row)
    note(f"{output} has the results of {len(rows) - len(left)} of {len(rows)} images, which are skipped.")
    return left


def run_batch(job: Job, batch: Prepared) -> list[Outcome]:
    """Run a job on a batch of images.

    Raises:
        ValueError: If the GPU runs out of memory.
    """
    import torch

    try:
        return job.run(batch)
    except torch.OutOfMemoryError as error:
        raise ValueError("The GPU ran out of memory: try a smaller --batch-size, or --dtype bfloat16.") from error


def write(results: Results, found: "Named", name: str, outcome: Outcome) -> None:
    """Write the results for an image."""
    for columns, record in outcome.rows:
        results.write([name, *columns] if found.is_many else columns, {"image": name, **record})


@contextmanager
def progress(total: int, output: Path | None) -> Iterator[Any]:
    """Yield a function that advances a progress bar on stderr.

    It does nothing if stderr is not a terminal, or if the results are printed to a terminal.
    """
    if not show_progress() or (output is None and sys.stdout.isatty()):
        yield lambda count: None  # before rich 14, a disabled bar leaves an empty line behind
        return
    from rich.progress import Progress

    bar = Progress(console=stderr_console(), transient=True, redirect_stdout=False)
    with bar:
        task = bar.add_task("Images", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings from libraries. The command reports problems with images and models itself."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    hide_progress_bars()
    logging.getLogger("transformers_lion").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
