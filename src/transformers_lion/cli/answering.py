"""The one way through images that `lion caption`, `lion ask`, `lion locate` and `lion tag` take."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..file_utils import naming
from .common import hide_progress_bars, note, report, show_progress, stderr_console
from .drawings import plan_drawings
from .results import Results, open_results

if TYPE_CHECKING:
    from .images import Named

Opened = list[tuple[str, Image.Image]]
"""Images with their names."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        rows: for each result its columns for people, behind the image's name, and its record.
        draw: makes the image with the answers on it.
    """

    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]]
    draw: Callable[[], Image.Image]


class Job(Protocol):
    """What is done with images."""

    def load(self) -> None:
        """Load the model, once it is clear that there is something to do."""

    def run(self, pictures: Opened) -> list[Outcome]:
        """What becomes of some images."""


def run_job(
    job: Job, arguments: Sequence[str], batch_size: int, as_json: bool, output: Path | None, draw: Path | None
) -> bool:
    """Do a job on all images that arguments name, a batch at a time; what is done is written at once.

    Returns:
        Whether all images could be found and read.

    Raises:
        OSError, ValueError: if nothing can go on.
    """
    from .images import find_images, open_images

    found = find_images(arguments)
    failures = list(found.errors)
    for error in failures:
        report(error)
    if found.note:
        note(found.note)
    if not found.names:
        return False
    drawings = plan_drawings(draw, found.names, found.is_many)

    def fail(error: Exception) -> None:
        failures.append(error)
        report(error)

    with quiet(), open_results(output, as_json) as results, progress(len(found.names), output) as advance:
        job.load()
        for pictures in open_images(found.names, batch_size, fail):
            for (name, _), outcome in zip(pictures, run_batch(job, pictures), strict=True):
                write(results, found, name, outcome)
                if name in drawings:
                    with naming(drawings[name]):
                        outcome.draw().save(drawings[name])
            results.flush()
            advance(len(pictures))
    return not failures


def run_batch(job: Job, pictures: Opened) -> list[Outcome]:
    """A job on some images.

    Raises:
        ValueError: if they need more memory than there is.
    """
    import torch

    try:
        return job.run(pictures)
    except torch.OutOfMemoryError as error:
        raise ValueError("The GPU has too little memory: try a smaller --batch-size, or --dtype bfloat16.") from error


def write(results: Results, found: "Named", name: str, outcome: Outcome) -> None:
    """Write an image's results."""
    for columns, record in outcome.rows:
        results.write([name, *columns] if found.is_many else columns, {"image": name, **record})


@contextmanager
def progress(total: int, output: Path | None) -> Iterator[Any]:
    """A progress bar on stderr, where somebody sees it and it does not run into results; what moves it on."""
    if not show_progress() or (output is None and sys.stdout.isatty()):
        yield lambda count: None  # a bar that is switched off leaves an empty line behind in rich before 14
        return
    from rich.progress import Progress

    bar = Progress(console=stderr_console(), transient=True, redirect_stdout=False)
    with bar:
        task = bar.add_task("Pictures", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of libraries: what is wrong with an image or a model is said in this command's own words."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    hide_progress_bars()
    logging.getLogger("transformers_lion").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
