"""The `lion` command. Each subcommand has its own module and calls the library.

Exit codes: 0 on success; 1 on an error, reported in one line on stderr (`--debug` shows the traceback); 2 for an
invalid command line; 130 after Ctrl-C.
"""

import gc
from typing import Annotated

import typer

from .. import __version__
from .annotate import annotate
from .demo import demo
from .doctor import doctor
from .evaluate import EPILOG, evaluate
from .export_results import export_results
from .info import info
from .questions import ask, caption, locate
from .serve import serve
from .tagging import tag
from .train import train

GC_THRESHOLD = 50_000
"""Allocations between garbage collections; with Python's default of 700 or 2,000, an eighth of the time to import
transformers is spent on them."""

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        print(f"transformers-lion {__version__}")
        raise typer.Exit


@app.callback()
def lion(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """LION, a multimodal language model with dual-level visual knowledge."""


app.command(epilog="Example: lion caption photos/ --json", no_args_is_help=True)(caption)
app.command(epilog='Example: lion ask photo.jpg -q "Is there a dog?" -q "What color is it?"', no_args_is_help=True)(ask)
app.command(epilog='Example: lion locate photo.jpg -p "the red cup" --draw found.png', no_args_is_help=True)(locate)
app.command(epilog="Example: find photos -name '*.jpg' | lion tag - --output tags.jsonl", no_args_is_help=True)(tag)
app.command(epilog="Example: lion annotate photos.parquet --caption --output captions", no_args_is_help=True)(annotate)
app.command(epilog="Example: lion export-results captions -f coco -o coco.json", no_args_is_help=True)(export_results)
app.command("eval", epilog=EPILOG, no_args_is_help=True)(evaluate)
app.command(epilog="Example: lion demo --model lion-flant5-xl --port 8080")(demo)
app.command(epilog="Example: lion serve --model lion-flant5-xl --port 8000")(serve)
app.command(epilog="Example: lion info lion-flant5-xl")(info)
app.command(epilog="Example: lion doctor > doctor.txt")(doctor)
app.command(epilog="Example: lion train --config recipe.yaml output=runs/2 mixture.steps=100")(train)


def main() -> None:
    """Run the command."""
    gc.set_threshold(GC_THRESHOLD)
    app(prog_name="lion")
