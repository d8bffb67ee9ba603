"""Plots the losses of all parts of the small world's training in one image, and prints how long each part took.

`python -m examples.small_world.plot_losses FOLDER IMAGE`
"""

import argparse
import json
from pathlib import Path
from typing import Any

PARTS = ("tower", "language", "tag_language", "tagger", "alignment", "image_level", "region_level", "mixture")
"""The parts in the order of training; those of stage 0 have their own log format, the others that of the Trainer."""


def _read_log(folder: Path, part: str) -> list[dict[str, Any]]:
    """Return the log entries with `step` and `loss`; an empty list if there is no log."""
    for name in (part, f"{part}-training"):
        file = folder / name / "log.jsonl"
        if file.exists():
            return [json.loads(line) for line in file.read_text().splitlines()]
        file = folder / name / "log.json"
        if file.exists():
            return json.loads(file.read_text())["log_history"]
    return []


def _seconds_of(entries: list[dict[str, Any]]) -> float:
    """Return how long a part took, over all of its runs."""
    return max((entry.get("seconds", entry.get("train_runtime", 0.0)) for entry in entries), default=0.0)


def draw(folder: Path, image: Path) -> dict[str, dict[str, float]]:
    """Plot the existing logs, and return the steps, seconds, and first and last loss of each part."""
    from matplotlib.figure import Figure

    logs = {part: entries for part in PARTS if (entries := _read_log(folder, part))}
    columns = 4
    rows = -(-len(logs) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    facts = {}
    for place, (part, entries) in enumerate(logs.items()):
        points = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.plot(*zip(*points, strict=True), lw=1.2)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.set_title(f"{part}, {_seconds_of(entries) / 60:.0f} min")
        axes.grid(alpha=0.3, which="both")
        facts[part] = {
            "steps": points[-1][0], "seconds": round(_seconds_of(entries)), "first loss": points[0][1],
            "last loss": points[-1][1],
        }  # fmt: skip
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=70)
    return facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    options = parser.parse_args()
    for part, facts in draw(options.folder, options.image).items():
        print(part, json.dumps(facts))
