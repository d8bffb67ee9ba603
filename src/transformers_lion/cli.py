"""The command `lion`. It is thin: its commands call the library.

An error of the user's is one line on stderr and exit code 1 (2 for a wrong command line); `--debug` shows where it
came from.
"""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors import SafetensorError

INTERRUPTED = 128 + signal.SIGINT
TRAIN_PACKAGES = ("accelerate", "datasets", "matplotlib")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def lion() -> None:
    """LION, a multimodal language model with dual-level visual knowledge."""


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="The recipe, a YAML file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes of it: output=runs/2, learning_rate=1e-4, mixture.steps=100."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train the stages of a recipe one after the other. Started again, it goes on where it was stopped."""

    def action() -> None:
        require("lion train", "train", TRAIN_PACKAGES)
        from .training.runner import run
        from .training.settings import load_settings

        settings = load_settings(config, changes or [])
        if not sys.stderr.isatty():
            hide_progress_bars()
        run(settings, say=speaker(), progress_bar=sys.stderr.isatty())

    run_action(action, debug)


def speaker() -> Callable[[str], None]:
    """What prints messages, once where several processes run the command."""
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    return console.print


def hide_progress_bars() -> None:
    """Have transformers and datasets show none."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def run_action(action: Callable[[], None], debug: bool) -> None:
    """Run a command's action; an error of the user's becomes one line and exit code 1.

    Raises:
        typer.Exit: after an error.
    """
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        action()
    except (ValueError, OSError, SafetensorError) as error:
        if debug:
            raise
        errors.print(f"error: {sentence(error)}", style="red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        errors.print("error: interrupted.", style="red")
        raise typer.Exit(INTERRUPTED) from error


def require(command: str, extra: str, packages: Sequence[str]) -> None:
    """Raise `ValueError` naming the extra if a package that a command needs is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{command} needs {', '.join(missing)}, which the extra {extra!r} brings: "
            f'pip install "transformers-lion[{extra}]".'
        )


def sentence(error: Exception) -> str:
    """What an error says, on one line; the system's own errors begin with the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())


def main() -> None:
    """Run the command."""
    app(prog_name="lion")


if __name__ == "__main__":
    main()
