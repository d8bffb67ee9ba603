"""Scenes of the small world as images and data files: for REC, short answers, POPE and multiple choice."""

import json
from pathlib import Path
from typing import Any

from examples.small_world.scenes import SHAPES, Scene, render, sample_scene

SIZE = 100


def write_scenes(folder: Path, count: int = 6) -> None:
    """Write `count` images into `folder/images`, and beside it a file of data for each task."""
    (folder / "images").mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {"rec": [], "exact": [], "pope": [], "choice": []}
    for index in range(count):
        scene, name = sample_scene("test", 100 + index), f"scene{index}.png"
        render(scene, SIZE).save(folder / "images" / name)
        add_rows(rows, scene, name, index)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def add_rows(rows: dict[str, list[dict[str, Any]]], scene: Scene, name: str, index: int) -> None:
    """Questions about a scene: where two of its objects are and their colours, which shapes it has, its background."""
    fields = {"image": name, "tags": scene.tags}
    for place, thing in enumerate(scene.objects[:2]):
        rows["rec"].append({**fields, "id": f"r{index}-{place}", "expression": f"the {thing.color} {thing.shape}",
                            "bbox": [value * SIZE for value in thing.box]})  # fmt: skip
        rows["exact"].append({**fields, "id": f"v{index}-{place}", "answer": thing.color,
                              "question": f"What color is the {thing.shape}?"})  # fmt: skip
    present = {thing.shape for thing in scene.objects}
    for place, shape in enumerate(SHAPES[:3]):
        answer = "yes" if shape in present else "no"
        text = f"Is there a {shape} in the image?"
        rows["pope"].append({**fields, "question_id": 10 * index + place, "text": text, "label": answer})
    choices = sorted({scene.background, "plain", "noisy", "dotted"})
    question = "What is the background like?"
    rows["choice"].append({**fields, "id": f"c{index}", "question": question, "choices": choices,
                           "answer": choices.index(scene.background)})  # fmt: skip
