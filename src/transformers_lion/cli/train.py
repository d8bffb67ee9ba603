"""`lion train`: the stages of a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, hide_progress_bars, require, run_action, show_progress, speaker

PACKAGES = ("accelerate", "datasets", "matplotlib")


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
        require("lion train", "train", PACKAGES)
        import datasets

        from ..training.run_settings import load_settings
        from ..training.run_stages import run

        settings = load_settings(config, changes or [])
        if not show_progress():
            hide_progress_bars()
            datasets.disable_progress_bars()
        try:
            run(settings, say=speaker(), progress_bar=show_progress())
        except ImportError as error:  # of a package that one of the Trainer's arguments needs
            raise ValueError(str(error)) from error

    run_action(action, debug)
