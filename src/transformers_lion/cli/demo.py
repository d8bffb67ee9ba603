"""`lion demo`: starts the web page of `transformers_lion.demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, hide_progress_bars, note, report, require, run_action
from .options import Device, Dtype, Model, Optimize, Tagger

Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all interfaces.")]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="Port to listen on.", show_default="first free one from 7860"),
]
Share = Annotated[bool, typer.Option("--share", help="Also share at a public address, through Gradio's servers.")]
Examples = Annotated[Path | None, typer.Option("--examples", help="Folder of example images.")]
WRONG_COMMAND_LINE = 2


def demo(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    share: Share = False,
    examples: Examples = None,
    tagger: Tagger = None,
    device: Device = None,
    dtype: Dtype = None,
    optimize: Optimize = True,
    debug: Debug = False,
) -> None:
    """Serve a web page for captions, questions, boxes and tags."""
    try:
        require("lion demo", "demo", ["gradio"])
    except ValueError as error:
        report(error)
        raise typer.Exit(WRONG_COMMAND_LINE) from error

    def action() -> None:
        from ..demo.server import ServerSettings, examples_of, sentence_about, serve
        from .checkpoints import load_lion

        hide_progress_bars()
        offered = examples_of(model, examples)
        lion = load_lion(model, True if tagger is None else tagger, device, dtype and dtype.value, optimize)
        if lion.tagger is None:
            note(f"{model} has no tagger: prompts contain only the tags that users type; see --tagger.")
        serve(lion, ServerSettings(host, port, share, name=sentence_about(model), examples=offered))

    run_action(action, debug)
