"""What tests need of logging: what commands do to it undone, and deprecations that transformers logs made errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import Handler, LogRecord, getLogger

import transformers
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


STOCK_PIPELINES_DO_SO = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 20)
"""Whether transformers' own pipelines give `generate` a configuration and arguments, which it calls deprecated."""


class Deprecations(Handler):
    """Collects what transformers logs of deprecated names; what it warns of is an error by pytest's settings."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: LogRecord) -> None:
        """Note a record down if it is of that kind."""
        message = record.getMessage()
        if "deprecated" in message and not (
            STOCK_PIPELINES_DO_SO and message.startswith("Passing `generation_config`")
        ):
            self.messages.append(message)


@contextmanager
def no_deprecations() -> Iterator[None]:
    """Fail at the end if transformers logged that something is deprecated.

    (Many of these messages come once in a process, so that the first test that causes one fails alone.)
    """
    handler, logger = Deprecations(), getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not handler.messages, handler.messages
