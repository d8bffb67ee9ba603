"""What all commands do alike: errors of the user's in one line, exit codes, messages, extras."""

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

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C stopped, as shells count it."""
PIPE_CLOSED = 128 + 13
"""Exit code where nobody reads the output any more, as of what SIGPIPE ends; Windows has no such signal."""

ENDING = ("SIGTERM", "SIGHUP")
"""Signals that end a command. Windows has no SIGHUP."""


class Terminated(BaseException):
    """A signal that ends the command, raised where it arrives, so that what is unfinished is put in order."""


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_action(action: Callable[[], bool | None], debug: bool) -> None:
    """Run a command's action; an error of the user's becomes one line and exit code 1.

    Args:
        action: returns `False` if something failed that it has reported itself.
        debug: let errors through.

    Raises:
        typer.Exit: unless all went well.
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
    """Have signals that end the command raise `Terminated` while the block runs, unless they are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number in numbers if before[number] == signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def terminate(number: int, frame: FrameType | None) -> None:
    """Raise `Terminated` for a signal."""
    raise Terminated(number)


def drop_stdout() -> None:
    """Give up what stdout could not take; Python flushes it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def report(error: Exception | str) -> None:
    """Write an error in one line to stderr."""
    text = error if isinstance(error, str) else sentence(error)
    stderr_console().print(f"error: {printable(text)}", style="red")


def note(text: str) -> None:
    """Write something that is no error in one line to stderr."""
    stderr_console().print(f"note: {printable(text)}", style="yellow")


def stderr_console() -> Console:
    """A console that prints texts as they are."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, emoji=False)


def speaker() -> Callable[[str], None]:
    """What prints messages, once where several processes run the command."""
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    return console.print


def hide_progress_bars() -> None:
    """Have transformers show none; what only `lion train` needs, such as datasets, is not imported here."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def require(command: str, extra: str, packages: Sequence[str]) -> None:
    """Raise `ValueError` naming the extra if a package that a command needs is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{command} needs {', '.join(missing)}, which the extra {extra!r} brings: "
            f'pip install "transformers-lion[{extra}]".'
        )


def show_progress() -> bool:
    """Whether somebody sees a progress bar: stdout is for results, and stderr may be a file."""
    return sys.stderr.isatty()


def sentence(error: Exception) -> str:
    """What an error says, on one line; the system's own errors begin with the file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename
        text = f"{name}: {error.strerror}." if name else f"{error.strerror}."
    return " ".join(text.split())


def printable(text: str) -> str:
    """A text on one line, with escapes for what is no visible character."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )
