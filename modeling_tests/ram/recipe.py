"""The files that a user of a small RAM has, written from its manifest; the tensors are those of the shared recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from recipe import GOLDENS, seeded_weights

RAM_GOLDENS = GOLDENS / "ram"
TAG_FILES = ("tag_list.txt", "tag_list_threshold.txt")
OVERRIDES = {"vision_config": {"image_size": 96}}
"""What shapes do not tell: the small model reads 96 pixels."""


def ram_manifest() -> dict[str, Any]:
    """The manifest of the small RAM."""
    return json.loads((RAM_GOLDENS / "manifest.json").read_text())


def write_ram_files(folder: Path, seed: int | None = None) -> Path:
    """`ram.pth`, `tag_list.txt`, `tag_list_threshold.txt` and `overrides.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": seeded_weights(ram_manifest(), seed)}, folder / "ram.pth")
    for name in TAG_FILES:
        shutil.copy(RAM_GOLDENS / name, folder / name)
    (folder / "overrides.json").write_text(json.dumps(OVERRIDES))
    return folder
