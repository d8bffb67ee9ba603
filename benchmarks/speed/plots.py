"""Plots of the results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .measures import Row, median
from .report import NAMES

COLORS = {"lion": "#c8781e", "instructblip": "#7f8c99", "composed": "#34506b"}
FIGURE = {"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}


def plot_bars(rows: list[Row], path: Path) -> None:
    """Plot the median of each side, with minimum and maximum, on a logarithmic axis."""
    with plt.rc_context(FIGURE):
        figure, axes = plt.subplots(figsize=(9, 0.75 * len(rows) + 1.2), layout="constrained")
        for offset, (side, name) in enumerate(NAMES.items()):
            places = [place for place, row in enumerate(rows) if side in row.values]
            taken = [rows[place].values[side] for place in places]
            middle = [median(values) for values in taken]
            errors = [
                [value - min(values) for value, values in zip(middle, taken, strict=True)],
                [max(values) - value for value, values in zip(middle, taken, strict=True)],
            ]
            height = [place + 0.26 * (offset - 1) for place in places]
            bars = axes.barh(height, middle, 0.24, xerr=errors, color=COLORS[side], label=name, ecolor="#222222")
            axes.bar_label(bars, [f" {value:.2g} s" for value in middle], fontsize=8, padding=2)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(x=0.12)
        axes.set_xlabel("seconds")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path)
        plt.close(figure)


def plot_growth(series: list[dict[str, Any]], path: Path) -> None:
    """Plot points and fitted lines."""
    with plt.rc_context(FIGURE):
        figure, all_axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
        for axes, row in zip(all_axes.flat, series, strict=False):
            axes.plot(row["x"], row["seconds"], "o", color=COLORS["lion"])
            ends = [0, row["x"][-1]]
            axes.plot(ends, [row["slope"] * x + row["intercept"] for x in ends], color=COLORS["composed"], linewidth=1)
            axes.set_title(f"{row['name']}: R² {row['r_squared']:.4f}", fontsize=10)
            axes.set_xlabel(row["axis"])
            axes.set_ylabel("seconds")
            axes.set_ylim(0, 1.1 * max(row["seconds"]))
        for axes in all_axes.flat[len(series) :]:
            axes.set_axis_off()
        figure.savefig(path)
        plt.close(figure)
