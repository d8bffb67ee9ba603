"""Records of training data and the files that they stand in, as small as they can be."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make_image(seed: int = 0, width: int = 12, height: int = 10) -> Image.Image:
    """An image of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def png(seed: int = 0, width: int = 12, height: int = 10) -> bytes:
    """The same image as a file."""
    file = io.BytesIO()
    make_image(seed, width, height).save(file, "PNG")
    return file.getvalue()


def good_record(seed: int = 0, name: str = "a", **fields: Any) -> dict[str, Any]:
    """A record of the image `name` + `seed`; fields that are `...` are left out."""
    record = {
        "image": f"{name}{seed}.png",
        "question": f"What is {name}{seed}?",
        "answer": f"Noise {seed}",
        "category": "vqa",
        **fields,
    }
    return {name: value for name, value in record.items() if value is not ...}


def write_images(folder: Path, count: int, name: str = "a") -> None:
    """The files that `good_record` names."""
    for seed in range(count):
        (folder / f"{name}{seed}.png").write_bytes(png(seed))


def write_json(path: Path, records: Sequence[Any]) -> Path:
    """A file of records, as its suffix says."""
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) if lines else json.dumps(records))
    return path


def write_source(folder: Path, count: int, name: str = "a", suffix: str = ".json") -> Path:
    """A file of good records, and their images."""
    write_images(folder, count, name)
    return write_json(folder / f"{name}{suffix}", [good_record(seed, name) for seed in range(count)])
