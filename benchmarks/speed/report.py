"""Results as JSON, and Markdown generated from it."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from . import reference
from .measures import Row, Settings, median, ratio
from .targets import check

NAMES = {"lion": "LION", "instructblip": "InstructBLIP", "composed": "composed as the reference"}
HEADINGS = {
    "load": "Loading",
    "encode": "From pixels to the language model",
    "language": "Language model",
    "answers": "Whole answers",
    "questions": "Several questions",
    "tagging": "Tagging",
    "training": "Training",
    "memory": "Peak memory",
    "floors": "What the hardware allows",
    "growth": "How the cost grows",
    "profile": "Where an answer's time goes",
    "sizes": "Memory of the paper's models",
}
"""Headings of the sections, in order."""


def facts() -> dict[str, Any]:
    """Describe the hardware and software of a run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__, "transformers": transformers.__version__}


class Results:
    """File with all sections measured so far. It is rewritten after each section."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "speed.json"
        self.sections: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def put(self, name: str, settings: Settings, taken: float, content: list[Any]) -> None:
        """Add a section, replacing an earlier one with the same name."""
        content = [part if isinstance(part, dict) else asdict(part) for part in content]
        self.sections[name] = {"ran on": facts(), "settings": asdict(settings), "minutes": taken / 60, "rows": content}

    def write(self) -> None:
        """Write both files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.sections, indent=1) + "\n")
        (self.folder / "speed.md").write_text(f"# Speed and memory\n\n{self.markdown()}")

    def rows(self, *names: str) -> list[Row]:
        """Return the rows of sections that were measured."""
        return [Row(**row) for name in names if name in self.sections for row in self.sections[name]["rows"]]

    def markdown(self) -> str:
        """Format all tables."""
        timed = [name for name in HEADINGS if name not in ("growth", "profile", "sizes", "floors")]
        parts = [self.conditions(), *targets(self.rows(*timed, "floors"))]
        for name, heading in HEADINGS.items():
            if name in self.sections:
                table = {"growth": growth, "profile": profile, "sizes": sizes, "floors": floors}.get(name, compared)
                rows = self.sections[name]["rows"] if name in ("growth", "profile", "sizes") else self.rows(name)
                parts += [f"### {heading}", table(rows)]
        parts += beside_reference(self.rows("encode", "answers"))
        return "\n\n".join(parts) + "\n"

    def conditions(self) -> str:
        """Describe the hardware and settings. Sections with the same conditions share a line."""
        lines: dict[str, list[str]] = {}
        for name, section in self.sections.items():
            ran, how = section["ran on"], section["settings"]
            line = (
                f"{ran['cpu']}, {how['threads']} of {ran['cores']} cores, torch {ran['torch']}, transformers "
                f"{ran['transformers']}; {how['size']} size, float32, {how['new_tokens']} new tokens, medians of "
                f"{how['repeats']} in turns, {how['clock']} time"
            )
            lines.setdefault(line, []).append(name)
        if len(lines) == 1:
            return f"{next(iter(lines))}."
        return "\n".join(f"- {', '.join(names)}: {line}." for line, names in lines.items())


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Format a number with three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def spread(found: tuple[float, float, float]) -> str:
    middle, low, high = found
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def pick_unit(row: Row) -> tuple[str, float]:
    """Use milliseconds for short times."""
    return ("ms", 1e3) if row.unit == "s" and median(row.values["lion"]) < 0.1 else (row.unit, 1)


def compared(rows: list[Row]) -> str:
    """Compare the medians of all sides."""
    lines = []
    for row in rows:
        unit, factor = pick_unit(row)
        cells = [f"{row.name}, {unit}"]
        cells += [number(factor * median(row.values[side])) if side in row.values else "" for side in NAMES]
        lion, blip, composed = (row.values.get(side) for side in NAMES)
        cells.append(spread(ratio(composed, lion)) if composed and lion else "")
        cells.append(spread(ratio(lion, blip)) if blip and lion else "")
        lines.append(cells)
    return table(["", *NAMES.values(), "composed / LION", "LION / InstructBLIP"], lines)


def floors(rows: list[Row]) -> str:
    """Compare LION with the hardware limits."""
    lines = []
    for row in rows:
        notes = ", ".join(
            f"{name}: {value if isinstance(value, str) else number(value)}" for name, value in row.notes.items()
        ).replace("|", "/")
        floor = row.values["floor"][0]
        measured = row.values.get("lion")
        cells = [row.name, f"{1e3 * floor:.1f}"]
        cells += [f"{1e3 * median(measured):.1f}", f"{median(measured) / floor:.2f}"] if measured else ["", ""]
        lines.append([*cells, notes])
    return table(["", "floor, ms", "LION, ms", "LION / floor", "of which"], lines)


def growth(rows: list[dict[str, Any]]) -> str:
    """Format the linear fits, which `growth.png` shows."""
    heads = ["", "grows", "from, to", "seconds", "seconds for one more", "seconds at zero", "R²"]
    lines = [
        [row["name"], row["axis"], f"{row['x'][0]}, {row['x'][-1]}",
         f"{number(row['seconds'][0])}, {number(row['seconds'][-1])}", number(row["slope"]), number(row["intercept"]),
         f"{row['r_squared']:.4f}"]
        for row in rows
    ]  # fmt: skip
    return table(heads, lines)


def profile(rows: list[dict[str, Any]]) -> str:
    """Format the operations of an answer with 5 beams."""
    lines = [[f"`{row['operation']}`", number(row["ms"]), f"{row['share']:.1%}", str(row["calls"])] for row in rows]
    return table(["operation", "ms by itself", "share", "calls"], lines)


def sizes(rows: list[dict[str, Any]]) -> str:
    """Format memory in GB."""
    heads = list(rows[0])
    lines = [[value if isinstance(value, str) else f"{value:.2f}" for value in row.values()] for row in rows]
    return table([f"{head}, GB" if isinstance(rows[0][head], float) else head for head in heads], lines)


def targets(rows: list[Row]) -> list[str]:
    """List each target and whether it is met."""
    lines = []
    for target, found in check(rows):
        verdict = "not measured" if found is None else "met" if target.is_met(found[0]) else "not met"
        against = NAMES.get(target.against, "the hardware's floor")
        lines.append([target.row, against, target.bound, spread(found) if found else "", verdict])
    if not lines:
        return []
    return ["### Targets", table(["", "against", "target", "measured", ""], lines)]


def beside_reference(rows: list[Row]) -> list[str]:
    """Compare the composition and the reference's own code, both relative to InstructBLIP."""
    lines = []
    for row in rows:
        if row.name in reference.SECONDS:
            code, blip = reference.SECONDS[row.name]
            now = ratio(row.values["composed"], row.values["instructblip"])
            lines.append([row.name, number(code), number(blip), f"{code / blip:.2f}", spread(now)])
    if not lines:
        return []
    heads = ["", "reference's own code, s", "InstructBLIP beside it, s", "ratio", "composed / InstructBLIP in this run"]
    step = f"A training step of the reference's own code at batch 4 took {reference.TRAINING_STEP} s there."
    return ["### Does the composition stand for the reference?", table(heads, lines), step]
