"""The command `lion`. It is thin: its commands, a file each, call the library.

Exit codes: 0 if all went well; 1 after an error, which is one line on stderr (`--debug` shows where it came from); 2
for a wrong command line; 130 after Ctrl-C.
"""

import typer

from .evaluate import EPILOG, evaluate
from .train import train

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def lion() -> None:
    """LION, a multimodal language model with dual-level visual knowledge."""


app.command()(train)
app.command("eval", epilog=EPILOG)(evaluate)


def main() -> None:
    """Run the command."""
    app(prog_name="lion")
