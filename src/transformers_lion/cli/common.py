"""Shared by all commands: one-line error reports, exit codes, messages, and checks for extras."""

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from safetensors import SafetensorError

from ..errors import SelfCheckError
from ..file_utils import printable

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command stopped by Ctrl-C, following the convention of shells."""
PIPE_CLOSED = 128 + 13
"""Exit code if the reader of stdout is gone, as after SIGPIPE, a signal that Windows does not have."""

ENDING = ("SIGTERM", "SIGHUP")
"""Signals that terminate a command. Windows has no SIGHUP."""


class Terminated(BaseException):
    """Raised when a signal terminates the command, so that unfinished work is cleaned up."""


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_action(action: Callable[[], bool | None], debug: bool) -> None:
    """Run a command's action and turn user errors into a one-line report and exit code 1.

    Args:
        action: the action; it returns `False` after a failure that it has reported itself.
        debug: whether to let errors propagate.

    Raises:
        typer.Exit: if the action fails.
    """
    try:
        if action() is False:
            raise typer.Exit(1)
    except BrokenPipeError as error:
        drop_stdout()
        raise typer.Exit(PIPE_CLOSED) from error
    except (ValueError, OSError, SafetensorError, SelfCheckError) as error:
        if debug:
            raise
        report(error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        report("interrupted.")
        raise typer.Exit(INTERRUPTED) from error
    except Terminated as error:
        report("terminated.")
        raise typer.Exit(128 + error.args[0]) from error


@contextmanager
def raise_termination() -> Iterator[None]:
    """Make terminating signals raise `Terminated` while the block runs, unless they are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number in numbers if before[number] == signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def drop_stdout() -> None:
    """Discard output that could not be written; otherwise Python would flush it again at exit and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def report(error: Exception | str) -> None:
    """Print an error on one line of stderr."""
    text = error if isinstance(error, str) else sentence(error)
    stderr_console().print(f"error: {printable(text)}", style="red")


def note(text: str) -> None:
    """Print a note on one line of stderr."""
    stderr_console().print(f"note: {printable(text)}", style="yellow")


def stderr_console() -> Console:
    """Return a console on stderr that prints text verbatim."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, emoji=False)


def speaker() -> Callable[[str], None]:
    """Return a function that prints messages, only in the first of several processes."""
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    return console.print


def hide_progress_bars() -> None:
    """Disable transformers' progress bars. Only `lion train` imports datasets, and disables its bars there."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def require(command: str, extra: str, packages: Sequence[str]) -> None:
    """Raise `ValueError` naming the extra if a package required by a command is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{command} needs {', '.join(missing)}, which the extra {extra!r} installs: "
            f'pip install "transformers-lion[{extra}]".'
        )


def show_progress() -> bool:
    """Whether to show a progress bar: it goes to stderr, which may be redirected to a file."""
    return sys.stderr.isatty()


def sentence(error: Exception) -> str:
    """Return an error's message on one line; operating system errors start with the file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename
        text = f"{name}: {error.strerror}." if name else f"{error.strerror}."
    return " ".join(text.split())
