"""Plots the curves of a training run from the Trainer's log."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

PANELS = {"loss": ("loss", "eval_loss"), "learning rate": ("learning_rate",), "gradient norm": ("grad_norm",)}
"""The first panels of the plot; evaluation metrics come last, if there are any."""

NOT_METRICS = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def draw_curves(log: Sequence[dict[str, Any]], path: str | os.PathLike, title: str = "") -> None:
    """Plot the loss, learning rate, gradient norm and evaluation metrics over the steps.

    Args:
        log: `trainer.state.log_history`.
        path: path of the plot; its suffix determines the format.
        title: title of the plot.
    """
    metrics = sorted({name for entry in log for name in entry if name.startswith("eval_")}.difference(NOT_METRICS))
    metrics = [name for name in metrics if not name.endswith("preparation_time")]
    panels = {**PANELS, **({"evaluation": tuple(metrics)} if metrics else {})}
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
        axes.set(xlabel="step", ylabel=label)
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


__all__ = ["draw_curves"]
