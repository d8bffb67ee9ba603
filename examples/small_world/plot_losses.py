"""Plots the loss of every part of the small world's training in one image, and prints how long each part took.

`python -m examples.small_world.plot_losses FOLDER PICTURE`
"""

import argparse
import json
from pathlib import Path
from typing import Any

PARTS = ("tower", "language", "tag_language", "tagger", "alignment", "image_level", "region_level", "mixture")
"""In the order of training; those of stage 0 have a log of their own, the stages that of the Trainer."""


def _read_log(folder: Path, part: str) -> list[dict[str, Any]]:
    """Entries with `step` and `loss`, and among them those of evaluations; empty if there is no such log."""
    for name in (part, f"{part}-training"):
        file = folder / name / "log.jsonl"
        if file.exists():
            return [json.loads(line) for line in file.read_text().splitlines()]
        file = folder / name / "log.json"
        if file.exists():
            return json.loads(file.read_text())["log_history"]
    return []


def _seconds_of(entries: list[dict[str, Any]]) -> float:
    """How long a part took, all its starts together."""
    return max((entry.get("seconds", entry.get("train_runtime", 0.0)) for entry in entries), default=0.0)


def draw(folder: Path, picture: Path) -> dict[str, dict[str, float]]:
    """Draw what there is, and return of each part its steps, its seconds, and its first and last loss."""
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
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=70)
    return facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    for part, facts in draw(options.folder, options.picture).items():
        print(part, json.dumps(facts))
