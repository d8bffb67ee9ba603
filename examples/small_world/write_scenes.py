"""Writes `examples/scenes`, the labeled images of the documentation: `python -m examples.small_world.write_scenes`.

`train.jsonl` and `validation.jsonl` have one line per image, in the format of `lion eval rec`: a referring expression
for the foremost object, and the box (x1, y1, x2, y2) of that object in pixels.
"""

import json
from pathlib import Path

from .scenes import render, sample_scene

FOLDER = Path(__file__).parents[1] / "scenes"
NUM_SCENES = {"train": 48, "validation": 24}
SIZE = 100


def write_scenes(folder: Path = FOLDER) -> None:
    """Write the images and one JSON Lines file for each split into a folder."""
    for split, count in NUM_SCENES.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            scene, image = sample_scene(split, number), f"{split}/{number}.jpg"
            render(scene, SIZE).save(folder / image, quality=85)
            thing = scene.objects[-1]
            record = {
                "image": image,
                "expression": f"the {thing.size} {thing.color} {thing.shape}",
                "bbox": [round(SIZE * value, 1) for value in thing.box],
            }
            lines.append(json.dumps(record) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_scenes()
