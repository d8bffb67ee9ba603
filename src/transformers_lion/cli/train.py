"""`lion train`: trains the stages of a recipe."""

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
            metavar="[KEY=VALUE]...", help="Overrides: output=runs/2, learning_rate=1e-4, mixture.steps=100."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train the stages of a recipe one after the other. Interrupted runs resume when started again."""

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
        except ImportError as error:  # a training argument needs a package that is not installed
            raise ValueError(str(error)) from error

    run_action(action, debug)
