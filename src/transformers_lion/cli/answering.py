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
from .results import Results, open_results

if TYPE_CHECKING:
    from ..inference import PreparedImage
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


def run_job(
    job: Job, arguments: Sequence[str], batch_size: int, as_json: bool, output: Path | None, draw: Path | None
) -> bool:
    """Run a job on all images that the arguments name, and write the results of each batch immediately.

    Returns:
        Whether all images could be found and read.

    Raises:
        OSError, ValueError: If the command cannot continue.
    """
    from .image_sources import find_images, open_images

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
        chunks = open_images(found.names, batch_size, fail)
        with closing(prefetch(partial(job.prepare, keep_images=bool(drawings)), chunks, ahead=1)) as batches:
            for batch in batches:
                for (name, _), outcome in zip(batch, run_batch(job, batch), strict=True):
                    write(results, found, name, outcome)
                    if name in drawings:
                        with naming(drawings[name]):
                            outcome.draw().save(drawings[name])
                results.flush()
                advance(len(batch))
    return not failures


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
