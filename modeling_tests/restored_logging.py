"""What commands do to logging, undone: they silence transformers and some of LION, and other tests look at warnings."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger

from transformers.utils import logging


@contextmanager
def restored_logging() -> Iterator[None]:
    """Levels and progress bars are afterwards as they were."""
    own = getLogger("transformers_lion")
    levels = logging.get_verbosity(), own.level
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        own.setLevel(levels[1])
        logging.enable_progress_bar()
