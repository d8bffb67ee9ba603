"""Identifies a model by a hash of its files, so that results of different models are never mixed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

EDGE = 1 << 20
"""Number of bytes at both ends of a file that are hashed."""
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.bin")


def identify_model(model: str) -> dict[str, Any]:
    """Return a model's name, with a hash of its folder's files or the commit of its repository.

    The hash covers the name, size and both ends of each file; a change in the middle of a large file is not detected.

    Raises:
        ValueError: if `model` is neither a folder nor a repository.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            return {"name": model, "sha256": PreTrainedConfig.get_config_dict(model)[0].get("_commit_hash")}
        except (OSError, ValueError) as error:  # only the first sentence is the reason
            reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
            raise ValueError(f"{model} is neither a folder nor a readable repository: {reason}.") from error
    digest = hashlib.sha256()
    for path in list_model_files(folder):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
            digest.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
    return {"name": str(folder.resolve()), "sha256": digest.hexdigest()}


def list_model_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint, including those of its tagger."""
    yield from sorted({path for pattern in MODEL_FILES for path in folder.rglob(pattern) if path.is_file()})


__all__ = ["identify_model"]
